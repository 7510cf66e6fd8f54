package ordered

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// The set agrees with a sorted slice after every kind of change.
func TestAgainstSortedSlice(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	var s Set
	model := map[string]int64{}
	scores := []int64{math.MinInt64, -5, 0, 1, 2, 3, math.MaxInt64}
	for range 6000 {
		name := strconv.Itoa(rnd.IntN(2500))
		if rnd.IntN(4) == 0 {
			_, had := model[name]
			if s.Remove(name) != had {
				t.Fatalf("Remove(%q) = %v, want %v", name, !had, had)
			}
			delete(model, name)
		} else {
			score := scores[rnd.IntN(len(scores))]
			s.Add(name, score)
			model[name] = score
		}
	}
	if s.Len() != len(model) {
		t.Fatalf("Len = %d, want %d", s.Len(), len(model))
	}
	var all []store.Member
	for n, v := range model {
		all = append(all, store.Member{Name: n, Score: v})
	}
	slices.SortFunc(all, compare)
	if got := s.Range(store.Range{Min: math.MinInt64, Max: math.MaxInt64}, len(all)+1); !slices.Equal(got, all) {
		t.Fatalf("ascending: %d members, want %d in order", len(got), len(all))
	}
	down := slices.Clone(all)
	slices.Reverse(down)
	if got := s.Range(store.Range{Min: math.MinInt64, Max: math.MaxInt64, Reverse: true}, len(all)+1); !slices.Equal(got, down) {
		t.Fatalf("descending: %d members, want %d in order", len(got), len(all))
	}
	for range 300 {
		from := rnd.IntN(len(all))
		to := min(from+rnd.IntN(700), len(all)-1)
		limit := 1 + rnd.IntN(800)
		got := s.Range(store.Range{Min: all[from].Score, After: all[from].Name, Max: all[to].Score}, limit)
		var want []store.Member
		for _, m := range all[from+1:] {
			if m.Score <= all[to].Score && len(want) < limit {
				want = append(want, m)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("page after %v to score %d: %d members, want %d", all[from], all[to].Score, len(got), len(want))
		}
		got = s.Range(store.Range{Min: all[from].Score, After: all[to].Name, Max: all[to].Score, Reverse: true}, limit)
		want = nil
		for _, m := range slices.Backward(all[:to]) {
			if m.Score >= all[from].Score && len(want) < limit {
				want = append(want, m)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("page down from %v to score %d: %d members, want %d", all[to], all[from].Score, len(got), len(want))
		}
	}
}
