package rewrite_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

func uvarint(n int) []byte                { return binary.AppendUvarint(nil, uint64(n)) }
func times(n int, code ...byte) []byte    { return bytes.Repeat(code, n) }
func entries(n int, one ...byte) [][]byte { return slices.Repeat([][]byte{one}, n) }

// each is what code makes of 0, 1, … n-1.
func each(n int, code func(i int) []byte) (out []byte) {
	for i := range n {
		out = append(out, code(i)...)
	}
	return out
}

func op(code byte, index int) []byte { return binary.AppendUvarint([]byte{code}, uint64(index)) }

// What would take a compiler much longer than a module has bytes is refused, with the function, the place and the bound.
func TestBounds(t *testing.T) {
	t.Parallel()
	locals := func(n int) []byte { return slices.Concat([]byte{1}, uvarint(n), []byte{0x7f}) }
	set := func(n int) []byte {
		return each(n, func(i int) []byte { return append([]byte{0x41, 1}, op(0x21, i)...) })
	}
	get := func(n int) []byte { return each(n, func(i int) []byte { return append(op(0x20, i), 0x1a) }) }
	code := func(locals []byte, code ...[]byte) []byte {
		return build(section(1, void), section(3, []byte{0}), page, section(7, name("f", 0, 0)), section(10, body(locals, slices.Concat(code...)...)))
	}
	typed := func(typ []byte, code ...[]byte) []byte { // type 0 is the function's
		return build(section(1, void, typ), section(3, []byte{0}), section(7, name("f", 0, 0)), section(10, body(nil, slices.Concat(code...)...)))
	}
	wide := func(n int) []byte {
		i32s := times(n, 0x7f)
		return slices.Concat([]byte{0x60}, uvarint(n), i32s, uvarint(n), i32s)
	}
	for _, tc := range []struct {
		name string
		make func(n int) []byte
		n    int // still taken
		what string
		fn   int
	}{
		{"locals", func(n int) []byte { return code(locals(n)) }, 50_000, "at most 50000", 0},
		{"code", func(n int) []byte { return code(nil, times(n, 1)) }, 4<<20 - 2, "at most 4194304", 0},
		{"nested blocks", func(n int) []byte { return code(nil, times(n, 2, 0x40), times(n, 0x0b)) }, 23_998, "24000 basic blocks", 0},
		{"blocks", func(n int) []byte { return code(nil, times(n, 2, 0x40, 0x0b)) }, 23_998, "24000 basic blocks", 0},
		{"nested loops", func(n int) []byte { return code(nil, times(n, 3, 0x40), times(n, 0x0b)) }, 5_999, "24000 basic blocks", 0},
		{"ifs", func(n int) []byte { return code(nil, times(n, 0x41, 0, 4, 0x40, 0x0b)) }, 7_900, "24000 basic blocks", 0},
		{"branches", func(n int) []byte { return code(nil, times(n, 0x41, 0, 0x0d, 0)) }, 23_860, "24000 basic blocks", 0},
		{"copies", func(n int) []byte { return code(nil, times(n, 0x41, 0, 0x41, 0, 0x41, 0, 0xfc, 10, 0, 0)) }, 3_950, "24000 basic blocks", 0},
		{"br_table", func(n int) []byte { return code(nil, []byte{0x41, 0, 0x0e}, uvarint(n-1), times(n, 0)) }, 32_768, "32768 targets of br_table", 0},
		{"br_tables", func(n int) []byte { return code(nil, times(n/4, 2, 0x40, 0x41, 0, 0x0e, 3, 0, 0, 0, 0, 0x0b)) }, 32_768, "32768 targets of br_table", 0},
		{"block parameters", func(n int) []byte {
			return typed(wide(100), times(100, 0x41, 0), times(n, 2, 1, 0x0b), times(100, 0x1a))
		}, 250, "50000 values that blocks and branches carry", 0},
		{"branches with values", func(n int) []byte {
			return typed(wide(100), times(100, 0x41, 0), []byte{2, 1}, times(n, 0x41, 0, 0x0d, 0), []byte{0x0b}, times(100, 0x1a))
		}, 498, "50000 values that blocks and branches carry", 0},
		{"br_table with values", func(n int) []byte {
			return typed(wide(100), times(100, 0x41, 0), []byte{2, 1, 0x41, 0, 0x0e}, uvarint(n-1), times(n, 0), []byte{0x0b}, times(100, 0x1a))
		}, 498, "50000 values that blocks and branches carry", 0},
		{"calls", func(n int) []byte { return code(nil, times(n, 0x10, 0)) }, 50_000, "100000 calls with their parameters and results", 0},
		{"indirect calls with parameters", func(n int) []byte {
			return build(section(1, void, wide(499)), section(3, []byte{0}), table8, section(7, name("f", 0, 0)),
				section(10, body(nil, slices.Concat(times(499, 0x41, 0), times(n, 0x41, 0, 0x11, 1, 0), times(499, 0x1a))...)))
		}, 100, "100000 calls with their parameters and results", 0},
		{"globals that calls change", func(n int) []byte {
			return build(section(1, void), section(3, []byte{0}), section(6, entries(1000, 0x7f, 1, 0x41, 0, 0x0b)...), section(7, name("f", 0, 0)),
				section(10, body(nil, times(n, 0x10, 0)...)))
		}, 2_000, "2000000 mutable globals", 0},
		{"operands below blocks", func(n int) []byte {
			return code(nil, times(n, 0x41, 0), times(1000, 2, 0x40, 0x0b), times(n, 0x1a))
		}, 1000, "1000000 operands below basic blocks", 0},
		{"locals read behind ifs", func(n int) []byte {
			return code(locals(1000), set(1000), times(n, 0x41, 0, 4, 0x40, 0x0b), get(1000))
		}, 700, "700000 places where ways meet", 0},
		{"locals read behind loops", func(n int) []byte {
			return code(locals(1000), set(1000), times(n, 3, 0x40, 0x0b), get(1000))
		}, 700, "700000 places where ways meet", 0},
		{"locals read in loops", func(n int) []byte {
			return code(locals(100), set(100), times(n, 3, 0x40), get(100), times(n, 0x0b))
		}, 150, "15000 loops, counted once per local", 0},
		{"types", func(n int) []byte { return build(section(1, entries(n, void...)...)) }, 50_000, "at most 50000", -1},
		{"parameters", func(n int) []byte {
			return build(section(1, slices.Concat([]byte{0x60}, uvarint(n), times(n, 0x7f), []byte{0})))
		}, 1000, "at most 1000", -1},
		{"results", func(n int) []byte {
			return build(section(1, slices.Concat([]byte{0x60, 0}, uvarint(n), times(n, 0x7f))))
		}, 1000, "at most 1000", -1},
		{"wide types", func(n int) []byte { return build(section(1, entries(n, wide(1000)...)...)) }, 500, "more than 1000000 parameters and results", -1},
		{"functions", func(n int) []byte {
			return build(section(1, void), section(3, entries(n, 0)...), section(10, entries(n, 2, 0, 0x0b)...))
		}, 200_000, "at most 200000", -1},
		{"functions and globals", func(n int) []byte {
			return build(section(1, void), section(3, entries(n, 0)...), section(6, entries(99_999, 0x7f, 0, 0x41, 0, 0x0b)...), section(10, entries(n, 2, 0, 0x0b)...))
		}, 2000, "1 types and 99999 globals", -1},
		{"imports", func(n int) []byte { return build(section(1, void), section(2, entries(n, 0, 0, 0, 0)...)) }, 100_000, "at most 100000", -1},
		{"exports", func(n int) []byte {
			return build(section(6, []byte{0x7f, 0, 0x41, 0, 0x0b}), section(7, entries(n, 0, 3, 0)...))
		}, 100_000, "at most 100000", -1},
		{"globals", func(n int) []byte { return build(section(6, entries(n, 0x7f, 0, 0x41, 0, 0x0b)...)) }, 100_000, "at most 100000", -1},
		{"element segments", func(n int) []byte { return build(section(9, entries(n, 1, 0, 0)...)) }, 100_000, "at most 100000", -1},
		{"elements", func(n int) []byte {
			return build(section(1, void), section(3, []byte{0}), section(9, slices.Concat([]byte{1, 0}, uvarint(n/2), times(n/2, 0)), slices.Concat([]byte{1, 0}, uvarint(n-n/2), times(n-n/2, 0))), section(10, body(nil)))
		}, 1_000_000, "more than 1000000 elements", -1},
		{"custom sections", func(n int) []byte { return build(times(n, 0, 2, 1, 'x')) }, 10_000, "more than 10000 custom sections", -1},
		{"data segments", func(n int) []byte { return build(section(11, entries(n, 1, 0)...)) }, 100_000, "at most 100000", -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if _, err := rewrite.Rewrite(tc.make(tc.n), rewrite.Options{}); err != nil {
				t.Errorf("%d: %v", tc.n, err)
			}
			_, err := rewrite.Rewrite(tc.make(tc.n+tc.n/50+1), rewrite.Options{})
			var e *rewrite.Error
			if !errors.As(err, &e) || !errors.Is(err, rewrite.ErrLimit) || !strings.Contains(err.Error(), tc.what) || e.Func != tc.fn {
				t.Fatalf("%d more: got %v", tc.n/50+1, err)
			}
			if tc.fn == 0 && !strings.Contains(err.Error(), fmt.Sprintf("function 0 (f), offset 0x%x", e.Offset)) {
				t.Errorf("got %v", err)
			}
		})
	}
}
