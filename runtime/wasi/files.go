package wasi

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"syscall"
	"unicode/utf8"

	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Preopen is a directory that a guest may use. What is behind a path is decided by the system's own openat, one element after
// the other, so nothing outside of Root is reached by way of "..", an absolute path or a symbolic link, whoever changes them
// meanwhile. Only regular files and directories can be opened.
type Preopen struct {
	Name  string // the path that the guest finds it under
	Root  *os.Root
	Write bool // the guest may change what is in it
}

// Files is what a guest may do with files.
type Files struct {
	Preopens []Preopen
	Open     int   // most descriptors at once, the preopens apart
	Bytes    int64 // most that may be written; a new file, directory or link counts as 4 KiB, a hole as what it spans
	// Refused is told of what the guest was refused, and of nil once something went well after that; never nil with Preopens.
	Refused func(err *job.Error)
}

// newEntry is what a new file, directory or link counts as.
const newEntry = 4 << 10

// firstFile is the first descriptor that is none of the standard streams.
const firstFile = 3

// descriptor is an open file or directory.
type descriptor struct {
	in      *Preopen
	path    string   // below in.Root
	file    *os.File // nil: a directory
	preopen bool
	read    bool
	write   bool
	flags   uint16 // of fd_fdstat_get
	offset  int64
	size    int64 // when it was last looked at
	list    listing
}

func (d *descriptor) close() {
	if d.file != nil {
		_ = d.file.Close()
	}
	d.list.close()
}

// table returns the descriptors from firstFile on, nil where one is closed. The preopens come first.
func (p *Process) table() []*descriptor {
	if p.files == nil {
		p.files = make([]*descriptor, 0, len(p.Files.Preopens)+4)
		for i := range p.Files.Preopens {
			p.files = append(p.files, &descriptor{in: &p.Files.Preopens[i], path: ".", preopen: true})
		}
	}
	return p.files
}

// at returns an open file or directory, nil when there is none.
func (p *Process) at(fd uint32) *descriptor {
	if t := p.table(); fd >= firstFile && fd-firstFile < uint32(len(t)) {
		return t[fd-firstFile]
	}
	return nil
}

// Pristine says whether the guest's files are as they are for a new Process: its preopens are open, and nothing else.
func (p *Process) Pristine() bool {
	for i, d := range p.table() {
		if preopen := i < len(p.Files.Preopens); preopen != (d != nil) || preopen && (!d.preopen || d.in != &p.Files.Preopens[i]) {
			return false
		}
	}
	return true
}

// Close closes what the guest has open. The Process is of no use then.
func (p *Process) Close() {
	for _, d := range p.files {
		if d != nil {
			d.close()
		}
	}
	p.files = nil
}

// add gives a descriptor the lowest number that is free.
func (p *Process) add(d *descriptor) uint32 {
	for i, old := range p.table() {
		if old == nil {
			p.files[i] = d
			return firstFile + uint32(i)
		}
	}
	p.files = append(p.files, d)
	return firstFile + uint32(len(p.files)-1)
}

// room says whether another descriptor may be opened.
func (p *Process) room() bool {
	n := 0
	for _, d := range p.table() {
		if d != nil && !d.preopen {
			n++
		}
	}
	return n < p.Files.Open
}

// refuse notes why the guest is refused something and returns e.
func (p *Process) refuse(e errno, kind job.Kind, format string, args ...any) errno {
	p.refused = true
	p.Files.Refused(job.Errorf(kind, "files: "+format, args...))
	return e
}

// fine notes that something went well.
func (p *Process) fine() errno {
	if p.refused {
		p.refused = false
		p.Files.Refused(nil)
	}
	return eOK
}

// charge takes n from what the guest may write.
func (p *Process) charge(n int64) errno {
	if n > p.Files.Bytes-p.wrote {
		return p.refuse(eDQUOT, job.KindLimit, "over the limit of %d bytes written (limits.file_bytes)", p.Files.Bytes)
	}
	p.wrote += n
	return eOK
}

// readOnly refuses a change.
func (p *Process) readOnly(in *Preopen) errno {
	return p.refuse(eROFS, job.KindDenied, "%s may only be read (allow.files: write)", in.Name)
}

