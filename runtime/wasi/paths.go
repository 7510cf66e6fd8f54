package wasi

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"time"

	"github.com/tetratelabs/wazero/api"
)

// Types of files.
const (
	typeUnknown   = 0
	typeBlock     = 1
	typeCharacter = 2
	typeDirectory = 3
	typeRegular   = 4
	typeSymlink   = 7
)

func typeOf(m fs.FileMode) byte {
	switch t := m.Type(); {
	case t == 0:
		return typeRegular
	case t == fs.ModeDir:
		return typeDirectory
	case t == fs.ModeSymlink:
		return typeSymlink
	case t&fs.ModeCharDevice != 0:
		return typeCharacter
	case t == fs.ModeDevice:
		return typeBlock
	}
	return typeUnknown
}

// writeStat writes a filestat.
func writeStat(m api.Memory, ptr uint64, info fs.FileInfo) errno {
	b, ok := m.Read(uint32(ptr), 64)
	if !ok {
		return eFAULT
	}
	clear(b)
	device, inode, links := identity(info)
	binary.LittleEndian.PutUint64(b, device)
	binary.LittleEndian.PutUint64(b[8:], inode)
	b[16] = typeOf(info.Mode())
	binary.LittleEndian.PutUint64(b[24:], links)
	binary.LittleEndian.PutUint64(b[32:], uint64(info.Size()))
	for _, at := range []int{40, 48, 56} { // read, modified and changed; the first and the last are not told
		binary.LittleEndian.PutUint64(b[at:], uint64(info.ModTime().UnixNano()))
	}
	return eOK
}

// stat looks at an open file or directory.
func (d *descriptor) stat() (fs.FileInfo, error) {
	if d.file != nil {
		return d.file.Stat()
	}
	return d.in.Root.Stat(d.path)
}

func (p *Process) fileStat(d *descriptor, m api.Memory, ptr uint64) errno {
	p.drew = true
	info, err := d.stat()
	if err != nil {
		return p.fail(d.in, d.path, err)
	}
	return writeStat(m, ptr, info)
}

// pathStatGet is path_filestat_get(fd, lookup, path, plen, result).
func pathStatGet(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	p.drew = true
	path, e := p.resolve(d, m, stack[2], stack[3])
	if e != eOK {
		return e
	}
	look := d.in.Root.Lstat
	if stack[1]&follow != 0 {
		look = d.in.Root.Stat
	}
	info, err := look(path)
	if err != nil {
		return p.fail(d.in, path, err)
	}
	return writeStat(m, stack[4], info)
}

// change resolves a path below d for something that changes what is there.
func (p *Process) change(d *descriptor, m api.Memory, ptr, n uint64) (string, errno) {
	p.acted = true
	path, e := p.resolve(d, m, ptr, n)
	if e == eOK && !d.in.Write {
		e = p.readOnly(d.in)
	}
	return path, e
}

// done is the end of something that changed what is at path.
func (p *Process) done(in *Preopen, path string, err error) errno {
	if err != nil {
		return p.fail(in, path, err)
	}
	return p.fine()
}

// pathCreateDirectory is path_create_directory(fd, path, plen).
func pathCreateDirectory(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	path, e := p.change(d, m, stack[1], stack[2])
	if e == eOK {
		e = p.charge(newEntry)
	}
	if e != eOK {
		return e
	}
	return p.done(d.in, path, d.in.Root.Mkdir(path, 0o777))
}

// pathRemove is path_remove_directory and path_unlink_file, of (fd, path, plen).
func pathRemove(directory bool) func(context.Context, *Process, *descriptor, api.Memory, []uint64) errno {
	return func(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
		path, e := p.change(d, m, stack[1], stack[2])
		if e != eOK {
			return e
		}
		info, err := d.in.Root.Lstat(path)
		switch {
		case err != nil:
			return p.fail(d.in, path, err)
		case directory && !info.IsDir():
			return eNOTDIR
		case !directory && info.IsDir():
			return eISDIR
		}
		return p.done(d.in, path, d.in.Root.Remove(path))
	}
}

