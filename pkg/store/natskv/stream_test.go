package natskv_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/natskv"
)

// within is how long a test waits for what must come; a busy machine is slow.
const within = 30 * time.Second

// eventually calls f until it succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// await reads changes until one fits.
func await(t *testing.T, w store.Watcher, what string, fits func(store.Change) bool) {
	t.Helper()
	timeout := time.After(within)
	for {
		select {
		case c := <-w.Changes():
			if fits(c) {
				return
			}
		case <-timeout:
			t.Fatalf("no %s within %v", what, within)
		}
	}
}

func streams(t *testing.T, s *opened) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(s.connect(t))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// A stream that is deleted under its store is made again, empty; no revision of the old one holds in the new one.
func TestStreamDeleted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		before bool // the stream was there, made by others, before the store was opened
	}{
		{name: "made by the store"},
		{name: "made by others", before: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn := embedded(t)
			cfg := config(t)
			if c.before {
				create(t, conn(t), stream(cfg.Stream))
				cfg.Prefix = cfg.Stream
			}
			s := open(t, conn, cfg)
			js := streams(t, s)
			w, err := s.Watch(t.Context(), "p/")
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			var latest int64
			for round := range 2 {
				first, err := s.Txn(t.Context(), store.Txn{
					If:   []store.Cond{{Key: "p/a"}},
					Then: []store.Op{store.Put("p/a", []byte("1"), time.Hour), store.Add("p/s", "a", 1)},
				})
				if err != nil || !first.Done || first.Revision <= latest {
					t.Fatalf("round %d: done %v at %d after %d, %v", round, first.Done, first.Revision, latest, err)
				}
				if m, err := s.Range(t.Context(), store.Range{Set: "p/s", Max: 10}); err != nil || len(m) != 1 {
					t.Fatalf("set has %v, %v", m, err)
				}
				if err := js.DeleteStream(t.Context(), s.cfg.Stream); err != nil {
					t.Fatal(err)
				}
				eventually(t, "a transaction under the old revision", func() error {
					r, err := s.Txn(t.Context(), store.Txn{
						If: []store.Cond{{Key: "p/a", Revision: first.Revision}}, Then: []store.Op{store.Put("p/a", []byte("stale"), 0)}, Read: []string{"p/a"},
					})
					if err == nil && (r.Done || r.Read[0].Exists()) {
						t.Errorf("round %d: done %v, read %+v", round, r.Done, r.Read[0])
					}
					return err
				})
				eventually(t, "the set of the new stream", func() error { // a reader may still be told of the old stream's end
					m, err := s.Range(t.Context(), store.Range{Set: "p/s", Max: 10})
					if err == nil && len(m) != 0 {
						t.Errorf("round %d: set has %v", round, m)
					}
					return err
				})
				await(t, w, "Resync", func(c store.Change) bool { return c.Resync })
				again, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("2"), 0)}})
				if err != nil || !again.Done || again.Revision <= first.Revision {
					t.Fatalf("round %d: done %v at %d after %d, %v", round, again.Done, again.Revision, first.Revision, err)
				}
				latest = again.Revision
				await(t, w, "change", func(c store.Change) bool { return c.KV.Key == "p/a" && c.KV.Revision == again.Revision })
				if _, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Delete("p/a")}}); err != nil {
					t.Fatal(err)
				}
				if err := s.Ping(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Transactions that go on while the stream is deleted and made again never lose an update: each success has a revision of its own.
func TestStreamDeletedUnderLoad(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, "") // one in this process would leave goroutines of the deleted stream behind
	conn := func(t testing.TB) *nats.Conn { return connect(t, "nats://"+srv.Addr) }
	cfg := config(t)
	a, b := open(t, conn, cfg), open(t, conn, cfg)
	js := streams(t, a)
	done := make(chan []int64)
	stop := make(chan struct{})
	var writes [2]atomic.Int64
	for i, s := range []*opened{a, b} {
		go func() {
			var revs []int64
			defer func() { done <- revs }()
			var rev int64
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := s.Txn(t.Context(), store.Txn{
					If: []store.Cond{{Key: "p/a", Revision: rev}}, Read: []string{"p/a"},
					Then: []store.Op{store.Put("p/a", []byte("x"), 0), store.Add("p/s", "m", 1)},
				})
				switch {
				case err != nil:
					if err := s.Ping(t.Context()); err != nil && t.Context().Err() != nil {
						return
					}
				case r.Done:
					rev = r.Revision
					revs = append(revs, rev)
					writes[i].Add(1)
				default:
					rev = r.Read[0].Revision
				}
			}
		}()
	}
	bothWrite := func() {
		t.Helper()
		before := [2]int64{writes[0].Load(), writes[1].Load()}
		eventually(t, "both write", func() error {
			if writes[0].Load() < before[0]+3 || writes[1].Load() < before[1]+3 {
				return fmt.Errorf("%d and %d writes after %v; pings: %v, %v", writes[0].Load(), writes[1].Load(), before, a.Ping(t.Context()), b.Ping(t.Context())) //nolint:errorlint // nobody asks what the errors are
			}
			return nil
		})
	}
	bothWrite()
	for range 2 {
		if err := js.DeleteStream(t.Context(), cfg.Stream); err != nil {
			t.Error(err)
		}
		start := time.Now()
		bothWrite()
		t.Logf("both write again after %v", time.Since(start))
	}
	close(stop)
	seen := make(map[int64]bool)
	for range 2 {
		last := int64(0)
		for _, rev := range <-done {
			if rev <= last || seen[rev] {
				t.Fatalf("revision %d after %d, seen before: %v", rev, last, seen[rev])
			}
			last, seen[rev] = rev, true
		}
	}
}

