//go:build linux && (amd64 || arm64)

package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	osPage = 4 << 10 // what the scans count in; systems with larger pages fail the self-test
	// smallMemory is up to which size, in bytes, copying everything is as fast as looking for what was written.
	smallMemory = 64 << 10
	// maxDirty is how many pages of an instance may stay resident between jobs. Beyond them the memory is given back and its
	// pages are fetched again by the jobs that use them.
	maxDirty = 512
)

// mapped keeps memories in reserved address space with their image mapped privately below: what a guest writes is a private
// page, and the system's page map tells which those are.
type mapped struct {
	pagemap *os.File
	fd      uintptr // of pagemap
	scan    bool    // by PAGEMAP_SCAN; else by reading the page map
}

// newMapped returns memories by mapping once a self-test has shown that everything it needs is there.
func newMapped() (memories, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	for _, scan := range []bool{true, false} {
		m := &mapped{pagemap: f, fd: f.Fd(), scan: scan}
		if err = m.test(); err == nil {
			return m, nil
		}
	}
	_ = f.Close()
	return nil, err
}

func (p *mapped) most() int { return 1 << 32 }

func (p *mapped) close() error { return p.pagemap.Close() }

func (p *mapped) allocate(limit uint64) (memory, error) {
	space, err := unix.Mmap(-1, 0, int(max(limit, osPage)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %s of address space: %w", size(int64(limit)), err)
	}
	// One byte must not make two megabytes dirty. Without support for huge pages there is nothing to turn off.
	_ = unix.Madvise(space, unix.MADV_NOHUGEPAGE)
	return &mapping{growth: newGrowth(limit), by: p, space: space}, nil
}

func (p *mapped) image(b []byte) (*image, error) {
	if len(b) == 0 {
		return &image{fd: -1}, nil
	}
	fd, err := unix.MemfdCreate("wasmsidecar", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memory image: %w", err)
	}
	img := &image{fd: fd, free: func() error { return unix.Close(fd) }}
	if err := writeImage(fd, b); err != nil {
		return nil, errors.Join(fmt.Errorf("write memory image: %w", err), img.close())
	}
	img.bytes, err = unix.Mmap(fd, 0, len(b), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map memory image: %w", err), img.close())
	}
	img.free = func() error { return errors.Join(unix.Munmap(img.bytes), unix.Close(fd)) }
	img.filled = filled(b)
	return img, nil
}

// writeImage writes b to fd and leaves holes where it is zero.
func writeImage(fd int, b []byte) error {
	if err := unix.Ftruncate(fd, int64(len(b))); err != nil {
		return err
	}
	for at := 0; at < len(b); at += osPage {
		page := b[at:min(at+osPage, len(b))]
		if isZero(page) {
			continue
		}
		n, err := unix.Pwrite(fd, page, int64(at))
		if err == nil && n < len(page) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// filled returns the pages of a small memory that hold more than zeros: to clear the rest costs half of copying it.
func filled(b []byte) []span {
	var spans []span
	for at := 0; at < len(b) && len(b) <= smallMemory; at += osPage {
		end := min(at+osPage, len(b))
		switch n := len(spans); {
		case isZero(b[at:end]):
		case n > 0 && spans[n-1].hi == at:
			spans[n-1].hi = end
		default:
			spans = append(spans, span{at, end})
		}
	}
	return spans
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// mapping is one memory.
type mapping struct {
	growth
	by    *mapped
	space []byte // all that is reserved
	size  int    // what the guest has

	spans   []span
	regions []region // for PAGEMAP_SCAN
	entries []byte   // of the page map
}

// Reallocate implements experimental.LinearMemory. The memory never moves.
func (m *mapping) Reallocate(size uint64) []byte {
	size, ok := m.grow(size)
	if !ok {
		return nil
	}
	m.size = int(size)
	return m.space[:m.size:m.size]
}

// Free implements experimental.LinearMemory.
func (m *mapping) Free() {
	if m.space != nil {
		_ = unix.Munmap(m.space)
		m.space = nil
	}
}

func (m *mapping) adopt(img *image) error {
	if m.size < len(img.bytes) {
		return errSmaller
	}
	n := len(img.bytes)
	if n > 0 {
		if _, err := unix.MmapPtr(img.fd, 0, unsafe.Pointer(&m.space[0]), uintptr(n), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_NORESERVE|unix.MAP_FIXED); err != nil {
			return fmt.Errorf("map memory image: %w", err)
		}
	}
	return m.drop(n)
}

// drop gives back what is written from byte lo on.
func (m *mapping) drop(lo int) error {
	if lo == m.size {
		return nil
	}
	if err := unix.Madvise(m.space[lo:m.size], unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("give back memory: %w", err)
	}
	return nil
}

func (m *mapping) reset(img *image) error {
	if m.size < len(img.bytes) {
		return errSmaller
	}
	if m.size <= smallMemory {
		at := 0
		for _, s := range img.filled {
			clear(m.space[at:s.lo])
			at = s.lo + copy(m.space[s.lo:s.hi], img.bytes[s.lo:s.hi])
		}
		clear(m.space[at:m.size])
		return nil
	}
	pages, at := 0, 0
	for at < m.size {
		regions, end, err := m.written(at)
		if err != nil {
			return fmt.Errorf("look for written pages: %w", err)
		}
		for _, r := range regions {
			if pages += (r.hi - r.lo) / osPage; pages > maxDirty {
				return m.drop(0)
			}
			n := 0
			if r.lo < len(img.bytes) {
				n = copy(m.space[r.lo:r.hi], img.bytes[r.lo:])
			}
			clear(m.space[r.lo+n : r.hi])
		}
		at = end
	}
	return nil
}

// forgetWritten gives back what is written to a memory, which then holds its image, and reports whether it could.
func forgetWritten(mem memory) bool {
	m, ok := mem.(*mapping)
	return ok && m.drop(0) == nil
}

// countWritten returns how many pages of a memory are written; -1 when that is not known.
func countWritten(mem memory) int {
	m, ok := mem.(*mapping)
	if !ok {
		return -1
	}
	pages := 0
	for at := 0; at < m.size; {
		spans, end, err := m.written(at)
		if err != nil {
			return -1
		}
		for _, s := range spans {
			pages += (s.hi - s.lo) / osPage
		}
		at = end
	}
	return pages
}

// written returns private pages from byte at on, in order, and how far it looked.
func (m *mapping) written(at int) ([]span, int, error) {
	if m.by.scan {
		return m.scanned(at)
	}
	return m.read(at)
}

// region and scanArgs are what PAGEMAP_SCAN reads and writes (struct page_region and pm_scan_arg of linux/fs.h).
type region struct{ start, end, categories uint64 }

type scanArgs struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages, inverted, all, any, returned uint64
}

const (
	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	pageFile    = 1 << 2
	pagePresent = 1 << 3
	pageSwapped = 1 << 4
	pageZero    = 1 << 5

	maxRegions = 64
)

// scanned asks the kernel (6.7 or later) for pages that are there and are not the image's.
func (m *mapping) scanned(at int) ([]span, int, error) {
	if m.regions == nil {
		m.regions = make([]region, maxRegions)
	}
	base := uint64(uintptr(unsafe.Pointer(&m.space[0])))
	args := scanArgs{
		size: uint64(unsafe.Sizeof(scanArgs{})), start: base + uint64(at), end: base + uint64(m.size),
		vec: uint64(uintptr(unsafe.Pointer(&m.regions[0]))), vecLen: maxRegions,
		inverted: pageFile | pageZero, all: pageFile | pageZero, any: pagePresent | pageSwapped, returned: pagePresent,
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, m.by.fd, pagemapScan, uintptr(unsafe.Pointer(&args)))
	if errno != 0 {
		return nil, 0, errno
	}
	m.spans = m.spans[:0]
	for _, r := range m.regions[:n] {
		m.spans = append(m.spans, span{int(r.start - base), int(r.end - base)})
	}
	end := m.size
	if n == maxRegions {
		end = int(args.walkEnd - base)
	}
	return m.spans, end, nil
}

// Bits of an entry of the page map.
const (
	entryPresent = 1 << 63
	entrySwapped = 1 << 62
	entryFile    = 1 << 61

	entriesAtOnce = 512
)

// read reads the page map, which every kernel has, one entry for each page.
func (m *mapping) read(at int) ([]span, int, error) {
	if m.entries == nil {
		m.entries = make([]byte, 8*entriesAtOnce)
	}
	end := min(m.size, at+entriesAtOnce*osPage)
	entries := m.entries[:8*(end-at)/osPage]
	first := (uintptr(unsafe.Pointer(&m.space[0])) + uintptr(at)) / osPage
	if _, err := m.by.pagemap.ReadAt(entries, int64(first)*8); err != nil {
		return nil, 0, err
	}
	spans := m.spans[:0]
	for ; len(entries) > 0; entries, at = entries[8:], at+osPage {
		e := binary.LittleEndian.Uint64(entries)
		switch {
		case e&(entryPresent|entrySwapped) == 0 || e&entryFile != 0:
		case len(spans) > 0 && spans[len(spans)-1].hi == at:
			spans[len(spans)-1].hi = at + osPage
		default:
			spans = append(spans, span{at, at + osPage})
		}
	}
	m.spans = spans
	return spans, end, nil
}

// test writes to a memory and sees whether exactly what was written is found and put back, also above the image, and
// whether giving memory back restores the image. None of that is promised by any document.
func (p *mapped) test() (err error) {
	if os.Getpagesize() != osPage {
		return fmt.Errorf("pages of %d bytes", os.Getpagesize())
	}
	const pages = 64
	want := make([]byte, pages*osPage)
	for i := range pages / 2 {
		want[i*osPage] = byte(i) + 1
	}
	img, err := p.image(want)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.close()) }()
	mem, err := p.allocate(2 * pages * osPage)
	if err != nil {
		return err
	}
	defer mem.Free()
	m := mem.(*mapping)
	m.Reallocate(pages * osPage)
	if err := m.adopt(img); err != nil {
		return err
	}
	b := m.Reallocate(2 * pages * osPage)
	sum := byte(0)
	for i := 0; i < len(b); i += osPage {
		sum += b[i] // reading makes nothing dirty
	}
	written := []int{0, 1, 7, pages / 2, pages - 1, pages, pages + 9}
	for round := range 3 {
		for _, i := range written {
			b[i*osPage+5] = 99 + sum
		}
		found := map[int]bool{}
		for at := 0; at < m.size; {
			var spans []span
			if spans, at, err = m.written(at); err != nil {
				return err
			}
			for _, s := range spans {
				for i := s.lo; i < s.hi; i += osPage {
					found[i/osPage] = true
				}
			}
		}
		for _, i := range written {
			if !found[i] {
				return fmt.Errorf("page %d was written and is not in the page map", i)
			}
		}
		if len(found) > len(written)+pages { // zero pages above the image may be among them
			return fmt.Errorf("%d pages were written and the page map has %d", len(written), len(found))
		}
		put := func() error { return m.reset(img) }
		if round == 1 {
			put = func() error { return m.drop(0) }
		}
		if err := put(); err != nil {
			return err
		}
		if string(b[:len(want)]) != string(want) || !isZero(b[len(want):]) {
			return errors.New("what was written is not put back")
		}
	}
	return nil
}