// second resolves the other path of a function of two, which must be below the same preopen.
func (p *Process) second(d *descriptor, m api.Memory, fd, ptr, n uint64) (string, errno) {
	to := p.at(uint32(fd))
	if to == nil {
		return "", eBADF
	}
	path, e := p.change(to, m, ptr, n)
	if e == eOK && to.in != d.in {
		e = eXDEV
	}
	return path, e
}

// pathRename is path_rename(fd, old, olen, newfd, new, nlen).
func pathRename(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	from, e := p.change(d, m, stack[1], stack[2])
	if e != eOK {
		return e
	}
	to, e := p.second(d, m, stack[3], stack[4], stack[5])
	if e != eOK {
		return e
	}
	return p.done(d.in, from, d.in.Root.Rename(from, to))
}

// pathLink is path_link(fd, lookup, old, olen, newfd, new, nlen). Only regular files get another name.
func pathLink(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	from, e := p.change(d, m, stack[2], stack[3])
	if e != eOK {
		return e
	}
	to, e := p.second(d, m, stack[4], stack[5], stack[6])
	if e != eOK {
		return e
	}
	info, err := d.in.Root.Lstat(from)
	if err == nil && !info.Mode().IsRegular() {
		return ePERM
	}
	if err == nil {
		if e := p.charge(newEntry); e != eOK {
			return e
		}
		err = d.in.Root.Link(from, to)
	}
	return p.done(d.in, from, err)
}

// pathSymlink is path_symlink(old, olen, fd, new, nlen). Guests make none: what they can't follow out of their directory
// themselves, others would that read it.
func pathSymlink(_ context.Context, p *Process, _ api.Memory, stack []uint64) errno {
	if p.at(uint32(stack[2])) == nil {
		return eBADF
	}
	return ePERM
}

// pathReadLink is path_readlink(fd, path, plen, buffer, blen, result).
func pathReadLink(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	p.drew = true
	path, e := p.resolve(d, m, stack[1], stack[2])
	if e != eOK {
		return e
	}
	target, err := d.in.Root.Readlink(path)
	if err != nil {
		return p.fail(d.in, path, err)
	}
	b, ok := m.Read(uint32(stack[3]), min(uint32(stack[4]), uint32(len(target))))
	if !ok || !m.WriteUint32Le(uint32(stack[5]), uint32(len(b))) {
		return eFAULT
	}
	copy(b, target)
	return eOK
}

// Flags of times that are to be set.
const (
	setRead     = 1 << 0
	readNow     = 1 << 1
	setModified = 1 << 2
	modifiedNow = 1 << 3
)

func (p *Process) setTimes(in *Preopen, path string, read, modified, flags uint64) errno {
	if flags > 15 || flags&(setRead|readNow) == setRead|readNow || flags&(setModified|modifiedNow) == setModified|modifiedNow {
		return eINVAL
	}
	pick := func(set, now, value uint64) time.Time {
		switch {
		case flags&now != 0:
			return time.Now()
		case flags&set != 0:
			return time.Unix(0, int64(min(value, math.MaxInt64)))
		}
		return time.Time{} // leaves it
	}
	return p.done(in, path, in.Root.Chtimes(path, pick(setRead, readNow, read), pick(setModified, modifiedNow, modified)))
}

// pathSetTimes is path_filestat_set_times(fd, lookup, path, plen, read, modified, flags).
func pathSetTimes(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	path, e := p.change(d, m, stack[2], stack[3])
	if e != eOK {
		return e
	}
	if info, err := d.in.Root.Lstat(path); err == nil && stack[1]&follow == 0 && info.Mode().Type() == fs.ModeSymlink {
		return eNOTSUP
	}
	return p.setTimes(d.in, path, stack[4], stack[5], stack[6])
}