// onFile is a function of an open file or directory; for a standard stream it answers e.
func onFile(e errno, f func(ctx context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno) func(context.Context, *Process, api.Memory, []uint64) errno {
	return func(ctx context.Context, p *Process, m api.Memory, stack []uint64) errno {
		fd := uint32(stack[0])
		if p.open(fd) {
			return e
		}
		d := p.at(fd)
		if d == nil {
			return eBADF
		}
		return f(ctx, p, d, m, stack)
	}
}

// maxPath is the longest path, in bytes.
const maxPath = 4096

// resolve reads a path that is relative to d, and returns it relative to the root of d's preopen.
func (p *Process) resolve(d *descriptor, m api.Memory, ptr, n uint64) (string, errno) {
	if d.file != nil {
		return "", eNOTDIR
	}
	if uint32(n) > maxPath {
		return "", eNAMETOOLONG
	}
	b, ok := m.Read(uint32(ptr), uint32(n))
	switch {
	case !ok:
		return "", eFAULT
	case len(b) == 0:
		return "", eNOENT
	case !utf8.Valid(b):
		return "", eILSEQ
	}
	path := string(b)
	depth, at := 0, 0
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] == 0 {
			return "", eINVAL
		}
		if i < len(path) && path[i] != '/' {
			continue
		}
		switch path[at:i] {
		case "", ".":
		case "..":
			depth--
		default:
			depth++
		}
		if at = i + 1; depth < 0 {
			return "", p.escapes(d.in, path)
		}
	}
	if path[0] == '/' {
		return "", p.escapes(d.in, path)
	}
	if d.path != "." {
		path = d.path + "/" + path
	}
	return path, eOK
}

func (p *Process) escapes(in *Preopen, path string) errno {
	return p.refuse(eNOTCAPABLE, job.KindDenied, "%s leads out of %s", job.CleanText(path), in.Name)
}

// fail translates an error of the system.
func (p *Process) fail(in *Preopen, path string, err error) errno {
	var e syscall.Errno
	switch {
	case errors.As(err, &e):
		if known, ok := errnoOf(e); ok {
			return known
		}
		return eIO
	case errors.Is(err, fs.ErrNotExist):
		return eNOENT
	case errors.Is(err, fs.ErrExist):
		return eEXIST
	}
	// What remains is os.Root's own, for which there is no value to compare with.
	return p.escapes(in, path)
}

func errnoOf(e syscall.Errno) (errno, bool) {
	known, ok := map[syscall.Errno]errno{
		syscall.EACCES: eACCES, syscall.EBUSY: eBUSY, syscall.EDQUOT: eDQUOT, syscall.EEXIST: eEXIST, syscall.EFBIG: eFBIG,
		syscall.EINVAL: eINVAL, syscall.EISDIR: eISDIR, syscall.ELOOP: eLOOP, syscall.EMFILE: eNFILE, syscall.EMLINK: eMLINK,
		syscall.ENAMETOOLONG: eNAMETOOLONG, syscall.ENFILE: eNFILE, syscall.ENOENT: eNOENT, syscall.ENOSPC: eNOSPC,
		syscall.ENOTDIR: eNOTDIR, syscall.ENOTEMPTY: eNOTEMPTY, syscall.ENXIO: eNXIO, syscall.EPERM: ePERM, syscall.EROFS: eROFS,
		syscall.ETXTBSY: eTXTBSY, syscall.EXDEV: eXDEV,
	}[e]
	return known, ok
}

// Flags of path_open.
const (
	follow = 1 << 0 // of its lookup flags

	openCreate    = 1 << 0
	openDirectory = 1 << 1
	openExclusive = 1 << 2
	openTruncate  = 1 << 3

	flagAppend = 1 << 0
)

// pathOpen is path_open(fd, lookup, path, plen, open, rights, inheriting, flags, result).
func pathOpen(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	p.drew = true
	lookup, open, rights, flags := uint32(stack[1]), uint32(stack[4]), stack[5], uint32(stack[7])
	path, e := p.resolve(d, m, stack[2], stack[3])
	if e != eOK {
		return e
	}
	if _, ok := m.Read(uint32(stack[8]), 4); !ok {
		return eFAULT
	}
	f, e := p.openFile(d.in, path, lookup, open, rights, flags)
	if e != eOK {
		return e
	}
	m.WriteUint32Le(uint32(stack[8]), p.add(f))
	return p.fine()
}

