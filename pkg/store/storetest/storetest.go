// Package storetest is the suite that every implementation of store.Store passes, and a Store that fails on demand for the tests of
// those who use one. Each case of the suite is named after the rule of the contract that it holds.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// wait bounds everything that a case waits for. It is generous because test machines are busy.
const wait = 2 * time.Minute

// Harness is what a room says about itself.
type Harness struct {
	// Open returns an empty store of its own for one case and sees to its end with t.Cleanup. Cases run in parallel.
	Open func(t testing.TB) store.Store
	// Reopen returns a second store on the same data, as another process has it; nil where no other process sees the data.
	Reopen func(t testing.TB, s store.Store) store.Store
	// Cut returns an empty store whose connection goes through a proxy; nil where there is no connection.
	Cut func(t testing.TB) (store.Store, *services.Proxy)
	// Full returns an empty store that is full after a few megabytes; nil where that cannot be arranged.
	Full func(t testing.TB) store.Store
	Features
}

// Features are the differences that the contract allows.
type Features struct {
	// TTL is the shortest time to live that is kept as it is; shorter ones are rounded up to it.
	TTL time.Duration
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if h.TTL == 0 {
		h.TTL = time.Second
	}
	groups := []struct {
		name  string
		cases []testCase
	}{
		{"txn", txnCases},
		{"key", keyCases},
		{"ttl", ttlCases},
		{"set", setCases},
		{"watch", watchCases},
		{"concurrent", concurrentCases},
		{"life", lifeCases},
		{"model", modelCases},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range g.cases {
				if c.applies != nil && !c.applies(h) {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					c.run(t, h)
				})
			}
		})
	}
}

type testCase struct {
	name    string
	run     func(t *testing.T, h Harness)
	applies func(h Harness) bool // nil: always
}

// must runs a transaction that has to be answered.
func must(t testing.TB, s store.Store, x store.Txn) store.Reply {
	t.Helper()
	r, err := s.Txn(t.Context(), x)
	if err != nil {
		t.Fatalf("Txn: %v", err)
	}
	if len(r.Read) != len(x.Read) {
		t.Fatalf("Txn answered %d of %d keys to read", len(r.Read), len(x.Read))
	}
	for i, kv := range r.Read {
		if kv.Key != x.Read[i] {
			t.Fatalf("Txn answered key %q at the place of %q", kv.Key, x.Read[i])
		}
		if !kv.Exists() && len(kv.Value) > 0 {
			t.Fatalf("key %q does not exist and has a value", kv.Key)
		}
	}
	return r
}

// done runs a transaction whose conditions have to hold, and returns the revision.
func done(t testing.TB, s store.Store, x store.Txn) int64 {
	t.Helper()
	r := must(t, s, x)
	if !r.Done {
		t.Fatalf("Txn was not done: conditions %v, read %v", x.If, r.Read)
	}
	if len(x.Then) > 0 && r.Revision <= 0 {
		t.Fatalf("Txn was done with revision %d", r.Revision)
	}
	return r.Revision
}

// refused runs a transaction whose conditions must not hold.
func refused(t testing.TB, s store.Store, x store.Txn) store.Reply {
	t.Helper()
	r := must(t, s, x)
	if r.Done {
		t.Fatalf("Txn was done although a condition of %v does not hold", x.If)
	}
	return r
}

func put(t testing.TB, s store.Store, key, value string) int64 {
	t.Helper()
	return done(t, s, store.Txn{Then: []store.Op{store.Put(key, []byte(value), 0)}})
}

func get(t testing.TB, s store.Store, key string) store.KV {
	t.Helper()
	return must(t, s, store.Txn{Read: []string{key}}).Read[0]
}

func wantValue(t testing.TB, s store.Store, key, value string) store.KV {
	t.Helper()
	kv := get(t, s, key)
	if !kv.Exists() || string(kv.Value) != value {
		t.Fatalf("key %q is %s, want %q", key, show(kv), short(value))
	}
	return kv
}

func wantAbsent(t testing.TB, s store.Store, key string) {
	t.Helper()
	if kv := get(t, s, key); kv.Exists() {
		t.Fatalf("key %q is %s, want it absent", key, show(kv))
	}
}

func show(kv store.KV) string {
	if !kv.Exists() {
		return "absent"
	}
	return fmt.Sprintf("%s at revision %d", short(string(kv.Value)), kv.Revision)
}

func short(s string) string {
	if len(s) > 60 {
		return fmt.Sprintf("%q… (%d bytes)", s[:60], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// eventually polls cond until it is true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(wait)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", wait, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// within returns a context that ends before the test framework gives up.
func within(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), wait)
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func repeat(s string, n int) string { return strings.Repeat(s, n) }
