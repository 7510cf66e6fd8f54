package storetest

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

var txnCases = []testCase{
	{name: "what is put is read", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		rev := put(t, s, "p/a", "one")
		kv := wantValue(t, s, "p/a", "one")
		if kv.Revision != rev {
			t.Fatalf("revision %d, want %d as the put said", kv.Revision, rev)
		}
		if kv.Modified.IsZero() {
			t.Fatal("Modified is not set")
		}
		got, err := store.Get(t.Context(), s, "p/a")
		if err != nil || got.Revision != rev {
			t.Fatalf("Get: %v, %v", got, err)
		}
	}},
	{name: "an empty value exists", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/a", "")
		wantValue(t, s, "p/a", "")
	}},
	{name: "an absent key has revision 0", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		wantAbsent(t, s, "p/a")
		if r := must(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Read: []string{"p/a"}}); !r.Done {
			t.Fatal("the condition that an absent key is absent does not hold")
		}
		refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: 1}}})
	}},
	{name: "revisions grow over all keys of a partition", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		last := int64(0)
		for i := range 50 {
			rev := put(t, s, "p/"+strconv.Itoa(i%7), "v")
			if rev <= last {
				t.Fatalf("revision %d after %d", rev, last)
			}
			last = rev
		}
	}},
	{name: "revisions are never used again after a deletion", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		last := int64(0)
		for range 10 {
			rev := done(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("v"), 0)}})
			if rev <= last {
				t.Fatalf("revision %d after %d", rev, last)
			}
			refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: last}}, Then: []store.Op{store.Put("p/a", []byte("stale"), 0)}})
			done(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: rev}}, Then: []store.Op{store.Delete("p/a")}})
			wantAbsent(t, s, "p/a")
			last = rev
		}
	}},
	{name: "a deletion's revision is no condition that holds", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/a", "v")
		w := watch(t, s, "p/")
		rev := done(t, s, store.Txn{Then: []store.Op{store.Delete("p/a")}})
		seen := next(t, w).KV.Revision
		for _, r := range []int64{rev, seen} {
			refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: r}}, Then: []store.Op{store.Put("p/a", nil, 0)}})
			refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: r}}, Then: []store.Op{store.Add("p/s", "m", 1)}})
		}
	}},
	{name: "deleting an absent key is no error", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		done(t, s, store.Txn{Then: []store.Op{store.Delete("p/a")}})
		wantAbsent(t, s, "p/a")
		done(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Delete("p/a")}})
		done(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("v"), 0)}})
		wantValue(t, s, "p/a", "v")
	}},
	{name: "a condition refuses a stale writer", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		first := put(t, s, "p/a", "one")
		second := done(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: first}}, Then: []store.Op{store.Put("p/a", []byte("two"), 0)}})
		r := refused(t, s, store.Txn{
			If:   []store.Cond{{Key: "p/a", Revision: first}},
			Then: []store.Op{store.Put("p/a", []byte("stale"), 0)},
			Read: []string{"p/a"},
		})
		if string(r.Read[0].Value) != "two" || r.Read[0].Revision != second {
			t.Fatalf("read %s, want two at revision %d", show(r.Read[0]), second)
		}
		wantValue(t, s, "p/a", "two")
		refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("stale"), 0)}})
		refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: second + 1000}}, Then: []store.Op{store.Put("p/a", []byte("stale"), 0)}})
	}},
	{name: "Read is answered as it stood before Then", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		rev := put(t, s, "p/a", "one")
		r := must(t, s, store.Txn{
			If:   []store.Cond{{Key: "p/a", Revision: rev}},
			Then: []store.Op{store.Put("p/a", []byte("two"), 0), store.Put("p/b", []byte("b"), 0)},
			Read: []string{"p/b", "p/a"},
		})
		if !r.Done || r.Read[0].Exists() || string(r.Read[1].Value) != "one" || r.Read[1].Revision != rev {
			t.Fatalf("done %v, read %s and %s; want absent and one", r.Done, show(r.Read[0]), show(r.Read[1]))
		}
		wantValue(t, s, "p/a", "two")
		r = must(t, s, store.Txn{Then: []store.Op{store.Delete("p/a")}, Read: []string{"p/a"}})
		if string(r.Read[0].Value) != "two" {
			t.Fatalf("read %s with a deletion, want two", show(r.Read[0]))
		}
	}},
	{name: "a key may be read that no condition and no operation names", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/x", "x")
		r := must(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("1"), 0)}, Read: []string{"p/x", "p/y"}})
		if !r.Done || string(r.Read[0].Value) != "x" || r.Read[1].Exists() {
			t.Fatalf("done %v, read %s and %s", r.Done, show(r.Read[0]), show(r.Read[1]))
		}
		r = refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("2"), 0)}, Read: []string{"p/x", "p/a"}})
		if string(r.Read[0].Value) != "x" || string(r.Read[1].Value) != "1" {
			t.Fatalf("read %s and %s", show(r.Read[0]), show(r.Read[1]))
		}
	}},
	{name: "conditions over several keys are all or nothing", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		a := put(t, s, "p/a", "a")
		b := put(t, s, "p/b", "b")
		then := []store.Op{
			store.Put("p/a", []byte("A"), 0), store.Put("p/c", []byte("C"), 0),
			store.Delete("p/b"), store.Add("p/set", "m", 1),
		}
		for name, cond := range map[string][]store.Cond{
			"last wrong":      {{Key: "p/a", Revision: a}, {Key: "p/b", Revision: b + 1}},
			"first wrong":     {{Key: "p/a", Revision: b}, {Key: "p/b", Revision: b}},
			"absent is there": {{Key: "p/a"}, {Key: "p/b", Revision: b}},
			"unwritten wrong": {{Key: "p/a", Revision: a}, {Key: "p/other", Revision: 7}},
			"contradiction":   {{Key: "p/a", Revision: a}, {Key: "p/a"}},
		} {
			if r := must(t, s, store.Txn{If: cond, Then: then}); r.Done {
				t.Fatalf("%s: done", name)
			}
			wantValue(t, s, "p/a", "a")
			wantValue(t, s, "p/b", "b")
			wantAbsent(t, s, "p/c")
			if m := members(t, s, store.Range{Set: "p/set", Max: 10}); len(m) != 0 {
				t.Fatalf("%s: set has %v", name, m)
			}
		}
		rev := done(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: a}, {Key: "p/b", Revision: b}, {Key: "p/other"}}, Then: then})
		if kv := wantValue(t, s, "p/a", "A"); kv.Revision != rev {
			t.Fatalf("a has revision %d, want %d", kv.Revision, rev)
		}
		if kv := wantValue(t, s, "p/c", "C"); kv.Revision != rev {
			t.Fatalf("c has revision %d, want %d: every key of a transaction has its revision", kv.Revision, rev)
		}
		wantAbsent(t, s, "p/b")
		if m := members(t, s, store.Range{Set: "p/set", Max: 10}); len(m) != 1 {
			t.Fatalf("set has %v, want m", m)
		}
		// The common revision serves as a condition for each of the keys.
		done(t, s, store.Txn{
			If:   []store.Cond{{Key: "p/c", Revision: rev}, {Key: "p/a", Revision: rev}},
			Then: []store.Op{store.Put("p/c", []byte("C2"), 0)},
		})
		done(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: rev}}, Then: []store.Op{store.Put("p/a", []byte("A2"), 0)}})
	}},
	{name: "a condition may stand on a key that is not written", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		lease := put(t, s, "p/lease", "me")
		done(t, s, store.Txn{If: []store.Cond{{Key: "p/lease", Revision: lease}}, Then: []store.Op{store.Put("p/a", []byte("1"), 0)}})
		done(t, s, store.Txn{If: []store.Cond{{Key: "p/lease", Revision: lease}}, Then: []store.Op{store.Add("p/set", "m", 1)}})
		put(t, s, "p/lease", "other")
		refused(t, s, store.Txn{If: []store.Cond{{Key: "p/lease", Revision: lease}}, Then: []store.Op{store.Put("p/a", []byte("2"), 0)}})
		refused(t, s, store.Txn{If: []store.Cond{{Key: "p/lease", Revision: lease}}, Then: []store.Op{store.Remove("p/set", "m")}})
		wantValue(t, s, "p/a", "1")
		if m := members(t, s, store.Range{Set: "p/set", Max: 10}); len(m) != 1 {
			t.Fatalf("set has %v, want m", m)
		}
	}},
	{name: "a long transaction", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		var x store.Txn
		for i := range 100 {
			k := "p/k" + strconv.Itoa(i)
			x.If = append(x.If, store.Cond{Key: k})
			x.Then = append(x.Then, store.Put(k, []byte(k), 0), store.Add("p/all", k, int64(i)))
			x.Read = append(x.Read, k)
		}
		rev := done(t, s, x)
		for _, kv := range must(t, s, store.Txn{Read: x.Read}).Read {
			if kv.Revision != rev || string(kv.Value) != kv.Key {
				t.Fatalf("key %s is %s, want revision %d", kv.Key, show(kv), rev)
			}
		}
		refused(t, s, x)
		if m := members(t, s, store.Range{Set: "p/all", Max: 1000}); len(m) != 100 {
			t.Fatalf("set has %d members, want 100", len(m))
		}
	}},
	{name: "a transaction without conditions and operations reads", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/a", "1")
		r := must(t, s, store.Txn{Read: []string{"p/a", "p/none", "p/a"}})
		if !r.Done || string(r.Read[0].Value) != "1" || r.Read[1].Exists() || string(r.Read[2].Value) != "1" {
			t.Fatalf("done %v, read %v", r.Done, r.Read)
		}
	}},
	{name: "partitions are apart", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/a", "p")
		put(t, s, "q/a", "q")
		put(t, s, "/a", "nameless")
		wantValue(t, s, "p/a", "p")
		wantValue(t, s, "q/a", "q")
		wantValue(t, s, "/a", "nameless")
		_, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("q/a", nil, 0)}})
		wantErr(t, err, store.ErrPartition)
		_, err = s.Txn(t.Context(), store.Txn{Read: []string{"p/a", "q/a"}})
		wantErr(t, err, store.ErrPartition)
		wantValue(t, s, "q/a", "q")
	}},
	{name: "mistakes are refused", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		for name, x := range map[string]store.Txn{
			"empty":             {},
			"no partition":      {Read: []string{"a"}},
			"no name":           {Read: []string{"p/"}},
			"key too long":      {Read: []string{"p/" + repeat("x", store.MaxKeyLen)}},
			"negative TTL":      {Then: []store.Op{store.Put("p/a", nil, -1)}},
			"negative revision": {If: []store.Cond{{Key: "p/a", Revision: -1}}},
			"same key twice":    {Then: []store.Op{store.Put("p/a", nil, 0), store.Delete("p/a")}},
			"nameless member":   {Then: []store.Op{store.Add("p/s", "", 1)}},
			"unknown operation": {Then: []store.Op{{Kind: 99, Key: "p/a"}}},
		} {
			if _, err := s.Txn(t.Context(), x); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("%s: error %v, want ErrInvalid", name, err)
			}
		}
		if _, err := s.Range(t.Context(), store.Range{Set: "p"}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("range without a set: error %v, want ErrInvalid", err)
		}
		if _, err := s.Watch(t.Context(), "p"); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("watch without a partition: error %v, want ErrInvalid", err)
		}
	}},
	{name: "large values", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		n := 1_000_000
		if m := s.MaxValue(); m > 0 && m < n {
			t.Fatalf("MaxValue is %d, want a megabyte at least", m)
		}
		v := bytes.Repeat([]byte("0123456789\x00\r\n\xff "), n/15)
		rev := done(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", v, time.Hour)}, Read: []string{"p/a"}})
		if kv := get(t, s, "p/a"); kv.Revision != rev || !bytes.Equal(kv.Value, v) {
			t.Fatalf("read %d bytes at revision %d, want %d at %d", len(kv.Value), kv.Revision, len(v), rev)
		}
		if m := s.MaxValue(); m > 0 && m < 64<<20 {
			done(t, s, store.Txn{Then: []store.Op{store.Put("p/"+repeat("k", store.MaxKeyLen-2), make([]byte, m), time.Hour)}})
			_, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put("p/a", make([]byte, m+1), 0)}})
			wantErr(t, err, store.ErrTooLarge)
			if kv := get(t, s, "p/a"); kv.Revision != rev {
				t.Fatalf("the refused write left revision %d, want %d", kv.Revision, rev)
			}
		}
	}},
	// leases are measured by this clock, whatever those of the processes say.
	{name: "the clock is one and goes forward", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		var last time.Time
		for i := range 50 {
			r := must(t, s, store.Txn{Then: []store.Op{store.Put("p/a", []byte(strconv.Itoa(i)), 0)}})
			if r.Now.Before(last) {
				t.Fatalf("Now went back from %v to %v", last, r.Now)
			}
			last = r.Now
			r = must(t, s, store.Txn{Read: []string{"p/a"}})
			if m := r.Read[0].Modified; m.After(r.Now) {
				t.Fatalf("Modified %v is after Now %v", m, r.Now)
			}
			if age := r.Now.Sub(r.Read[0].Modified); age > wait {
				t.Fatalf("a key just written is %v old", age)
			}
		}
	}},
	{name: "a value returned is the caller's own", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		v := []byte("value")
		done(t, s, store.Txn{Then: []store.Op{store.Put("p/a", v, 0)}})
		v[0] = 'X'
		kv := wantValue(t, s, "p/a", "value")
		kv.Value[0] = 'Y'
		wantValue(t, s, "p/a", "value")
	}},
}