func (p *Process) openFile(in *Preopen, path string, lookup, open uint32, rights uint64, flags uint32) (*descriptor, errno) {
	f := &descriptor{in: in, path: path, write: rights&rightWrite != 0, flags: uint16(flags)}
	f.read = rights&rightRead != 0 || !f.write
	look := in.Root.Lstat
	if lookup&follow != 0 && open&openExclusive == 0 {
		look = in.Root.Stat
	}
	info, err := look(path)
	missing := errors.Is(err, fs.ErrNotExist) && open&openCreate != 0 && open&openDirectory == 0
	switch {
	case flags > 31:
		return nil, eINVAL
	case missing:
	case err != nil:
		return nil, p.fail(in, path, err)
	case open&(openCreate|openExclusive) == openCreate|openExclusive:
		return nil, eEXIST
	case info.Mode().Type() == fs.ModeSymlink:
		return nil, eLOOP
	case info.IsDir() && (f.write || open&(openCreate|openTruncate) != 0):
		return nil, eISDIR
	case !info.IsDir() && open&openDirectory != 0:
		return nil, eNOTDIR
	case !info.IsDir() && !info.Mode().IsRegular():
		return nil, ePERM
	}
	changes := missing || f.write || open&openTruncate != 0
	if changes && !in.Write {
		return nil, p.readOnly(in)
	}
	if !p.room() {
		return nil, p.refuse(eMFILE, job.KindLimit, "over the limit of %d open at once (limits.files)", p.Files.Open)
	}
	if !missing && info.IsDir() {
		f.read, f.write = false, false
		return f, eOK
	}
	if p.acted = p.acted || changes; missing {
		if e := p.charge(newEntry); e != eOK {
			return nil, e
		}
	}
	how := os.O_RDONLY | noBlock
	switch {
	case f.read && (f.write || open&openTruncate != 0):
		how |= os.O_RDWR
	case f.write:
		how |= os.O_WRONLY
	}
	for _, x := range []struct {
		set bool
		is  int
	}{{open&openCreate != 0 && in.Write, os.O_CREATE}, {open&openExclusive != 0, os.O_EXCL}, {open&openTruncate != 0, os.O_TRUNC}, {flags&flagAppend != 0, os.O_APPEND}} {
		if x.set {
			how |= x.is
		}
	}
	if f.file, err = in.Root.OpenFile(path, how, 0o666); err != nil {
		return nil, p.fail(in, path, err)
	}
	// Another process may have put something else there meanwhile.
	if info, err = f.file.Stat(); err != nil || !info.Mode().IsRegular() {
		f.close()
		return nil, ePERM
	}
	f.size = info.Size()
	return f, eOK
}

// readAt reads into the guest's buffers; n counts also when e says that something went wrong.
func (d *descriptor) readAt(ctx context.Context, p *Process, v vectors, at int64) (n int64, e errno) {
	p.drew = true
	switch {
	case d.file == nil:
		return 0, eISDIR
	case !d.read:
		return 0, eBADF
	}
	for ctx.Err() == nil {
		b, more, ok := v.next()
		if !ok {
			return n, eFAULT
		}
		if !more {
			break
		}
		k, err := d.file.ReadAt(b, at+n)
		if n += int64(k); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return n, p.fail(d.in, d.path, err)
		}
	}
	return n, eOK
}

// writeAt writes the guest's buffers, as far as it may; n counts also when e says that something went wrong.
func (d *descriptor) writeAt(ctx context.Context, p *Process, v vectors, at int64) (n int64, e errno) {
	p.acted = true
	switch {
	case d.file == nil:
		return 0, eISDIR
	case !d.write:
		return 0, eBADF
	}
	appends := d.flags&flagAppend != 0
	for ctx.Err() == nil {
		b, more, ok := v.next()
		if !ok {
			return n, eFAULT
		}
		if !more {
			break
		}
		if at > math.MaxInt64-n-int64(len(b)) {
			return n, eFBIG
		}
		cost := int64(len(b))
		if hole := at + n - d.size; !appends && hole > 0 && len(b) > 0 {
			cost += hole
		}
		if e := p.charge(cost); e != eOK {
			return n, e
		}
		var k int
		var err error
		if appends {
			k, err = d.file.Write(b)
		} else {
			k, err = d.file.WriteAt(b, at+n)
		}
		n += int64(k)
		d.size = max(d.size, at+n)
		if err != nil {
			return n, p.fail(d.in, d.path, err)
		}
	}
	return n, p.fine()
}

// transfer answers a read or write of a file: what was moved at at, or else why not. A guest that was given some is told of the
// mistake by its next call.
func transfer(m api.Memory, iovs, count, result uint64, move func(v vectors) (int64, errno)) errno {
	v, ok := vectorsAt(m, iovs, count)
	if !ok {
		return eFAULT
	}
	n, e := move(v)
	if n == 0 && e != eOK {
		return e
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], uint32(n))
	if !m.Write(uint32(result), b[:]) {
		return eFAULT
	}
	return eOK
}
