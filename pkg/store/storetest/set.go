package storetest

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

func members(t testing.TB, s store.Store, r store.Range) []store.Member {
	t.Helper()
	m, err := s.Range(t.Context(), r)
	if err != nil {
		t.Fatalf("Range: %v", err)
	}
	return m
}

func wantMembers(t testing.TB, s store.Store, r store.Range, want ...store.Member) {
	t.Helper()
	if got := members(t, s, r); !slices.Equal(got, want) {
		t.Fatalf("range %+v has %v, want %v", r, got, want)
	}
}

func all(set string) store.Range {
	return store.Range{Set: set, Min: math.MinInt64, Max: math.MaxInt64}
}

var setCases = []testCase{
	{name: "members are ordered by score, then by name", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		wantMembers(t, s, all("p/s"))
		done(t, s, store.Txn{Then: []store.Op{
			store.Add("p/s", "b", 2), store.Add("p/s", "a", 2), store.Add("p/s", "z", -1), store.Add("p/s", "ab", 2),
			store.Add("p/s", "\xff", 2), store.Add("p/s", "A", 2), store.Add("p/s", "m", 0),
		}})
		want := []store.Member{{Name: "z", Score: -1}, {Name: "m"}, {Name: "A", Score: 2}, {Name: "a", Score: 2}, {Name: "ab", Score: 2}, {Name: "b", Score: 2}, {Name: "\xff", Score: 2}}
		wantMembers(t, s, all("p/s"), want...)
		down := all("p/s")
		down.Reverse = true
		slices.Reverse(want)
		wantMembers(t, s, down, want...)
	}},
	{name: "extreme and neighbouring scores", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		scores := []int64{math.MinInt64, math.MinInt64 + 1, -1 << 53, -1<<53 + 1, -1, 0, 1, 1<<53 - 1, 1 << 53, 1<<53 + 1, math.MaxInt64 - 1, math.MaxInt64}
		var ops []store.Op
		var want []store.Member
		for i, v := range scores {
			ops = append(ops, store.Add("p/s", "m", v))
			ops[i].Member = fmt.Sprintf("m%02d", len(scores)-i)
			want = append(want, store.Member{Name: ops[i].Member, Score: v})
		}
		done(t, s, store.Txn{Then: ops})
		wantMembers(t, s, all("p/s"), want...)
		for i, v := range scores {
			wantMembers(t, s, store.Range{Set: "p/s", Min: v, Max: v}, want[i])
			wantMembers(t, s, store.Range{Set: "p/s", Min: v, Max: math.MaxInt64}, want[i:]...)
			down := slices.Clone(want[:i+1])
			slices.Reverse(down)
			wantMembers(t, s, store.Range{Set: "p/s", Min: math.MinInt64, Max: v, Reverse: true}, down...)
		}
		wantMembers(t, s, store.Range{Set: "p/s", Min: 5, Max: -5})
	}},
	{name: "a member is moved and removed", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		done(t, s, store.Txn{Then: []store.Op{store.Add("p/s", "a", 1), store.Add("p/s", "b", 2)}})
		done(t, s, store.Txn{Then: []store.Op{store.Add("p/s", "a", 3)}})
		wantMembers(t, s, all("p/s"), store.Member{Name: "b", Score: 2}, store.Member{Name: "a", Score: 3})
		done(t, s, store.Txn{Then: []store.Op{store.Add("p/s", "a", 3)}})
		wantMembers(t, s, all("p/s"), store.Member{Name: "b", Score: 2}, store.Member{Name: "a", Score: 3})
		done(t, s, store.Txn{Then: []store.Op{store.Remove("p/s", "b"), store.Remove("p/s", "never there")}})
		wantMembers(t, s, all("p/s"), store.Member{Name: "a", Score: 3})
		done(t, s, store.Txn{Then: []store.Op{store.Remove("p/s", "a")}})
		wantMembers(t, s, all("p/s"))
		done(t, s, store.Txn{Then: []store.Op{store.Add("p/s", "a", -3)}})
		wantMembers(t, s, all("p/s"), store.Member{Name: "a", Score: -3})
	}},
	{name: "After pages through equal scores", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		var want []store.Member
		for i := range 60 {
			want = append(want, store.Member{Name: fmt.Sprintf("m%02d", i), Score: int64(i / 20)})
		}
		var ops []store.Op
		for _, m := range want {
			ops = append(ops, store.Add("p/s", m.Name, m.Score))
		}
		done(t, s, store.Txn{Then: ops})
		for _, reverse := range []bool{false, true} {
			r := all("p/s")
			r.Reverse, r.Limit = reverse, 7
			var got []store.Member
			for {
				page := members(t, s, r)
				if len(page) > 7 {
					t.Fatalf("page of %d, want 7 at most", len(page))
				}
				if len(page) == 0 {
					break
				}
				got = append(got, page...)
				last := page[len(page)-1]
				r.After = last.Name
				if reverse {
					r.Max = last.Score
				} else {
					r.Min = last.Score
				}
			}
			if reverse {
				slices.Reverse(got)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("reverse %v: pages have %v, want %v", reverse, got, want)
			}
		}
		// After need not be there any more.
		wantMembers(t, s, store.Range{Set: "p/s", Min: 2, Max: 2, After: "m58x"}, want[59])
	}},
	{name: "a range is limited", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		const n = 1200
		for at := 0; at < n; at += 300 {
			var ops []store.Op
			for i := at; i < at+300; i++ {
				ops = append(ops, store.Add("p/s", fmt.Sprintf("m%04d", i), int64(i)))
			}
			done(t, s, store.Txn{Then: ops})
		}
		if m := members(t, s, all("p/s")); len(m) != 1000 || m[999].Score != 999 {
			t.Fatalf("%d members without a limit, want the first 1000", len(m))
		}
		r := all("p/s")
		r.Limit = n + 5
		if m := members(t, s, r); len(m) != n {
			t.Fatalf("%d members, want %d", len(m), n)
		}
		r.Limit = 1
		wantMembers(t, s, r, store.Member{Name: "m0000"})
	}},
	{name: "sets change together with keys", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		x := store.Txn{
			If: []store.Cond{{Key: "p/job"}},
			Then: []store.Op{
				store.Put("p/job", []byte("running"), 0), store.Add("p/by-state", "job", 1), store.Remove("p/due", "job"), store.Add("p/all", "job", 1),
			},
		}
		done(t, s, store.Txn{Then: []store.Op{store.Add("p/due", "job", 99)}})
		rev := done(t, s, x)
		wantMembers(t, s, all("p/by-state"), store.Member{Name: "job", Score: 1})
		wantMembers(t, s, all("p/due"))
		x.Then = []store.Op{store.Add("p/by-state", "job", 2), store.Add("p/due", "job", 5)}
		refused(t, s, x)
		wantMembers(t, s, all("p/by-state"), store.Member{Name: "job", Score: 1})
		wantMembers(t, s, all("p/due"))
		x.If[0].Revision = rev
		done(t, s, x)
		wantMembers(t, s, all("p/by-state"), store.Member{Name: "job", Score: 2})
		wantMembers(t, s, all("p/due"), store.Member{Name: "job", Score: 5})
	}},
	{name: "what was written is in the range at once", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		stores := []store.Store{s}
		if h.Reopen != nil {
			stores = append(stores, h.Reopen(t, s))
		}
		for i := range 40 {
			w, r := stores[i%len(stores)], stores[(i+1)%len(stores)]
			done(t, w, store.Txn{Then: []store.Op{store.Add("p/s", "m", int64(i))}})
			wantMembers(t, r, all("p/s"), store.Member{Name: "m", Score: int64(i)})
			done(t, w, store.Txn{Then: []store.Op{store.Remove("p/s", "m")}})
			wantMembers(t, r, all("p/s"))
		}
	}},
}
