package storetest

import (
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// awkward are names that a database might take for something else.
var awkward = []string{
	"a", "A", "a.b", ".", "..", "a..b", ".a", "a.", " ", "a b", " a", "*", ">", "a.*", "a.>", "$JS.API.>", "{", "}", "{}", "{a}b", "a}b{c}",
	"%", "%2F", "%25", "a/b", "a//b", "/", "//", "a/", "\x00", "a\x00b", "\r\n", "a\nb", "\t", "\"", "'", "\\", "?", "[a-z]", "[",
	"\xff", "\xfe\xff", "a\x80", "\xc3\x28", "ä", "日本語", "🦀", "a:b", ":", "=", "==", "YWJj", "bYWJj", "-", "_", "~", "+", "&", "#", "@", "!", "^",
}

var keyCases = []testCase{
	{name: "names of any bytes are apart", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		names := append([]string{repeat("k", store.MaxKeyLen-2), repeat("\xff", store.MaxKeyLen-2), repeat(".", store.MaxKeyLen-2)}, awkward...)
		revs := map[string]int64{}
		for _, n := range names {
			k := "p/" + n
			revs[k] = done(t, s, store.Txn{If: []store.Cond{{Key: k}}, Then: []store.Op{store.Put(k, []byte(n), time.Hour)}, Read: []string{k}})
		}
		for _, n := range names {
			if kv := wantValue(t, s, "p/"+n, n); kv.Revision != revs["p/"+n] {
				t.Fatalf("key %q has revision %d, want %d", n, kv.Revision, revs["p/"+n])
			}
		}
		for _, n := range names {
			done(t, s, store.Txn{If: []store.Cond{{Key: "p/" + n, Revision: revs["p/"+n]}}, Then: []store.Op{store.Delete("p/" + n)}})
			wantAbsent(t, s, "p/"+n)
		}
	}},
	{name: "partitions of any bytes are apart", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		var parts []string
		for _, n := range append([]string{"", repeat("p", 1000), repeat("\xfe", 1000)}, awkward...) {
			if !strings.Contains(n, "/") {
				parts = append(parts, n)
			}
		}
		for _, p := range parts {
			// Two keys in one transaction: they must lie together.
			done(t, s, store.Txn{
				If: []store.Cond{{Key: p + "/a"}},
				Then: []store.Op{
					store.Put(p+"/a", []byte(p), 0), store.Put(p+"/b", []byte(p), 0), store.Add(p+"/s", "m"+p, 1),
				},
			})
		}
		for _, p := range parts {
			r := must(t, s, store.Txn{Read: []string{p + "/a", p + "/b"}})
			if string(r.Read[0].Value) != p || string(r.Read[1].Value) != p {
				t.Fatalf("partition %q has %s and %s", p, show(r.Read[0]), show(r.Read[1]))
			}
			if m := members(t, s, store.Range{Set: p + "/s", Max: 5}); len(m) != 1 || m[0].Name != "m"+p {
				t.Fatalf("partition %q has the set %v", p, m)
			}
		}
	}},
	{name: "sets and members of any bytes are apart", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		long := []string{repeat("m", store.MaxKeyLen), repeat("\xff", store.MaxKeyLen)}
		for _, n := range awkward {
			done(t, s, store.Txn{Then: []store.Op{store.Add("p/"+n, n, 1), store.Add("p/"+n, "second", 2)}})
		}
		longSet := "p/" + repeat("\xfe", store.MaxKeyLen-2)
		done(t, s, store.Txn{Then: []store.Op{store.Add(longSet, long[0], 1), store.Add(longSet, long[1], 1)}})
		for _, n := range awkward {
			m := members(t, s, store.Range{Set: "p/" + n, Max: 5})
			if len(m) != 2 || m[0].Name != n || m[1].Name != "second" {
				t.Fatalf("set %q has %v", n, m)
			}
		}
		if m := members(t, s, store.Range{Set: longSet, Max: 5}); len(m) != 2 || m[0].Name != long[0] || m[1].Name != long[1] {
			t.Fatalf("the long set has %d members", len(m))
		}
	}},
	{name: "a key and a set of one name are two things", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		done(t, s, store.Txn{Then: []store.Op{store.Put("p/x", []byte("v"), 0), store.Add("p/x", "m", 1)}})
		wantValue(t, s, "p/x", "v")
		done(t, s, store.Txn{Then: []store.Op{store.Delete("p/x")}})
		if m := members(t, s, store.Range{Set: "p/x", Max: 5}); len(m) != 1 {
			t.Fatalf("the set has %v after the key was deleted", m)
		}
	}},
	{name: "Key keeps names apart", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		keys := []string{store.Key("a/b", "c"), store.Key("a", "b/c"), store.Key("a", "b%2Fc"), store.Key("a%2Fb", "c"), store.Key("a", "b", "c/d"), store.Key("a", "b/c", "d")}
		for _, k := range keys {
			done(t, s, store.Txn{If: []store.Cond{{Key: k}}, Then: []store.Op{store.Put(k, []byte(k), 0)}})
		}
		for _, k := range keys {
			wantValue(t, s, k, k)
		}
	}},
}

