package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// together runs f in n goroutines that begin at once, and reports the first error.
func together(t testing.TB, n int, f func(ctx context.Context, i int) error) {
	t.Helper()
	ctx, cancel := within(t)
	defer cancel()
	start := make(chan struct{})
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			errs <- f(ctx, i)
		})
	}
	close(start)
	wg.Wait()
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// increment adds one to the number at key by compare and swap.
func increment(ctx context.Context, s store.Store, key string) error {
	for {
		kv, err := store.Get(ctx, s, key)
		if err != nil {
			return err
		}
		n := 0
		if kv.Exists() {
			if n, err = strconv.Atoi(string(kv.Value)); err != nil {
				return err
			}
		}
		r, err := s.Txn(ctx, store.Txn{
			If:   []store.Cond{{Key: key, Revision: kv.Revision}},
			Then: []store.Op{store.Put(key, []byte(strconv.Itoa(n+1)), time.Hour)},
		})
		if err != nil {
			return err
		}
		if r.Done {
			return nil
		}
	}
}

var concurrentCases = []testCase{
	// D-08: one job id delivered a hundred times at once is claimed once.
	{name: "a hundred compete for a key and one wins", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		stores := []store.Store{s}
		if h.Reopen != nil {
			stores = append(stores, h.Reopen(t, s), h.Reopen(t, s))
		}
		for round := range 3 {
			key := "p/job" + strconv.Itoa(round)
			var won atomic.Int64
			together(t, 100, func(ctx context.Context, i int) error {
				mine := "worker " + strconv.Itoa(i)
				r, err := stores[i%len(stores)].Txn(ctx, store.Txn{
					If:   []store.Cond{{Key: key}},
					Then: []store.Op{store.Put(key, []byte(mine), time.Hour), store.Add("p/running", key, 1)},
					Read: []string{key},
				})
				switch {
				case err != nil:
					return err
				case r.Done && r.Read[0].Exists():
					return fmt.Errorf("%s won over %s", mine, show(r.Read[0]))
				case r.Done:
					won.Add(1)
				case !r.Read[0].Exists():
					return fmt.Errorf("%s lost to nobody", mine)
				}
				return nil
			})
			if won.Load() != 1 {
				t.Fatalf("%d winners, want 1", won.Load())
			}
		}
		if m := members(t, s, all("p/running")); len(m) != 3 {
			t.Fatalf("set has %v, want 3 members", m)
		}
	}},
	{name: "a counter by compare and swap loses nothing", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		const workers, each = 16, 15
		together(t, workers, func(ctx context.Context, _ int) error {
			for range each {
				if err := increment(ctx, s, "p/n"); err != nil {
					return err
				}
			}
			return nil
		})
		wantValue(t, s, "p/n", strconv.Itoa(workers*each))
	}},
	{name: "writers of different keys do not conflict", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		together(t, 64, func(ctx context.Context, i int) error {
			rev := int64(0)
			key := "p/" + strconv.Itoa(i)
			for n := range 20 {
				r, err := s.Txn(ctx, store.Txn{
					If:   []store.Cond{{Key: key, Revision: rev}},
					Then: []store.Op{store.Put(key, []byte(strconv.Itoa(n)), time.Hour)},
				})
				if err != nil {
					return err
				}
				if !r.Done {
					return fmt.Errorf("write %d of %s was refused although nobody else writes it", n, key)
				}
				rev = r.Revision
			}
			return nil
		})
	}},
	{name: "transfers between keys keep the sum at every moment", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		const keys, total = 4, 400
		var names []string
		var x store.Txn
		for i := range keys {
			names = append(names, "p/account"+strconv.Itoa(i))
			x.Then = append(x.Then, store.Put(names[i], []byte(strconv.Itoa(total/keys)), 0))
		}
		done(t, s, x)
		sum := func(r store.Reply) error {
			got := 0
			for _, kv := range r.Read {
				n, err := strconv.Atoi(string(kv.Value))
				if err != nil {
					return err
				}
				got += n
			}
			if got != total {
				return fmt.Errorf("sum is %d, want %d: the keys were not read at one moment", got, total)
			}
			return nil
		}
		together(t, 8, func(ctx context.Context, w int) error {
			for i := range 25 {
				r, err := s.Txn(ctx, store.Txn{Read: names})
				if err != nil {
					return err
				}
				if err := sum(r); err != nil {
					return err
				}
				from, to := r.Read[(w+i)%keys], r.Read[(w+i+1+i%(keys-1))%keys]
				a, _ := strconv.Atoi(string(from.Value))
				b, _ := strconv.Atoi(string(to.Value))
				r, err = s.Txn(ctx, store.Txn{
					If:   []store.Cond{{Key: from.Key, Revision: from.Revision}, {Key: to.Key, Revision: to.Revision}},
					Then: []store.Op{store.Put(from.Key, []byte(strconv.Itoa(a-1)), 0), store.Put(to.Key, []byte(strconv.Itoa(b+1)), 0)},
					Read: names,
				})
				if err != nil {
					return err
				}
				if err := sum(r); err != nil {
					return err
				}
			}
			return nil
		})
	}},
	{name: "a register is linearizable", run: linearizable},
}