// fdSetTimes is fd_filestat_set_times(fd, read, modified, flags).
func fdSetTimes(_ context.Context, p *Process, d *descriptor, _ api.Memory, stack []uint64) errno {
	p.acted = true
	if !d.in.Write {
		return p.readOnly(d.in)
	}
	return p.setTimes(d.in, d.path, stack[1], stack[2], stack[3])
}

// setSize makes a file n bytes large.
func (p *Process) setSize(d *descriptor, n uint64, shrink bool) errno {
	p.acted = true
	switch {
	case d.file == nil:
		return eISDIR
	case !d.write:
		return eINVAL
	case n > math.MaxInt64:
		return eFBIG
	}
	info, err := d.file.Stat()
	if err != nil {
		return p.fail(d.in, d.path, err)
	}
	more := int64(n) - info.Size()
	if more <= 0 && !shrink {
		return eOK
	}
	if e := p.charge(max(more, 0)); e != eOK {
		return e
	}
	d.size = int64(n)
	return p.done(d.in, d.path, d.file.Truncate(int64(n)))
}

// fdSetSize is fd_filestat_set_size(fd, size).
func fdSetSize(_ context.Context, p *Process, d *descriptor, _ api.Memory, stack []uint64) errno {
	return p.setSize(d, stack[1], true)
}

// fdAllocate is fd_allocate(fd, offset, length).
func fdAllocate(_ context.Context, p *Process, d *descriptor, _ api.Memory, stack []uint64) errno {
	if stack[1] > math.MaxInt64 || stack[2] > math.MaxInt64-stack[1] {
		return eFBIG
	}
	return p.setSize(d, stack[1]+stack[2], false)
}

func fdAdvise(_ context.Context, _ *Process, d *descriptor, _ api.Memory, stack []uint64) errno {
	if uint32(stack[3]) > 5 {
		return eINVAL
	}
	return eOK // and nothing is done about it
}

func fdSync(_ context.Context, p *Process, d *descriptor, _ api.Memory, _ []uint64) errno {
	if d.file == nil {
		return eOK
	}
	return p.done(d.in, d.path, d.file.Sync())
}

// fdPread is fd_pread(fd, iovs, n, offset, result).
func fdPread(ctx context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	if stack[3] > math.MaxInt64 {
		return eINVAL
	}
	return transfer(m, stack[1], stack[2], stack[4], func(v vectors) (int64, errno) { return d.readAt(ctx, p, v, int64(stack[3])) })
}

// fdPwrite is fd_pwrite(fd, iovs, n, offset, result).
func fdPwrite(ctx context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	if stack[3] > math.MaxInt64 {
		return eINVAL
	}
	return transfer(m, stack[1], stack[2], stack[4], func(v vectors) (int64, errno) { return d.writeAt(ctx, p, v, int64(stack[3])) })
}

// fdSeek is fd_seek(fd, offset, whence, result).
func fdSeek(_ context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	if d.file == nil {
		return eISDIR
	}
	base := int64(0)
	switch uint32(stack[2]) {
	case io.SeekStart:
	case io.SeekCurrent:
		base = d.offset
	case io.SeekEnd:
		p.drew = true
		info, err := d.file.Stat()
		if err != nil {
			return p.fail(d.in, d.path, err)
		}
		base = info.Size()
	default:
		return eINVAL
	}
	by := int64(stack[1])
	if by > 0 && base > math.MaxInt64-by || base+by < 0 {
		return eINVAL
	}
	if !m.WriteUint64Le(uint32(stack[3]), uint64(base+by)) {
		return eFAULT
	}
	d.offset = base + by
	return eOK
}

// fdTell is fd_tell(fd, result).
func fdTell(_ context.Context, _ *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	if d.file == nil {
		return eISDIR
	}
	if !m.WriteUint64Le(uint32(stack[1]), uint64(d.offset)) {
		return eFAULT
	}
	return eOK
}

