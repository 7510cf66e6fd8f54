package runtime

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds on tables, which live outside of the memory limit at eight bytes an element.
const (
	maxTables    = 16
	maxElements  = 1 << 20 // of all tables together to begin with
	maxTableGrow = 1 << 16 // to which a table may grow that began smaller
)

// inspect says what is wrong with bytes that cannot be a module, in words that help, and refuses what would take too much
// memory before wazero is asked. It reads the sections' outlines and leaves the rest to the compiler. It returns the module
// with bounds on its tables, and whether it has a memory of its own.
func inspect(b []byte, pages uint32) (bounded []byte, memory bool, err error) {
	if len(b) > MaxModuleSize {
		return nil, false, fmt.Errorf("it has %s; the most is %s", size(int64(len(b))), size(MaxModuleSize))
	}
	if len(b) == 0 {
		return nil, false, errors.New("it is empty")
	}
	if !bytes.HasPrefix(b, []byte("\x00asm")) {
		return nil, false, notWasm(b)
	}
	if len(b) < 8 {
		return nil, false, errors.New("it is cut off after the first bytes")
	}
	switch v := b[4:8]; {
	case bytes.Equal(v, []byte{1, 0, 0, 0}):
	case v[2] == 1:
		return nil, false, errors.New("it is a WebAssembly component; components are not supported: build a core module (Rust: target wasm32-wasip1, Go: GOOS=wasip1)")
	default:
		return nil, false, fmt.Errorf("invalid version header % x; want 01 00 00 00", v)
	}
	r := reader{b: b[8:]}
	done := 0 // up to where b is in bounded
	for len(r.b) > 0 {
		at := len(b) - len(r.b)
		id := r.byte()
		body := reader{b: r.take(r.u32())}
		if r.bad {
			return nil, false, errors.New("it is cut off or corrupt: a section is longer than the file")
		}
		switch id {
		case sectionImport:
			if what := otherImport(body); what != "" {
				return nil, false, fmt.Errorf("it imports %s; only functions can be given: build it so that it has its own", what)
			}
		case sectionTable:
			tables, err := boundTables(body)
			if err != nil {
				return nil, false, err
			}
			bounded = appendSection(append(bounded, b[done:at]...), id, tables)
			done = len(b) - len(r.b)
		case sectionMemory:
			if body.u32() == 0 {
				continue
			}
			memory = true
			if least, _, _ := body.limits(); !body.bad && least > uint64(pages) {
				return nil, false, fmt.Errorf("it needs %s of memory to begin with; its limit is %s: raise limits.memory", size(int64(least)*pageSize), size(int64(pages)*pageSize))
			}
		}
	}
	if done == 0 {
		return b, memory, nil
	}
	return append(bounded, b[done:]...), memory, nil
}

// Sections that inspect looks into.
const (
	sectionImport = 2
	sectionTable  = 4
	sectionMemory = 5
)

// otherImport names the first thing in an import section that is no function; "" when there is none.
func otherImport(body reader) string {
	for range body.u32() {
		module, name := string(body.take(body.u32())), string(body.take(body.u32()))
		kind := body.byte()
		if body.bad {
			return ""
		}
		switch kind {
		case 0:
			body.u32() // its type
		case 1, 2, 3, 4:
			return fmt.Sprintf("the %s %.100q.%.100q", [...]string{"", "table", "memory", "global", "tag"}[kind], module, name)
		default:
			return "" // for the compiler to refuse
		}
	}
	return ""
}

// boundTables returns a table section's body in which every table has a most size. What it cannot read it returns as it is,
// for the compiler to refuse.
func boundTables(body reader) ([]byte, error) {
	whole := body.b
	n := body.u32()
	if n > maxTables {
		return nil, fmt.Errorf("it has %d tables; the most is %d", n, maxTables)
	}
	out := binary.AppendUvarint(nil, uint64(n))
	var total uint64
	for range n {
		kind := body.byte()
		least, most, bounded := body.limits()
		if body.bad {
			return whole, nil
		}
		if total += least; total > maxElements {
			return nil, fmt.Errorf("it begins with tables of %d elements; the most is %d", total, maxElements)
		}
		if grown := max(least, maxTableGrow); !bounded || most > grown {
			most = grown
		}
		out = append(out, kind, 1)
		out = binary.AppendUvarint(binary.AppendUvarint(out, least), most)
	}
	if len(body.b) > 0 {
		return whole, nil
	}
	return out, nil
}

func appendSection(b []byte, id byte, body []byte) []byte {
	return append(binary.AppendUvarint(append(b, id), uint64(len(body))), body...)
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
