package router_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// a move that fails is made again soon after, for what is left of the wait: no delivery is kept for the whole of it.
func TestFailedMoveIsMadeAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var trips atomic.Int32
		w := start(t, router.WindowConfig{Limit: 1}, func(_ context.Context, x *job.Exchange) error {
			trips.Add(1)
			x.Job.Attempt++
			x.Settlement = job.Settlement{Verb: job.Retry, After: time.Hour}
			return nil
		})
		w.mu.Lock()
		w.failing = errors.New("broker away")
		w.mu.Unlock()
		w.put("retry", "")
		w.put("schedule", "", job.Field{Name: "wasm-deliver-at", Value: time.Now().Add(time.Hour).Format(time.RFC3339Nano)})
		time.Sleep(2 * time.Second)
		w.mu.Lock()
		w.failing = nil
		w.mu.Unlock()
		time.Sleep(2 * time.Second)
		want := map[string]string{"retry": "retry 59m57s retry/jobs/0.1/retry", "schedule": "retry 59m57s schedule/jobs/0.0/schedule"}
		for pos, how := range want {
			if got := w.how(pos); got != how {
				t.Errorf("%s was settled by %q, want %q", pos, got, how)
			}
		}
		if n := trips.Load(); n != 1 {
			t.Errorf("%d trips, want that of the retry alone", n)
		}
	})
}

// D-06: an ordered job, which waits for its retries here, gets to its last attempt although nothing is written about them.
func TestOrderedRetriesAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var attempts []int
		w := start(t, router.WindowConfig{Limit: 2, ByKey: true}, func(_ context.Context, x *job.Exchange) error {
			mu.Lock()
			defer mu.Unlock()
			x.Job.Attempt++
			if attempts = append(attempts, x.Job.Attempt); x.Job.Attempt < 3 {
				x.Settlement = job.Settlement{Verb: job.Retry, After: time.Minute}
			}
			return nil
		})
		w.put("a", "key")
		time.Sleep(10 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if fmt.Sprint(attempts) != "[1 2 3]" || w.how("a") != "ack" {
			t.Fatalf("attempts %v, settled %q", attempts, w.how("a"))
		}
	})
}

// A delivery that is lost while it waits for its retry holds up neither its key nor the window.
func TestLostWhileParked(t *testing.T) {
	t.Parallel()
	for name, lease := range map[string]time.Duration{"lease": 3 * time.Second, "no lease": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				src := newFeed()
				src.lease = lease
				w := startOn(t, src, router.WindowConfig{Limit: 1, MaxOut: 2, ByKey: true}, func(_ context.Context, x *job.Exchange) error {
					if string(x.Job.Body) == "first" {
						x.Settlement = job.Settlement{Verb: job.Retry, After: time.Hour}
					}
					return nil
				})
				first := &parcel{f: w.feed, pos: "first", msg: transport.Message{Key: []byte("key"), Body: []byte("first")}}
				w.ch <- first
				w.put("second", "key")
				w.put("third", "other")
				time.Sleep(time.Second)
				if n := len(w.all()); n != 0 {
					t.Fatalf("%d settled, want none: the window is full", n)
				}
				first.lost.Store(true)
				time.Sleep(6 * time.Second)
				if w.how("second") != "ack" || w.how("third") != "ack" || w.how("first") != "" {
					t.Fatalf("settled %v, want second and third", w.all())
				}
			})
		})
	}
}

// Trouble that only a lost delivery could have seen the end of is over, whatever else waits.
func TestTroubleGoesWithWhatMetIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, router.WindowConfig{Limit: 2}, func(_ context.Context, x *job.Exchange) error {
			switch string(x.Job.Body) {
			case "waits":
				x.Settlement = job.Settlement{Verb: job.Leave, After: time.Hour}
			case "troubled":
				return errors.New("store away")
			}
			return nil
		})
		w.put("waits", "")
		synctest.Wait()
		var troubled [2]*parcel // the second is what a Fetch under way still brings
		for i := range troubled {
			troubled[i] = &parcel{f: w.feed, pos: fmt.Sprint("troubled", i), msg: transport.Message{Body: []byte("troubled")}}
			w.ch <- troubled[i]
			time.Sleep(time.Minute)
		}
		if w.w.Trouble() == nil {
			t.Fatal("no trouble is reported")
		}
		for _, p := range troubled {
			p.lost.Store(true)
		}
		w.put("next", "")
		time.Sleep(10 * time.Second)
		if w.how("next") != "ack" || w.w.Trouble() != nil {
			t.Fatalf("next was settled by %q, trouble %v", w.how("next"), w.w.Trouble())
		}
	})
}

// a route that drains is not open, so that readiness is gone while running jobs finish.
func TestDrainingRouteIsNotOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src, d := newFeed(), &transport.Decoder{Route: "jobs"}
		r, err := router.New(slog.New(slog.DiscardHandler), []router.Route{{
			Open: func(context.Context) (transport.Source, error) { return src, nil },
			Window: router.WindowConfig{Route: "jobs", Limit: 1, Decode: d.Decode, Log: slog.New(slog.DiscardHandler), Handle: func(context.Context, *job.Exchange) error {
				time.Sleep(10 * time.Second)
				return nil
			}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		src.put("a", "")
		synctest.Wait()
		if s := r.Status()[0]; len(s.Pauses) != 0 || s.InFlight != 1 {
			t.Fatalf("status %+v, want open with a job in flight", s)
		}
		stop()
		synctest.Wait()
		if s := r.Status()[0]; len(s.Pauses) != 1 || s.Pauses[0].Reason != router.Draining || s.InFlight != 1 {
			t.Errorf("status %+v, want draining with a job in flight", s)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