var lifeCases = []testCase{
	{name: "a context that has ended", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Txn(ctx, store.Txn{Read: []string{"p/a"}})
		wantErr(t, err, context.Canceled)
		_, err = s.Range(ctx, store.Range{Set: "p/s"})
		wantErr(t, err, context.Canceled)
		_, err = s.Watch(ctx, "p/")
		wantErr(t, err, context.Canceled)
		wantErr(t, s.Ping(ctx), context.Canceled)
		put(t, s, "p/a", "still works")
	}},
	{name: "Ping", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		if err := s.Ping(t.Context()); err != nil {
			t.Fatalf("Ping: %v", err)
		}
	}},
	{name: "a closed store says so", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		put(t, s, "p/a", "1")
		w := watch(t, s, "p/")
		if err := s.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatalf("Close again: %v", err)
		}
		_, err := s.Txn(t.Context(), store.Txn{Read: []string{"p/a"}})
		wantErr(t, err, store.ErrClosed)
		_, err = s.Range(t.Context(), store.Range{Set: "p/s"})
		wantErr(t, err, store.ErrClosed)
		_, err = s.Watch(t.Context(), "p/")
		wantErr(t, err, store.ErrClosed)
		wantErr(t, s.Ping(t.Context()), store.ErrClosed)
		closed := time.After(wait)
		for {
			select {
			case _, ok := <-w.Changes():
				if !ok {
					return
				}
			case <-closed:
				t.Fatal("Changes stays open after the store was closed")
			}
		}
	}},
	{name: "another process sees the same", applies: func(h Harness) bool { return h.Reopen != nil }, run: func(t *testing.T, h Harness) {
		a := h.Open(t)
		rev := put(t, a, "p/a", "1")
		done(t, a, store.Txn{Then: []store.Op{store.Add("p/s", "m", 5)}})
		b := h.Reopen(t, a)
		if kv := wantValue(t, b, "p/a", "1"); kv.Revision != rev {
			t.Fatalf("revision %d, want %d", kv.Revision, rev)
		}
		next := done(t, b, store.Txn{If: []store.Cond{{Key: "p/a", Revision: rev}}, Then: []store.Op{
			store.Put("p/a", []byte("2"), 0), store.Add("p/s", "n", 4), store.Remove("p/s", "m"),
		}})
		if next <= rev {
			t.Fatalf("revision %d after %d", next, rev)
		}
		wantValue(t, a, "p/a", "2")
		if m := members(t, a, store.Range{Set: "p/s", Max: 10}); len(m) != 1 || m[0].Name != "n" {
			t.Fatalf("set has %v, want n", m)
		}
		refused(t, a, store.Txn{If: []store.Cond{{Key: "p/a", Revision: rev}}, Then: []store.Op{store.Put("p/a", []byte("stale"), 0)}})
		if !a.Shared() {
			t.Fatal("Shared is false")
		}
	}},
	{name: "a full store refuses and keeps what it has", applies: func(h Harness) bool { return h.Full != nil }, run: func(t *testing.T, h Harness) {
		s := h.Full(t)
		rev := put(t, s, "p/a", "kept")
		done(t, s, store.Txn{Then: []store.Op{store.Add("p/s", "m", 1)}})
		v := bytes.Repeat([]byte("x"), 200<<10)
		var err error
		n := 0
		for n = range 1000 {
			if _, err = s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put("p/fill"+strconv.Itoa(n), v, 0)}}); err != nil {
				break
			}
		}
		wantErr(t, err, store.ErrFull)
		if kv := wantValue(t, s, "p/a", "kept"); kv.Revision != rev {
			t.Fatalf("revision %d, want %d", kv.Revision, rev)
		}
		for i := range n {
			if kv := get(t, s, "p/fill"+strconv.Itoa(i)); !kv.Exists() {
				t.Fatalf("key %d of %d was given up to make room", i, n)
			}
		}
		_, err = s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put("p/x", v, 0), store.Add("p/s", "n", 1)}})
		wantErr(t, err, store.ErrFull)
		wantMembers(t, s, all("p/s"), store.Member{Name: "m", Score: 1})
		// Deleting makes room.
		var ops []store.Op
		for i := range min(n, 5) {
			ops = append(ops, store.Delete("p/fill"+strconv.Itoa(i)))
		}
		done(t, s, store.Txn{Then: ops})
		eventually(t, "room for a write", func() bool {
			_, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put("p/x", v, 0)}})
			return err == nil
		})
	}},
	{name: "a reply that was lost", applies: func(h Harness) bool { return h.Cut != nil }, run: lostReply},
}