var ttlCases = []testCase{
	{name: "a key expires", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		rev := done(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("lease"), h.TTL)}})
		put(t, s, "p/b", "stays")
		eventually(t, "the key to expire", func() bool { return !get(t, s, "p/a").Exists() })
		refused(t, s, store.Txn{If: []store.Cond{{Key: "p/a", Revision: rev}}, Then: []store.Op{store.Put("p/a", []byte("stale"), 0)}})
		next := done(t, s, store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("next"), 0)}, Read: []string{"p/a"}})
		if next <= rev {
			t.Fatalf("revision %d after expiry, %d before: it must grow", next, rev)
		}
		wantValue(t, s, "p/b", "stays")
	}},
	{name: "a key does not expire early", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		r := must(t, s, store.Txn{Then: []store.Op{store.Put("p/a", []byte("lease"), 2*h.TTL)}})
		var gone store.Reply
		eventually(t, "the key to expire", func() bool {
			gone = must(t, s, store.Txn{Read: []string{"p/a"}})
			return !gone.Read[0].Exists()
		})
		// A clock that is estimated may be a little off, more so on a busy machine.
		if age := gone.Now.Sub(r.Now); age < 2*h.TTL-max(h.TTL/8, 20*time.Millisecond) {
			t.Fatalf("gone after %v, want %v at least", age, 2*h.TTL)
		}
	}},
	{name: "rewriting forgets the TTL", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		done(t, s, store.Txn{Then: []store.Op{store.Put("p/a", []byte("1"), h.TTL), store.Put("p/b", []byte("1"), h.TTL), store.Put("p/c", []byte("1"), h.TTL)}})
		done(t, s, store.Txn{Then: []store.Op{store.Put("p/a", []byte("2"), 0)}})
		done(t, s, store.Txn{Then: []store.Op{store.Put("p/b", []byte("2"), time.Hour)}})
		eventually(t, "the third key to expire", func() bool { return !get(t, s, "p/c").Exists() })
		wantValue(t, s, "p/a", "2")
		wantValue(t, s, "p/b", "2")
	}},
	{name: "a lease is renewed", run: func(t *testing.T, h Harness) {
		s := h.Open(t)
		// Long enough for a busy machine to renew in time.
		ttl := max(3*h.TTL, 3*time.Second)
		rev := done(t, s, store.Txn{Then: []store.Op{store.Put("p/a", []byte("lease"), ttl), store.Put("p/b", []byte("other"), ttl)}})
		for {
			r := must(t, s, store.Txn{
				If:   []store.Cond{{Key: "p/a", Revision: rev}},
				Then: []store.Op{store.Put("p/a", []byte("lease"), ttl)},
				Read: []string{"p/b"},
			})
			if !r.Done {
				t.Fatal("the lease was lost although it was renewed")
			}
			rev = r.Revision
			if !r.Read[0].Exists() {
				return // the other one is gone, ours outlived it
			}
			time.Sleep(h.TTL / 4)
		}
	}},
}