// fdRenumber is fd_renumber(from, to).
func fdRenumber(_ context.Context, p *Process, d *descriptor, _ api.Memory, stack []uint64) errno {
	from, to := uint32(stack[0]), uint32(stack[1])
	old := p.at(to)
	switch {
	case p.open(to):
		return eNOTSUP
	case old == nil:
		return eBADF
	case from == to:
		return eOK
	}
	old.close()
	p.files[to-firstFile], p.files[from-firstFile] = d, nil
	return eOK
}

// prestatGet is fd_prestat_get(fd, result).
func prestatGet(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	d := p.at(uint32(stack[0]))
	if d == nil || !d.preopen {
		return eBADF
	}
	if !m.WriteUint64Le(uint32(stack[1]), uint64(len(d.in.Name))<<32) { // its tag, a directory, is 0
		return eFAULT
	}
	return eOK
}

// prestatName is fd_prestat_dir_name(fd, buffer, blen).
func prestatName(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	d := p.at(uint32(stack[0]))
	switch {
	case d == nil || !d.preopen:
		return eBADF
	case uint32(stack[2]) < uint32(len(d.in.Name)):
		return eNAMETOOLONG
	case !m.WriteString(uint32(stack[1]), d.in.Name):
		return eFAULT
	}
	return eOK
}

// listing is how far a directory was read.
type listing struct {
	dir   *os.File
	batch []fs.DirEntry
	first uint64 // number of the first entry of batch
}

func (l *listing) close() {
	if l.dir != nil {
		_ = l.dir.Close()
	}
	*l = listing{}
}

// entries is how many entries of a directory are held at once.
const entries = 128

// entry returns the n-th entry of a directory, nil behind the last one.
func (d *descriptor) entry(n uint64) (fs.DirEntry, error) {
	l := &d.list
	if l.dir == nil || n < l.first { // from its beginning, also for those who read it again
		l.close()
		dir, err := d.in.Root.OpenFile(d.path, os.O_RDONLY|noBlock, 0)
		if err != nil {
			return nil, err
		}
		l.dir = dir
	}
	for n >= l.first+uint64(len(l.batch)) {
		batch, err := l.dir.ReadDir(entries)
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		l.first, l.batch = l.first+uint64(len(l.batch)), batch
	}
	return l.batch[n-l.first], nil
}

// fdReadDir is fd_readdir(fd, buffer, blen, cookie, result). A cookie is the number of an entry; . and .. come first.
func fdReadDir(ctx context.Context, p *Process, d *descriptor, m api.Memory, stack []uint64) errno {
	p.drew = true
	if d.file != nil {
		return eNOTDIR
	}
	b, ok := m.Read(uint32(stack[1]), uint32(stack[2]))
	if !ok {
		return eFAULT
	}
	cookie := stack[3]
	if cookie == 0 {
		d.list.close()
	}
	used := 0
	for ; used < len(b) && ctx.Err() == nil; cookie++ {
		name, kind, inode := ".", byte(typeDirectory), uint64(0)
		switch cookie {
		case 0:
		case 1:
			name = ".."
		default:
			e, err := d.entry(cookie - 2)
			if err != nil {
				return p.fail(d.in, d.path, err)
			}
			if e == nil {
				return end(m, stack[4], used)
			}
			name, kind = e.Name(), typeOf(e.Type())
			if info, err := d.in.Root.Lstat(d.path + "/" + name); err == nil {
				_, inode, _ = identity(info)
				kind = typeOf(info.Mode())
			}
		}
		head := make([]byte, 24, 24+len(name))
		binary.LittleEndian.PutUint64(head, cookie+1)
		binary.LittleEndian.PutUint64(head[8:], inode)
		binary.LittleEndian.PutUint32(head[16:], uint32(len(name)))
		head[20] = kind
		used += copy(b[used:], append(head, name...)) // the last may be cut off, which says that there is more
	}
	return end(m, stack[4], used)
}

func end(m api.Memory, ptr uint64, n int) errno {
	if !m.WriteUint32Le(uint32(ptr), uint32(n)) {
		return eFAULT
	}
	return eOK
}
