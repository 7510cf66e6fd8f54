package natskv

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

// all is the keys as a map.
func (ks *keyset) all() map[string]item {
	out := maps.Clone(ks.others)
	if out == nil {
		out = make(map[string]item)
	}
	for h, sl := range ks.slots {
		b, _ := ks.chunks[sl.chunk].name(int(sl.offset))
		if ks.sum(string(b)) == h {
			out[string(b)] = sl.item
		}
	}
	return out
}

// A set of keys does what a map does, also where keys have the same hash, and gives memory back.
func TestKeyset(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		sum  func(string) uint64
		keys int
	}{{"hashed", nil, 20_000}, {"few hashes", func(s string) uint64 { return uint64(s[len(s)-1] % 8) }, 200}, {"one hash", func(string) uint64 { return 1 }, 50}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ks, want := newKeyset(), make(map[string]item)
			if c.sum != nil {
				ks.sum = c.sum
			}
			rnd := rand.New(rand.NewPCG(1, 2))
			check := func() {
				t.Helper()
				if got := ks.all(); !maps.Equal(got, want) || ks.len() != len(want) {
					t.Fatalf("%d keys, want %d", len(got), len(want))
				}
			}
			for round := range 4 {
				for i := range 5 * c.keys {
					key := fmt.Sprintf("some/key/with/a/long/name/%d", rnd.IntN(c.keys))
					if rnd.IntN(3) == round%3 {
						ks.drop(key)
						delete(want, key)
						continue
					}
					it := item{revision: int64(i), seq: uint64(round)}
					h := ks.put(key, it)
					want[key] = it
					found := false
					ks.each(h, func(name string, got item) { found = found || name == key && got == it })
					if got, ok := ks.find(key); !found || !ok || got != it {
						t.Fatalf("%s is %+v, %v, by its hash %v; want %+v", key, got, ok, found, it)
					}
				}
				check()
			}
			for key := range maps.Clone(want) {
				if len(want) <= 10 {
					break
				}
				ks.drop(key)
				delete(want, key)
			}
			check()
			if len(ks.chunks) > 11 {
				t.Errorf("%d chunks for ten names", len(ks.chunks))
			}
		})
	}
}

// Names that come and go leave nothing behind, whether they go before the chunk that they are in is full or later.
func TestKeysetOfShortLives(t *testing.T) {
	t.Parallel()
	for _, at := range []int{1, 10, 2000} {
		ks := newKeyset()
		ks.put("stays", item{})
		name := func(i int) string { return fmt.Sprintf("some/key/with/a/long/name/%d", i) }
		for i := range 50_000 {
			ks.put(name(i), item{})
			ks.drop(name(i - at + 1))
		}
		if _, ok := ks.find("stays"); !ok || ks.len() != at {
			t.Errorf("%d keys, want %d", ks.len(), at)
		}
		if n := len(ks.chunks); n > 8 {
			t.Errorf("%d keys at a time are in %d chunks", at, n)
		}
	}
}
