// Package rewritetest makes modules for tests of what runs them.
package rewritetest

import (
	"encoding/binary"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

// generator makes valid modules; the bytes that it is given are its decisions. The modules need not terminate.
type generator struct {
	in     []byte
	mild   bool // see GenerateMild
	out    []byte
	labels [][]rewrite.ValueType // what a branch to each open label takes, the outermost first
	self   signature
}

type signature struct{ params, results []rewrite.ValueType }

const (
	i32  = rewrite.I32
	i64  = rewrite.I64
	f64  = rewrite.F64
	v128 = rewrite.V128
)

// generated are the types and, one of each, the functions of a generated module.
func generated() []signature {
	return []signature{
		{nil, nil},
		{[]rewrite.ValueType{i32}, []rewrite.ValueType{i32}},
		{[]rewrite.ValueType{i64, i32}, []rewrite.ValueType{i64}},
		{[]rewrite.ValueType{i32}, []rewrite.ValueType{i32, i64}},
		{[]rewrite.ValueType{f64}, []rewrite.ValueType{f64}},
		{[]rewrite.ValueType{i32}, []rewrite.ValueType{f64, i32, v128}},
	}
}

// Each function has these locals behind its parameters, two of each type.
func localTypes() []rewrite.ValueType {
	return []rewrite.ValueType{i32, i32, i64, i64, f64, f64, v128, v128}
}

// Generate returns a valid module; the bytes that it is given are the decisions. It imports env.h(i32) i32 and exports functions f0,
// f1, …, which need not return, and a memory m.
func Generate(in []byte) []byte { return generate(&generator{in: in}) }

// GenerateMild is Generate for a module that changes no table and drops no segment, so that it can be reset.
func GenerateMild(in []byte) []byte { return generate(&generator{in: in, mild: true}) }

func generate(g *generator) []byte {
	wasm := []byte("\x00asm\x01\x00\x00\x00")
	section := func(id byte, body []byte) {
		wasm = append(binary.AppendUvarint(append(wasm, id), uint64(len(body))), body...)
	}
	sigs := generated()
	types := []byte{byte(len(sigs))}
	funcs := []byte{byte(len(sigs))}
	exports := []byte{byte(len(sigs) + 1)}
	elems := []byte{1, 0, 0x41, 0, 0x0b, byte(len(sigs))}
	code := []byte{byte(len(sigs))}
	for i, s := range sigs {
		types = append(types, 0x60, byte(len(s.params)))
		for _, t := range s.params {
			types = append(types, byte(t))
		}
		types = append(types, byte(len(s.results)))
		for _, t := range s.results {
			types = append(types, byte(t))
		}
		funcs = append(funcs, byte(i))
		exports = append(exports, 2, 'f', byte('0'+i), 0, byte(i+1))
		elems = append(elems, byte(i+1))
		body := g.function(s)
		code = append(binary.AppendUvarint(code, uint64(len(body))), body...)
	}
	section(1, types)
	section(2, []byte{1, 3, 'e', 'n', 'v', 1, 'h', 0, 1})
	section(3, funcs)
	section(4, []byte{1, 0x70, 1, 8, 16})
	section(5, []byte{1, 1, 1, 4})
	section(6, []byte{2, byte(i32), 1, 0x41, 3, 0x0b, byte(i64), 1, 0x42, 5, 0x0b})
	section(7, append(exports, 1, 'm', 2, 0))
	if g.pick(4) == 0 {
		section(8, []byte{1})
	}
	section(9, elems)
	section(12, []byte{2})
	section(10, code)
	section(11, append([]byte{2, 0, 0x41, 8, 0x0b, 4, 1, 2, 3, 4, 1, 8}, "passive!"...))
	return wasm
}

func (g *generator) pick(n int) int {
	if len(g.in) == 0 {
		return 0
	}
	c := g.in[0]
	g.in = g.in[1:]
	return int(c) % n
}

func (g *generator) emit(b ...byte)   { g.out = append(g.out, b...) }
func (g *generator) u(op byte, n int) { g.out = binary.AppendUvarint(append(g.out, op), uint64(n)) }

func (g *generator) function(s signature) []byte {
	g.self, g.labels = s, [][]rewrite.ValueType{s.results}
	g.out = []byte{4, 2, byte(i32), 2, byte(i64), 2, byte(f64), 2, byte(v128)}
	for range 1 + g.pick(6) {
		g.stmt(4)
	}
	g.values(s.results, 4)
	g.emit(0x0b)
	return g.out
}

func (g *generator) values(types []rewrite.ValueType, depth int) {
	for _, t := range types {
		g.expr(t, depth)
	}
}

// local returns a local of a type.
func (g *generator) local(t rewrite.ValueType) int {
	var of []int
	for i, l := range append(g.self.params[:len(g.self.params):len(g.self.params)], localTypes()...) {
		if l == t {
			of = append(of, i)
		}
	}
	return of[g.pick(len(of))]
}

// block opens a block, writes what is in it and closes it.
func (g *generator) block(op byte, result byte, takes []rewrite.ValueType, inside func()) {
	g.emit(op, result)
	g.labels = append(g.labels, takes)
	inside()
	g.labels = g.labels[:len(g.labels)-1]
	g.emit(0x0b)
}

func (g *generator) stmt(depth int) {
	if depth == 0 {
		g.emit(0x01)
		return
	}
	choice := g.pick(18)
	if g.mild && (choice == 12 || choice == 13 || choice == 15) {
		choice = 3
	}
	switch choice {
	case 0:
		t := localTypes()[g.pick(8)]
		g.expr(t, depth-1)
		g.u(0x21, g.local(t))
	case 1:
		g.expr(i32, depth-1)
		g.u(0x24, 0)
	case 2:
		g.expr(i64, depth-1)
		g.u(0x24, 1)
	case 3: // store
		g.expr(i32, depth-1)
		g.expr(i64, depth-1)
		g.emit(0x37, 0, byte(g.pick(64)))
	case 4:
		g.expr(i32, depth-1)
		g.block(0x04, 0x40, nil, func() {
			g.stmt(depth - 1)
			if g.pick(2) == 0 {
				g.emit(0x05)
				g.stmt(depth - 1)
			}
		})
	case 5:
		g.block(0x02, 0x40, nil, func() {
			for range g.pick(4) {
				g.stmt(depth - 1)
			}
		})
	case 6: // a loop while an expression holds
		g.block(0x03, 0x40, nil, func() {
			g.stmt(depth - 1)
			g.expr(i32, depth-1)
			g.emit(0x0d, 0)
			g.stmt(depth - 1)
		})
	case 7: // a loop of so many turns
		l := g.local(i32)
		g.block(0x03, 0x40, nil, func() {
			g.stmt(depth - 1)
			g.u(0x20, l)
			g.emit(0x41, 1, 0x6b)
			g.u(0x22, l)
			g.emit(0x41, 7, 0x71, 0x0d, 0)
		})
	case 8:
		label := g.pick(len(g.labels))
		takes := g.labels[len(g.labels)-1-label]
		g.values(takes, depth-1)
		g.expr(i32, depth-1)
		g.u(0x0d, label)
		for range takes {
			g.emit(0x1a)
		}
	case 9: // leave, inside of an if
		g.expr(i32, depth-1)
		g.block(0x04, 0x40, nil, func() {
			switch label := g.pick(len(g.labels)); g.pick(4) {
			case 0:
				g.values(g.labels[len(g.labels)-1-label], depth-1)
				g.u(0x0c, label)
			case 1:
				g.values(g.self.results, depth-1)
				g.emit(0x0f)
			case 2:
				g.emit(0x00)
			default:
				g.expr(i32, depth-1)
				g.emit(0x0e, 1, 0, 0)
			}
			if g.pick(2) == 0 {
				g.stmt(depth - 1) // cannot be reached
			}
		})
	case 10: // a table of branches
		g.block(0x02, 0x40, nil, func() {
			g.block(0x02, 0x40, nil, func() {
				g.expr(i32, depth-1)
				g.emit(0x0e, 2, 0, 1, 0)
			})
			g.stmt(depth - 1)
		})
	case 11: // fill, copy, init
		for range 2 {
			g.expr(i32, depth-1)
		}
		g.emit(0x41, byte(g.pick(64)))
		g.emit([][]byte{{0xfc, 11, 0}, {0xfc, 10, 0, 0}, {0xfc, 8, 1, 0}}[g.pick(3)]...)
	case 12:
		g.expr(i32, depth-1)
		g.expr(i32, depth-1)
		g.expr(i32, depth-1)
		g.emit([][]byte{{0xfc, 12, 0, 0}, {0xfc, 14, 0, 0}}[g.pick(2)]...)
	case 13:
		g.expr(i32, depth-1)
		g.emit(0xd2, byte(1+g.pick(len(generated()))), 0x26, 0)
	case 14:
		i := g.pick(len(generated()))
		s := generated()[i]
		g.values(s.params, depth-1)
		g.u(0x10, i+1)
		for range s.results {
			g.emit(0x1a)
		}
	case 15:
		g.emit(0xfc, 9, 1) // data.drop
	case 16:
		g.expr(i32, depth-1)
		g.expr(v128, depth-1)
		g.emit(0xfd, 11, 0, 0)
	default:
		g.expr([]rewrite.ValueType{i32, i64, f64, v128}[g.pick(4)], depth-1)
		g.emit(0x1a)
	}
}

func (g *generator) expr(t rewrite.ValueType, depth int) {
	choice := 0
	if depth > 0 {
		choice = g.pick(9)
	}
	switch choice {
	case 0:
		switch t {
		case i32:
			g.emit(0x41, byte(g.pick(128)))
		case i64:
			g.emit(0x42, byte(g.pick(128)))
		case f64:
			g.out = binary.LittleEndian.AppendUint64(append(g.out, 0x44), uint64(g.pick(256))<<52)
		default:
			g.emit(0xfd, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, byte(g.pick(256)))
		}
	case 1:
		g.u(0x20, g.local(t))
	case 2:
		g.expr(t, depth-1)
		g.u(0x22, g.local(t))
	case 3: // binary
		g.expr(t, depth-1)
		g.expr(t, depth-1)
		switch t {
		case i32:
			g.emit(byte(0x6a + g.pick(15)))
		case i64:
			g.emit(byte(0x7c + g.pick(15)))
		case f64:
			g.emit(byte(0xa0 + g.pick(4)))
		default:
			g.emit(0xfd, []byte{0x0e, 0x23, 0x4e, 0x51, 0x6e}[g.pick(5)])
			if g.out[len(g.out)-1] >= 0x80 {
				g.emit(1)
			}
		}
	case 4:
		g.block(0x02, byte(t), []rewrite.ValueType{t}, func() {
			if g.pick(2) == 0 {
				g.stmt(depth - 1)
			}
			g.expr(t, depth-1)
		})
	case 5:
		g.expr(i32, depth-1)
		g.block(0x04, byte(t), []rewrite.ValueType{t}, func() {
			g.expr(t, depth-1)
			g.emit(0x05)
			g.expr(t, depth-1)
		})
	case 6:
		g.expr(t, depth-1)
		g.expr(t, depth-1)
		g.expr(i32, depth-1)
		g.emit(0x1c, 1, byte(t))
	case 7: // calls
		switch t {
		case i32:
			g.expr(i32, depth-1)
			g.emit([][]byte{{0x10, 0}, {0x10, 2}, {0x41, 1, 0x11, 1, 0}, {0x41, 5, 0x11, 1, 0}}[g.pick(4)]...)
		case i64:
			g.expr(i64, depth-1)
			g.expr(i32, depth-1)
			g.emit(0x10, 3)
		case f64:
			g.expr(f64, depth-1)
			g.emit(0x10, 5)
		default:
			g.expr(i32, depth-1)
			g.emit(0xfd, 0x11)
		}
	default:
		switch t {
		case i32:
			switch g.pick(6) {
			case 0:
				g.emit(0x3f, 0)
			case 1:
				g.expr(i32, depth-1)
				g.emit(0x40, 0)
			case 2:
				g.expr(i64, depth-1)
				g.emit(0xa7)
			case 3:
				if g.mild {
					g.emit(0xfc, 16, 0) // table.size
					break
				}
				g.emit(0xd0, 0x70)
				g.expr(i32, depth-1)
				g.emit(0xfc, 15, 0)
			case 4:
				g.expr(i32, depth-1)
				g.emit(0x28, 0, 0)
			default:
				g.u(0x23, 0)
			}
		case i64:
			g.u(0x23, 1)
		case f64:
			g.expr(i64, depth-1)
			g.emit(0xb9)
		default:
			g.expr(i32, depth-1)
			g.emit(0xfd, 0, 0, 0)
		}
	}
}

// Seed returns the i-th of any number of inputs for Generate, the same each time.
func Seed(i int) []byte {
	seed := make([]byte, 300)
	x := uint32(i*2654435761 + 1)
	for k := range seed {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		seed[k] = byte(x >> 8)
	}
	return seed
}
