package host

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// The arena does what a map of bytes by address would do.
func TestArena(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		var a arena
		model := map[uint64][]byte{}
		var all []uint64
		for range 1500 {
			at := uint64(0)
			if len(all) > 0 {
				at = all[r.IntN(len(all))]
			}
			switch r.IntN(4) {
			case 0:
				b := bytes.Repeat([]byte{byte(len(all)) | 1}, 1+r.IntN(40))
				at = a.add(b)
				if _, there := model[at]; there || at < arenaStart || at%8 != 0 {
					t.Fatalf("seed %d: a block at %d", seed, at)
				}
				model[at] = b
				all = append(all, at)
			case 1:
				a.free(at)
				if len(all) > 0 {
					model[at] = nil
				}
			case 2:
				if got, want := a.start(at), model[at]; !bytes.Equal(got, want) {
					t.Fatalf("seed %d: at %d there is %v, want %v", seed, at, got, want)
				}
			case 3:
				i := uint64(r.IntN(48))
				want := model[at]
				if i < uint64(len(want)) {
					want = want[i:]
				} else if i > 0 { // the gap, or the next block
					continue
				}
				if got := a.from(at + i); !bytes.Equal(got, want) {
					t.Fatalf("seed %d: from %d on there is %v, want %v", seed, at+i, got, want)
				}
			}
			var taken, live int64
			for _, b := range model {
				if b != nil {
					taken += cost(len(b))
					live++
				}
			}
			if a.bytes != taken {
				t.Fatalf("seed %d: %d bytes, want %d", seed, a.bytes, taken)
			}
			if n := int64(len(a.blocks)); n > 2*live+34 {
				t.Fatalf("seed %d: %d blocks are kept for %d", seed, n, live)
			}
		}
	}
}

// What is before, between and behind blocks is nowhere.
func TestArenaGaps(t *testing.T) {
	t.Parallel()
	var a arena
	if a.from(0) != nil || a.from(arenaStart) != nil || a.start(1<<64-1) != nil {
		t.Error("an empty arena has something")
	}
	first := a.add([]byte("12345678"))
	second := a.add([]byte("x"))
	for at, want := range map[uint64]int{0: 0, first - 1: 0, first: 8, first + 7: 1, first + 8: 0, second - 1: 0, second: 1, second + 1: 0, 1 << 63: 0, 1<<64 - 1: 0} {
		if got := len(a.from(at)); got != want {
			t.Errorf("from %d on there are %d bytes, want %d", at, got, want)
		}
	}
}
