package rewrite_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

// movers is a module with 6 MiB of memory, a segment of 2.5 MiB and functions that fill, copy and init. With blocks they have so many that
// fuel is kept in a local.
func movers(blocks int) []byte {
	segment := make([]byte, 5<<19)
	for i := range segment {
		segment[i] = byte(i>>12 ^ i)
	}
	typ := []byte{0x60, 3, 0x7f, 0x7f, 0x7f, 0}
	does := func(op ...byte) []byte {
		return body(nil, slices.Concat(times(blocks, 0x41, 0, 0x04, 0x40, 0x0b), []byte{0x20, 0, 0x20, 1, 0x20, 2}, op)...)
	}
	return build(section(1, typ), section(3, []byte{0}, []byte{0}, []byte{0}), section(5, []byte{0, 96}),
		section(7, name("fill", 0, 0), name("copy", 0, 1), name("init", 0, 2), name("m", 2, 0)), section(12, []byte{1}),
		section(10, does(0xfc, 11, 0), does(0xfc, 10, 0, 0), does(0xfc, 8, 0, 0)),
		section(11, slices.Concat([]byte{1}, uvarint(len(segment)), segment)))
}

// Instructions that write much of memory do what they did, cost what they cost, and the host is asked again and again whether they may go on.
func TestMoves(t *testing.T) {
	t.Parallel()
	const mib, all = 1 << 20, 6 << 20
	for _, tc := range []struct {
		name, function string
		to, from, n    uint64
		asked          int64 // at least
	}{
		{"init", "init", 12345, 77, 5<<19 - 77, 3},
		{"init no more than a piece", "init", 0, 0, mib, 0},
		{"init beyond the segment", "init", 0, 77, 5 << 19, 0},
		{"init beyond memory", "init", all - mib, 0, mib + 1, 0},
		{"fill all", "fill", 0, 0xab, all, 6},
		{"fill a little", "fill", 17, 0xab, 99, 0},
		{"fill beyond memory", "fill", 1, 0xab, all, 0},
		{"fill to where 32 bits end", "fill", 1 << 31, 0xab, 1<<31 + 1, 0},
		{"copy up", "copy", 1000, 0, 5 * mib, 5},
		{"copy up by more than a piece", "copy", 3 * mib, mib, 3 * mib, 3},
		{"copy down", "copy", 0, 1000, 5*mib + 77, 6},
		{"copy to itself", "copy", 5, 5, 2*mib + 1, 3},
		{"copy nothing", "copy", all, all, 0, 0},
		{"copy from beyond memory", "copy", 0, 2*mib + 1, 4 * mib, 0},
		{"copy to beyond memory", "copy", 2*mib + 1, 0, 4 * mib, 0},
	} {
		for engine, cfg := range engines() {
			for _, blocks := range []int{0, 5} {
				t.Run(tc.name+"/"+engine, func(t *testing.T) {
					t.Parallel()
					wasm := movers(blocks)
					run := func(h *host) ([]byte, error) {
						m, err := h.instantiate(wasm, "")
						if err != nil {
							t.Fatal(err)
						}
						if _, err := h.call(m, "init", mib, 0, 5<<19); err != nil {
							t.Fatal(err)
						}
						if h.rw != nil {
							h.asked, h.spent = 0, 0
							counter(m, "__wasmsidecar_fuel").Set(0)
						}
						_, err = h.call(m, tc.function, tc.to, tc.from, tc.n)
						b, _ := m.Memory().Read(0, m.Memory().Size())
						return b, err
					}
					want, plain := run(newHost(t, cfg, nil))
					h := newHost(t, cfg, &rewrite.Options{})
					got, err := run(h)
					if (err != nil) != (plain != nil) || err != nil && firstLine(err) != firstLine(plain) {
						t.Errorf("got %v, plain %v", err, plain)
					}
					if !bytes.Equal(got, want) {
						t.Error("memory differs")
					}
					if err != nil {
						return
					}
					if fuel := int64(4+2*blocks) + int64(tc.n/8); h.burnt() != fuel {
						t.Errorf("burnt %d, want %d", h.burnt(), fuel)
					}
					if h.asked < tc.asked || tc.asked == 0 && h.asked > 3 {
						t.Errorf("asked %d times, want %d", h.asked, tc.asked)
					}
				})
			}
		}
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
