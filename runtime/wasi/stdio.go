package wasi

import (
	"context"
	"encoding/binary"
	"io"

	"github.com/tetratelabs/wazero/api"
)

// maxVectors is how many buffers one read or write uses; the rest is left for the guest's next, as POSIX allows.
const maxVectors = 1024

// vectors returns the buffers that an array of n (pointer, length) at ptr describes.
type vectors struct {
	m    api.Memory
	list []byte
}

func vectorsAt(m api.Memory, ptr, n uint64) (vectors, bool) {
	list, ok := m.Read(uint32(ptr), 8*uint32(min(uint64(uint32(n)), maxVectors)))
	return vectors{m, list}, ok
}

// next returns the next buffer; ok is false where it is out of bounds. more is false at the end.
func (v *vectors) next() (b []byte, more, ok bool) {
	if len(v.list) == 0 {
		return nil, false, true
	}
	b, ok = v.m.Read(binary.LittleEndian.Uint32(v.list), binary.LittleEndian.Uint32(v.list[4:]))
	v.list = v.list[8:]
	return b, true, ok
}

// Read is a guest's call of fd_read.
type Read struct{ fd, iovs, n, result uint64 }

// Read serves a read that the guest waits for, and returns what fd_read returns.
func (p *Process) Read(m api.Memory, r Read) uint64 { return uint64(p.serve(m, r)) }

// fdRead is fd_read(fd, iovs, n, result).
func fdRead(ctx context.Context, p *Process, m api.Memory, stack []uint64) errno {
	r := Read{stack[0], stack[1], stack[2], stack[3]}
	if fd := uint32(r.fd); !p.open(fd) {
		d := p.at(fd)
		if d == nil {
			return eBADF
		}
		return transfer(m, r.iovs, r.n, r.result, func(v vectors) (int64, errno) {
			n, e := d.readAt(ctx, p, v, d.offset)
			d.offset += n
			return n, e
		})
	}
	if before := p.BeforeRead; before != nil && uint32(r.fd) == 0 {
		p.BeforeRead = nil
		before(ctx, r)
	}
	return p.serve(m, r)
}

func (p *Process) serve(m api.Memory, r Read) errno {
	if fd := uint32(r.fd); fd != 0 || !p.open(fd) {
		return eBADF
	}
	v, ok := vectorsAt(m, r.iovs, r.n)
	if !ok {
		return eFAULT
	}
	read := p.read
	for read < len(p.Stdin) {
		b, more, ok := v.next()
		if !ok {
			return eFAULT
		}
		if !more {
			break
		}
		read += copy(b, p.Stdin[read:])
	}
	if !m.WriteUint32Le(uint32(r.result), uint32(read-p.read)) {
		return eFAULT
	}
	p.read = read
	return eOK
}

// fdWrite is fd_write(fd, iovs, n, result).
func fdWrite(ctx context.Context, p *Process, m api.Memory, stack []uint64) errno {
	p.acted = true
	fd := uint32(stack[0])
	if d := p.at(fd); d != nil {
		return transfer(m, stack[1], stack[2], stack[3], func(v vectors) (int64, errno) {
			n, e := d.writeAt(ctx, p, v, d.offset)
			d.offset += n
			return n, e
		})
	}
	if fd == 0 || !p.open(fd) {
		return eBADF
	}
	to := p.Stdout
	if fd == 2 {
		to = p.Stderr
	}
	if to == nil {
		to = io.Discard
	}
	v, ok := vectorsAt(m, stack[1], stack[2])
	if !ok {
		return eFAULT
	}
	const most = 1 << 30 // far from where the sum of the lengths would overflow
	written := 0
	for written < most {
		b, more, ok := v.next()
		if !ok {
			return eFAULT
		}
		if !more {
			break
		}
		n, err := to.Write(b)
		if written += n; err != nil {
			break // what is written is written; a guest that insists is told again
		}
	}
	if !m.WriteUint32Le(uint32(stack[3]), uint32(written)) {
		return eFAULT
	}
	return eOK
}

func fdClose(_ context.Context, p *Process, _ api.Memory, stack []uint64) errno {
	fd := uint32(stack[0])
	if d := p.at(fd); d != nil {
		d.close()
		p.files[fd-firstFile] = nil
		return eOK
	}
	if !p.open(fd) {
		return eBADF
	}
	p.state.closed[fd] = true
	return eOK
}

// Rights of the standard streams.
const (
	rightRead     = 1 << 1
	rightSetFlags = 1 << 3
	rightWrite    = 1 << 6
	rightStat     = 1 << 21
	rightPoll     = 1 << 27
	allRights     = 1<<30 - 1
)

// status writes the fdstat of a file or directory. What is refused in the end is refused by the function that would do it, with
// an answer that says why; only what a file was opened for is told here.
func (d *descriptor) status(b []byte) {
	rights := uint64(allRights)
	b[0] = typeDirectory
	if d.file != nil {
		b[0] = typeRegular
		if !d.read {
			rights &^= rightRead
		}
		if !d.write {
			rights &^= rightWrite
		}
	}
	binary.LittleEndian.PutUint16(b[2:], d.flags)
	binary.LittleEndian.PutUint64(b[8:], rights)
	binary.LittleEndian.PutUint64(b[16:], allRights)
}

// fdStatGet is fd_fdstat_get(fd, result). The type of a standard stream is unknown, which is what a pipe is to preview 1: were
// it a character device, C would take it for a terminal and write line by line.
func fdStatGet(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	fd := uint32(stack[0])
	d := p.at(fd)
	if d == nil && !p.open(fd) {
		return eBADF
	}
	b, ok := m.Read(uint32(stack[1]), 24)
	if !ok {
		return eFAULT
	}
	clear(b)
	if d != nil {
		d.status(b)
		return eOK
	}
	rights := uint64(rightSetFlags | rightStat | rightPoll)
	if fd == 0 {
		rights |= rightRead
	} else {
		rights |= rightWrite
	}
	binary.LittleEndian.PutUint16(b[2:], p.state.flags[fd])
	binary.LittleEndian.PutUint64(b[8:], rights)
	return eOK
}

// fdStatSetFlags is fd_fdstat_set_flags(fd, flags). The flags are kept and change nothing: no stream ever blocks.
func fdStatSetFlags(_ context.Context, p *Process, _ api.Memory, stack []uint64) errno {
	fd, flags := uint32(stack[0]), uint32(stack[1])
	d := p.at(fd)
	switch {
	case d != nil && flags > 31:
		return eINVAL
	case d != nil && (uint16(flags)^d.flags)&flagAppend != 0:
		return eNOTSUP // files are opened for it
	case d != nil:
		d.flags = uint16(flags)
		return eOK
	case !p.open(fd):
		return eBADF
	case flags > 31: // APPEND, DSYNC, NONBLOCK, RSYNC, SYNC
		return eINVAL
	}
	p.state.flags[fd] = uint16(flags)
	return eOK
}

// fileStatGet is fd_filestat_get(fd, result).
func fileStatGet(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	if d := p.at(uint32(stack[0])); d != nil {
		return p.fileStat(d, m, stack[1])
	}
	if !p.open(uint32(stack[0])) {
		return eBADF
	}
	b, ok := m.Read(uint32(stack[1]), 64)
	if !ok {
		return eFAULT
	}
	clear(b)
	return eOK
}