// Where the store may not make its stream, it says what is gone and what to do, and goes on once that is done.
func TestStreamDeletedWithoutLeaveToCreate(t *testing.T) {
	t.Parallel()
	conn := embedded(t)
	cfg := config(t)
	cfg.NoCreate = true
	if _, err := natskv.Open(t.Context(), conn(t), cfg); !errors.Is(err, store.ErrUnsupported) || !strings.Contains(err.Error(), "is missing and nats.create is false") {
		t.Errorf("Open without a stream: %v", err)
	}
	own := stream(cfg.Stream)
	cfg.Prefix = cfg.Stream
	create(t, conn(t), own)
	s := open(t, conn, cfg)
	put := store.Txn{Then: []store.Op{store.Put("p/a", []byte("1"), 0), store.Add("p/s", "a", 1)}}
	if _, err := s.Txn(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	js := streams(t, s)
	says := func(what, want string) {
		t.Helper()
		eventually(t, what, func() error {
			err := s.Ping(t.Context())
			if err == nil || !strings.Contains(err.Error(), want) {
				return errors.Join(errors.New("Ping does not say "+want), err)
			}
			return nil
		})
	}
	if err := js.DeleteStream(t.Context(), cfg.Stream); err != nil {
		t.Fatal(err)
	}
	says("deleted", "nats.create is false; make it with subjects")
	if _, err := js.Stream(t.Context(), cfg.Stream); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatalf("the stream was made again: %v", err)
	}
	// One that counts from 1 would bring old revisions back.
	create(t, conn(t), own)
	says("made again by hand", "delete it and make it with first_seq")
	if _, err := s.Txn(t.Context(), put); err == nil {
		t.Error("a stream that counts from 1 was written to")
	}
	if err := js.DeleteStream(t.Context(), cfg.Stream); err != nil {
		t.Fatal(err)
	}
	says("deleted again", "nats.create is false; make it with subjects")
	own.FirstSeq = uint64(time.Now().Unix())
	create(t, conn(t), own)
	eventually(t, "made again as it said", func() error { return s.Ping(t.Context()) })
	if r, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: put.Then}); err != nil || !r.Done {
		t.Errorf("in the new stream: done %v, %v", r.Done, err)
	}
}
