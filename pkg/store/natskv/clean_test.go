package natskv_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/natskv"
)

// churn writes over one key until so many bytes have gone into the stream.
func churn(t *testing.T, s store.Store, size int) {
	t.Helper()
	v := bytes.Repeat([]byte("x"), 200<<10)
	for ; size > 0; size -= len(v) {
		if _, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put("p/churn", v, 0)}}); err != nil {
			t.Fatal(err)
		}
	}
}

// What is written over is purged from the stream, also where something that is of use was written before it; that keeps its revision
// and its value. A store that was away meanwhile does not go on with what it knew.
func TestStreamIsCleaned(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, "")
	cfg := config(t)
	cfg.Memory = true
	near := func(t testing.TB) *nats.Conn { return connect(t, "nats://"+srv.Addr) }
	proxy := services.NewProxy(t, srv.Addr)
	s := open(t, near, cfg)
	away := open(t, func(t testing.TB) *nats.Conn { return connect(t, "nats://"+proxy.Addr()) }, cfg)
	first, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{
		store.Put("p/a", []byte("kept"), 0), store.Put("p/b", []byte("to go"), 0), store.Add("p/s", "kept", 1), store.Add("p/s", "to go", 2),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if kv, err := store.Get(t.Context(), away, "p/b"); err != nil || string(kv.Value) != "to go" {
		t.Fatalf("the other store reads %q, %v", kv.Value, err)
	}
	proxy.Cut()
	if _, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Delete("p/b"), store.Remove("p/s", "to go")}}); err != nil {
		t.Fatal(err)
	}
	churn(t, s, 96<<20)
	js := streams(t, s)
	eventually(t, "less in the stream", func() error {
		stream, err := js.Stream(t.Context(), cfg.Stream)
		if err != nil {
			return err
		}
		if state := stream.CachedInfo().State; state.Bytes > 40<<20 {
			return fmt.Errorf("%d messages of %d bytes from %d on", state.Msgs, state.Bytes, state.FirstSeq)
		}
		return nil
	})
	proxy.Restore()
	for name, s := range map[string]store.Store{"cleaned": s, "anew": open(t, near, cfg), "was away": away} {
		var kv store.KV
		eventually(t, name+": an answer", func() error { kv, err = store.Get(t.Context(), s, "p/a"); return err })
		if string(kv.Value) != "kept" || kv.Revision != first.Revision {
			t.Errorf("%s: the key is %q at %d, want it at %d", name, kv.Value, kv.Revision, first.Revision)
		}
		if kv, err := store.Get(t.Context(), s, "p/b"); err != nil || kv.Exists() {
			t.Errorf("%s: the deleted key is %+v, %v", name, kv, err)
		}
		if m, err := s.Range(t.Context(), store.Range{Set: "p/s", Max: 10}); err != nil || len(m) != 1 || m[0].Name != "kept" {
			t.Errorf("%s: the set has %v, %v", name, m, err)
		}
		if kv, err := store.Get(t.Context(), s, "p/churn"); err != nil || len(kv.Value) != 200<<10 {
			t.Errorf("%s: the last value has %d bytes, %v", name, len(kv.Value), err)
		}
	}
}

// A store that is far from the server writes although one that is near never stops.
func TestFarStoreGetsItsTurn(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, "")
	cfg := config(t)
	proxy := services.NewProxy(t, srv.Addr)
	near := open(t, func(t testing.TB) *nats.Conn { return connect(t, "nats://"+srv.Addr) }, cfg)
	far := open(t, func(t testing.TB) *nats.Conn { return connect(t, "nats://"+proxy.Addr()) }, cfg)
	if err := far.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy.Delay(10 * time.Millisecond)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, err := near.Txn(ctx, store.Txn{Then: []store.Op{store.Put(fmt.Sprint("p/near", i), []byte("v"), time.Hour)}})
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	wctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for i := range 10 {
		r, err := far.Txn(wctx, store.Txn{If: []store.Cond{{Key: "p/far"}}, Then: []store.Op{store.Put("p/far", []byte("v"), time.Hour)}})
		if err != nil || r.Done != (i == 0) {
			t.Errorf("transaction %d: done %v, %v", i, r.Done, err)
			break
		}
		if r, err = far.Txn(wctx, store.Txn{Then: []store.Op{store.Put("p/often", nil, 0)}}); err != nil || !r.Done {
			t.Errorf("transaction %d: done %v, %v", i, r.Done, err)
			break
		}
	}
	stop()
	wg.Wait()
}

// A stream to which another program has written is not gone on with.
func TestForeignMessage(t *testing.T) {
	t.Parallel()
	conn := embedded(t)
	cfg := config(t)
	s := open(t, conn, cfg)
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := streams(t, s).Publish(t.Context(), strings.ToLower(cfg.Stream)+".log", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a refusal", func() error {
		if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "another program writes to the stream") {
			return errors.Join(errors.New("not refused"), err)
		}
		return nil
	})
	other, err := natskv.Open(t.Context(), conn(t), cfg)
	if err != nil {
		return
	}
	defer other.Close()
	if err := other.Ping(t.Context()); err == nil {
		t.Error("a store that was opened after it writes")
	}
}
