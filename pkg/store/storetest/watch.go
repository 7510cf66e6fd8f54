package storetest

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

func watch(t testing.TB, s store.Store, prefix string) store.Watcher {
	t.Helper()
	w, err := s.Watch(t.Context(), prefix)
	if err != nil {
		t.Fatalf("Watch(%q): %v", prefix, err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func next(t testing.TB, w store.Watcher) store.Change {
	t.Helper()
	select {
	case c, ok := <-w.Changes():
		if !ok {
			t.Fatal("Changes was closed")
		}
		return c
	case <-time.After(wait):
		t.Fatal("no change came")
	}
	return store.Change{}
}

// wantPut takes the next change, which has to be a put.
func wantPut(t testing.TB, w store.Watcher, key, value string, rev int64) {
	t.Helper()
	c := next(t, w)
	if c.Resync || c.Deleted || c.KV.Key != key || string(c.KV.Value) != value || c.KV.Revision != rev {
		t.Fatalf("change %s, want put of %q = %q at revision %d", showChange(c), key, value, rev)
	}
	if c.KV.Modified.IsZero() {
		t.Fatalf("change %s has no Modified", showChange(c))
	}
}

func wantGone(t testing.TB, w store.Watcher, key string, after int64) {
	t.Helper()
	c := next(t, w)
	if !c.Deleted || c.KV.Key != key || len(c.KV.Value) != 0 || c.KV.Revision <= after {
		t.Fatalf("change %s, want deletion of %q after revision %d", showChange(c), key, after)
	}
}

func showChange(c store.Change) string {
	switch {
	case c.Resync:
		return "resync"
	case c.Deleted:
		return fmt.Sprintf("deletion of %q at revision %d", c.KV.Key, c.KV.Revision)
	}
	return fmt.Sprintf("put of %q = %s at revision %d", c.KV.Key, short(string(c.KV.Value)), c.KV.Revision)
}

var watchCases = []testCase{
	{name: "changes come in order from the moment of the watch", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/before", "1")
		w := watch(t, s, "p/")
		put(t, s, "q/a", "another partition")
		for i := range 100 {
			k, v := "p/"+strconv.Itoa(i%3), strconv.Itoa(i)
			wantPut(t, w, k, v, put(t, s, k, v))
		}
		rev := done(t, s, store.Txn{Then: []store.Op{store.Delete("p/0")}})
		wantGone(t, w, "p/0", rev-1)
		put(t, s, "p/0", "again")
		if c := next(t, w); c.Deleted || c.KV.Key != "p/0" {
			t.Fatalf("change %s, want put of p/0", showChange(c))
		}
	}},
	{name: "a transaction's changes are all seen", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/c", "1")
		w := watch(t, s, "p/")
		rev := done(t, s, store.Txn{Then: []store.Op{store.Put("p/a", []byte("1"), 0), store.Add("p/s", "m", 1), store.Put("p/b", []byte("1"), 0), store.Delete("p/c")}})
		got := map[string]store.Change{}
		for range 3 {
			c := next(t, w)
			got[c.KV.Key] = c
		}
		for _, k := range []string{"p/a", "p/b"} {
			if c := got[k]; c.Deleted || c.KV.Revision != rev || string(c.KV.Value) != "1" {
				t.Fatalf("change %s, want put of %s at revision %d", showChange(c), k, rev)
			}
		}
		if c := got["p/c"]; !c.Deleted {
			t.Fatalf("change %s, want deletion of p/c", showChange(c))
		}
	}},
	{name: "only the prefix is seen", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		w := watch(t, s, "p/jobs/1")
		put(t, s, "p/jobs/2", "no")
		put(t, s, "p/job", "no")
		put(t, s, "pp/jobs/1", "no")
		wantPut(t, w, "p/jobs/1", "yes", put(t, s, "p/jobs/1", "yes"))
		put(t, s, "p/other", "no")
		wantPut(t, w, "p/jobs/10", "yes", put(t, s, "p/jobs/10", "yes"))
	}},
	{name: "names of any bytes are seen", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		w := watch(t, s, "a }b{\xff/")
		for _, n := range awkward {
			k := "a }b{\xff/" + n
			wantPut(t, w, k, n, put(t, s, k, n))
		}
	}},
	{name: "a refused transaction is not seen", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/a", "1")
		w := watch(t, s, "p/")
		refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("2"), 0), store.Put("p/b", nil, 0)}})
		wantPut(t, w, "p/a", "3", put(t, s, "p/a", "3"))
	}},
	{name: "expiry is seen", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		// Long enough for a busy machine to begin to watch meanwhile.
		ttl := max(2*h.TTL, 3*time.Second)
		before := done(t, s, store.Txn{Then: []store.Op{store.Put("p/before", []byte("1"), ttl)}})
		w := watch(t, s, "p/")
		rev := done(t, s, store.Txn{Then: []store.Op{store.Put("p/after", []byte("1"), ttl+h.TTL)}})
		wantPut(t, w, "p/after", "1", rev)
		wantGone(t, w, "p/before", before)
		wantGone(t, w, "p/after", rev)
		wantAbsent(t, s, "p/after")
	}},
	{name: "several watchers", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		a, b, q := watch(t, s, "p/"), watch(t, s, "p/x"), watch(t, s, "q/")
		rev := put(t, s, "p/x", "1")
		wantPut(t, a, "p/x", "1", rev)
		wantPut(t, b, "p/x", "1", rev)
		if err := a.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Fatalf("Close again: %v", err)
		}
		for range a.Changes() {
			t.Fatal("a closed watcher has a change")
		}
		wantPut(t, b, "p/x", "2", put(t, s, "p/x", "2"))
		wantPut(t, q, "q/x", "3", put(t, s, "q/x", "3"))
		// After all of a partition's watchers have gone, a new one works.
		_ = b.Close()
		b = watch(t, s, "p/")
		wantPut(t, b, "p/x", "4", put(t, s, "p/x", "4"))
	}},
	{name: "another process's changes are seen", applies: func(h Harness) bool { return h.Reopen != nil }, run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		w := watch(t, s, "p/")
		other := h.Reopen(t, s)
		for i := range 20 {
			v := strconv.Itoa(i)
			wantPut(t, w, "p/a", v, put(t, other, "p/a", v))
		}
	}},
	{name: "a slow watcher is told to look again and holds up nobody", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		slow, quick := watch(t, s, "p/"), watch(t, s, "p/")
		const n = 1500
		for i := range n {
			v := strconv.Itoa(i)
			wantPut(t, quick, "p/a", v, put(t, s, "p/a", v))
		}
		resync := false
		for !resync {
			resync = next(t, slow).Resync
		}
		// From here on the slow one is told everything again.
		rev := put(t, s, "p/end", "end")
		for {
			c := next(t, slow)
			if !c.Resync && c.KV.Key == "p/end" && c.KV.Revision == rev {
				return
			}
		}
	}},
	{name: "a cut connection leads to a resync", applies: func(h Harness) bool { return h.Cut != nil }, run: func(t *testing.T, h Harness) {
		s, proxy := h.Cut(t)
		w := watch(t, s, "p/")
		wantPut(t, w, "p/a", "1", put(t, s, "p/a", "1"))
		proxy.Cut()
		proxy.Restore()
		for !next(t, w).Resync {
		}
		var rev int64
		eventually(t, "a write after the cut", func() bool {
			r, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put("p/a", []byte("2"), 0)}})
			rev = r.Revision
			return err == nil
		})
		for {
			if c := next(t, w); !c.Resync && c.KV.Revision == rev {
				return
			}
		}
	}},
}