// lostReply: a transaction whose reply is cut off may be repeated, and what it wrote can be told from another's by a nonce.
func lostReply(t *testing.T, h Harness) {
	s, proxy := h.Cut(t)
	delay, answered := 400*time.Millisecond, 0
	for i := 0; i < 5+answered; i++ {
		key := "p/" + strconv.Itoa(i)
		put(t, s, "p/warm", "up")
		// The request arrives after one delay; the reply would take another, and is cut off on its way.
		proxy.Delay(delay)
		ctx, cancel := context.WithTimeout(t.Context(), delay*3/2)
		_, err := s.Txn(ctx, store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, []byte("nonce-a"), 0)}})
		cancel()
		if err == nil {
			// A busy machine was late to give up; but not by a longer delay each time.
			if answered++; answered > 4 {
				t.Fatal("a transaction was answered although replies are lost")
			}
			delay *= 2
			proxy.Delay(0)
			continue
		}
		proxy.Cut()
		proxy.Delay(0)
		proxy.Restore()
		var r store.Reply
		eventually(t, "an answer after the cut", func() bool {
			r, err = s.Txn(t.Context(), store.Txn{
				If:   []store.Cond{{Key: key}},
				Then: []store.Op{store.Put(key, []byte("nonce-a"), 0)}, Read: []string{key},
			})
			return err == nil
		})
		if !r.Done && string(r.Read[0].Value) != "nonce-a" {
			t.Fatalf("neither done nor recognisable: %s", show(r.Read[0]))
		}
		kv := wantValue(t, s, key, "nonce-a")
		refused(t, s, store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, []byte("nonce-b"), 0)}})
		if again := get(t, s, key); again.Revision != kv.Revision {
			t.Fatalf("revision changed from %d to %d by a refused transaction", kv.Revision, again.Revision)
		}
	}
}
