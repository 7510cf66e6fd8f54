package runtime

import (
	"bytes"
	"errors"
	"fmt"
)

// maxTable is the largest table that a module may begin with, in elements: tables live outside of the memory limit.
const maxTable = 1 << 20

// inspect says what is wrong with bytes that cannot be a module, in words that help, and refuses what would take too much
// memory before wazero is asked. It reads the sections' outlines and leaves the rest to the compiler. It returns whether the
// module has a memory of its own.
func inspect(b []byte, pages uint32) (memory bool, err error) {
	if len(b) > MaxModuleSize {
		return false, fmt.Errorf("it has %s; the most is %s", size(int64(len(b))), size(MaxModuleSize))
	}
	if len(b) == 0 {
		return false, errors.New("it is empty")
	}
	if !bytes.HasPrefix(b, []byte("\x00asm")) {
		return false, notWasm(b)
	}
	if len(b) < 8 {
		return false, errors.New("it is cut off after the first bytes")
	}
	switch v := b[4:8]; {
	case bytes.Equal(v, []byte{1, 0, 0, 0}):
	case v[2] == 1:
		return false, errors.New("it is a WebAssembly component; components are not supported: build a core module (Rust: target wasm32-wasip1, Go: GOOS=wasip1)")
	default:
		return false, fmt.Errorf("invalid version header % x; want 01 00 00 00", v)
	}
	r := reader{b: b[8:]}
	for len(r.b) > 0 {
		id := r.byte()
		body := reader{b: r.take(r.u32())}
		if r.bad {
			return false, errors.New("it is cut off or corrupt: a section is longer than the file")
		}
		switch id {
		case 4:
			for range body.u32() {
				body.byte() // the kind of reference
				if least, _, _ := body.limits(); !body.bad && least > maxTable {
					return false, fmt.Errorf("it begins with a table of %d elements; the most is %d", least, maxTable)
				}
				if body.bad {
					break
				}
			}
		case 5:
			if body.u32() == 0 {
				continue
			}
			memory = true
			if least, _, _ := body.limits(); !body.bad && least > uint64(pages) {
				return false, fmt.Errorf("it needs %s of memory to begin with; its limit is %s: raise limits.memory", size(int64(least)*pageSize), size(int64(pages)*pageSize))
			}
		}
	}
	return memory, nil
}

// notWasm guesses what was given instead of a module.
func notWasm(b []byte) error {
	t := bytes.TrimSpace(b)
	switch {
	case bytes.HasPrefix(t, []byte("(module")) || bytes.HasPrefix(t, []byte(";;")) || bytes.HasPrefix(t, []byte("(component")):
		return errors.New("it is WebAssembly text; translate it first: wat2wasm file.wat -o file.wasm")
	case bytes.HasPrefix(b, []byte("\x7fELF")):
		return errors.New("it is a native program (ELF); build it for WebAssembly (Go: GOOS=wasip1 GOARCH=wasm)")
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		return errors.New("it is compressed with gzip; unpack it first")
	case bytes.HasPrefix(b, []byte("version https://git-lfs")):
		return errors.New("it is a Git LFS pointer; fetch the file itself: git lfs pull")
	}
	return fmt.Errorf("invalid magic number % x: it is no WebAssembly module", b[:min(4, len(b))])
}

// reader reads the binary format. After a mistake bad is set and everything reads as zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	x := r.b[0]
	r.b = r.b[1:]
	return x
}

func (r *reader) take(n uint32) []byte {
	if uint64(n) > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	x := r.b[:n]
	r.b = r.b[n:]
	return x
}

// u32 reads an unsigned LEB128 number.
func (r *reader) u32() uint32 {
	n := r.u64()
	if n > 1<<32-1 {
		r.bad = true
		return 0
	}
	return uint32(n)
}

func (r *reader) u64() uint64 {
	var n uint64
	for shift := 0; shift < 64; shift += 7 {
		x := r.byte()
		n |= uint64(x&0x7f) << shift
		if x < 0x80 {
			return n
		}
	}
	r.bad = true
	return 0
}

// limits reads the least and, where there is one, the most size of a table or memory.
func (r *reader) limits() (least, most uint64, bounded bool) {
	flags := r.byte()
	least = r.u64()
	if bounded = flags&1 != 0; bounded {
		most = r.u64()
	}
	return least, most, bounded
}