// action is one transaction on the register, as its caller saw it.
type action struct {
	began, ended time.Duration
	saw          int64 // the revision read, or written if the swap was done
	swapped      bool
	from         int64
}

// linearizable lets many goroutines swap one key and checks what they saw. Because revisions only grow and are unique, three
// rules are enough: every swap started from a revision that no other swap started from, wrote a greater one, and nobody saw
// an older state after somebody had already been answered with a newer one.
func linearizable(t *testing.T, h Harness) {
	s := h.Open(t)
	stores := []store.Store{s}
	if h.Reopen != nil {
		stores = append(stores, h.Reopen(t, s))
	}
	var mu sync.Mutex
	var history []action
	begin := time.Now()
	together(t, 12, func(ctx context.Context, i int) error {
		s := stores[i%len(stores)]
		last := int64(0)
		for n := range 40 {
			a := action{began: time.Since(begin)}
			x := store.Txn{Read: []string{"p/r"}}
			if (n+i)%3 != 0 {
				x.If = []store.Cond{{Key: "p/r", Revision: last}}
				x.Then = []store.Op{store.Put("p/r", []byte(strconv.Itoa(i)), time.Hour)}
			}
			r, err := s.Txn(ctx, x)
			if err != nil {
				return err
			}
			a.ended = time.Since(begin)
			a.saw = r.Read[0].Revision
			if r.Done && len(x.Then) > 0 {
				a.swapped, a.from, a.saw = true, last, r.Revision
				if r.Read[0].Revision != last {
					return fmt.Errorf("swap from %d was done over %d", last, r.Read[0].Revision)
				}
			}
			last = a.saw
			mu.Lock()
			history = append(history, a)
			mu.Unlock()
		}
		return nil
	})
	from := map[int64]bool{}
	swaps := 0
	for _, a := range history {
		if !a.swapped {
			continue
		}
		swaps++
		if from[a.from] {
			t.Fatalf("two swaps were done from revision %d", a.from)
		}
		from[a.from] = true
		if a.saw <= a.from {
			t.Fatalf("swap from revision %d to %d", a.from, a.saw)
		}
	}
	if swaps == 0 {
		t.Fatal("no swap was done")
	}
	slices.SortFunc(history, func(a, b action) int { return cmp.Compare(a.began, b.began) })
	byEnd := slices.Clone(history)
	slices.SortFunc(byEnd, func(a, b action) int { return cmp.Compare(a.ended, b.ended) })
	newest, at := int64(0), 0
	for _, a := range history {
		for at < len(byEnd) && byEnd[at].ended < a.began {
			newest = max(newest, byEnd[at].saw)
			at++
		}
		if a.saw < newest {
			t.Fatalf("revision %d was seen after %d had been answered", a.saw, newest)
		}
	}
}
