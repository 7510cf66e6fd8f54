package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

func TestKeyAndPartition(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		partition string
		parts     []string
		want      string
	}{
		{"jobs", []string{"job", "1"}, "jobs/job/1"},
		{"jobs", []string{"job", "a/b"}, "jobs/job/a/b"},
		{"jobs", []string{"a/b", "c"}, "jobs/a%2Fb/c"},
		{"a/b", []string{"c"}, "a%2Fb/c"},
		{"a%2Fb", []string{"c"}, "a%252Fb/c"},
		{"", []string{"c"}, "/c"},
	} {
		got := store.Key(c.partition, c.parts...)
		if got != c.want {
			t.Errorf("Key(%q, %q) = %q, want %q", c.partition, c.parts, got, c.want)
		}
		if p := store.Partition(got); p != store.Partition(store.Key(c.partition, "x")) || strings.Contains(p, "/") {
			t.Errorf("Partition(%q) = %q", got, p)
		}
	}
}

// Names of the same number of parts never meet.
func FuzzKey(f *testing.F) {
	f.Add("a", "b", "c", "a", "b/c", "")
	f.Add("a/b", "c", "", "a", "b%2Fc", "")
	f.Fuzz(func(t *testing.T, p1, a1, b1, p2, a2, b2 string) {
		same := p1 == p2 && a1 == a2 && b1 == b2
		if got := store.Key(p1, a1, b1) == store.Key(p2, a2, b2); got != same {
			t.Fatalf("Key(%q, %q, %q) and Key(%q, %q, %q): equal is %v", p1, a1, b1, p2, a2, b2, got)
		}
	})
}

func TestCheck(t *testing.T) {
	t.Parallel()
	long := "p/" + strings.Repeat("x", store.MaxKeyLen-1)
	many := make([]string, store.MaxTxnLen+1)
	for i := range many {
		many[i] = "p/a"
	}
	for _, c := range []struct {
		name string
		txn  store.Txn
		want error
	}{
		{"a put", store.Txn{Then: []store.Op{store.Put("p/a", nil, 0)}}, nil},
		{"two members of a set", store.Txn{Then: []store.Op{store.Add("p/s", "a", 1), store.Add("p/s", "b", 1)}}, nil},
		{"a key and a set of one name", store.Txn{Then: []store.Op{store.Put("p/s", nil, 0), store.Add("p/s", "b", 1)}}, nil},
		{"the longest key", store.Txn{Read: []string{long[:store.MaxKeyLen]}}, nil},
		{"empty", store.Txn{}, store.ErrInvalid},
		{"too long a key", store.Txn{Read: []string{long}}, store.ErrInvalid},
		{"no partition", store.Txn{Read: []string{"a"}}, store.ErrInvalid},
		{"too many parts", store.Txn{Read: many}, store.ErrInvalid},
		{"two partitions", store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Delete("q/a")}}, store.ErrPartition},
		{"a member twice", store.Txn{Then: []store.Op{store.Add("p/s", "a", 1), store.Remove("p/s", "a")}}, store.ErrInvalid},
		{"a key twice", store.Txn{Then: []store.Op{store.Put("p/a", nil, 0), store.Put("p/a", nil, 0)}}, store.ErrInvalid},
		{"a negative TTL", store.Txn{Then: []store.Op{store.Put("p/a", nil, -time.Second)}}, store.ErrInvalid},
		{"a negative revision", store.Txn{If: []store.Cond{{Key: "p/a", Revision: -1}}}, store.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			part, err := c.txn.Check()
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err == nil && part != "p" {
				t.Fatalf("partition %q, want p", part)
			}
		})
	}
}

func TestRangeCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ ask, want int }{{0, 1000}, {7, 7}, {store.MaxRange + 1, store.MaxRange}} {
		part, limit, err := store.Range{Set: "p/s", Limit: c.ask}.Check()
		if part != "p" || limit != c.want || err != nil {
			t.Errorf("limit %d: %q, %d, %v; want %d", c.ask, part, limit, err, c.want)
		}
	}
	for _, r := range []store.Range{{}, {Set: "p"}, {Set: "p/"}, {Set: "p/s", Limit: -1}} {
		if _, _, err := r.Check(); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%+v: error %v, want ErrInvalid", r, err)
		}
	}
}

// A reader that falls behind finds one Resync, at the place of what it missed, and everything after it.
func TestFeedReplacesWhatWasMissed(t *testing.T) {
	t.Parallel()
	f := store.NewFeed("p/", nil)
	defer f.Close()
	const sent = 5000
	var got []int64
	resyncAt := int64(-1) // the newest change sent when a Resync was taken
	drain := func(n int, newest int64) {
		for range n {
			select {
			case c := <-f.Changes():
				if c.Resync {
					resyncAt = newest
					got = append(got, -1)
				} else {
					got = append(got, c.KV.Revision)
				}
			default:
				return
			}
		}
	}
	for i := int64(1); i <= sent; i++ {
		f.Send(store.Change{KV: store.KV{Key: "p/a", Revision: i}})
		f.Send(store.Change{KV: store.KV{Key: "q/a", Revision: i}})
		if i > 2000 && i%3 == 0 {
			drain(4, i)
		}
	}
	drain(sent, sent)
	if resyncAt < 0 {
		t.Fatal("no Resync although most was missed")
	}
	last, resync := int64(0), false
	for _, r := range got {
		switch {
		case r < 0:
			resync = true
		case r <= last:
			t.Fatalf("revision %d after %d", r, last)
		case r != last+1 && !resync:
			t.Fatalf("revision %d after %d without a Resync", r, last)
		default:
			last, resync = r, false
		}
	}
	if last != sent {
		t.Fatalf("the last revision is %d, want %d", last, sent)
	}
}
