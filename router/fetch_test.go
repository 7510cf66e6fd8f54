package router_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// watched runs a router of one route over src and returns its status.
func watched(t *testing.T, src transport.Source, cfg router.WindowConfig) func() router.Status {
	t.Helper()
	d := &transport.Decoder{Route: "jobs", Module: "m"}
	cfg.Route, cfg.Limit, cfg.Decode, cfg.Log = "jobs", 4, d.Decode, slog.New(slog.DiscardHandler)
	if cfg.Handle == nil {
		cfg.Handle = func(context.Context, *job.Exchange) error { return nil }
	}
	open := func(context.Context) (transport.Source, error) { return src, nil }
	r, err := router.New(cfg.Log, []router.Route{{Open: open, Window: cfg}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() router.Status { return r.Status()[0] }
}

func wantPause(t *testing.T, got []router.Pause, reason router.Reason, err error) {
	t.Helper()
	if len(got) != 1 || got[0].Reason != reason || !errors.Is(got[0].Err, err) {
		t.Errorf("paused by %v, want %s: %v", got, reason, err)
	}
}

// A source that cannot be read for good is a state that everybody can see, costs nothing, and ends without a restart.
func TestFetchThatFailsForGood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := newFeed()
		denied := fmt.Errorf("read jobs: grant READ: %w", transport.ErrRejected)
		src.broken = denied
		status := watched(t, src, router.WindowConfig{})
		synctest.Wait()
		wantPause(t, status().Pauses, router.Fetching, denied)
		time.Sleep(time.Hour)
		wantPause(t, status().Pauses, router.Fetching, denied)
		src.mu.Lock()
		n := src.fetches
		src.broken = nil // the operator has granted it
		src.mu.Unlock()
		if n < 60 || n > 180 || status().Failed != int64(n) {
			t.Errorf("%d reads in an hour, %d counted: want one every half a minute", n, status().Failed)
		}
		time.Sleep(time.Minute) // nothing is there to be read
		if got := status().Pauses; got != nil {
			t.Errorf("paused by %v", got)
		}
		src.put("a", "")
		synctest.Wait()
		if src.how("a") != "ack" {
			t.Errorf("a was settled by %q", src.how("a"))
		}
	})
}

// A broker that is away for a while: one failure is no news, more are, and the first message ends it.
func TestFetchThatFailsForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := newFeed()
		away := errors.New("connection refused")
		src.broken = away
		status := watched(t, src, router.WindowConfig{})
		synctest.Wait()
		if got := status().Pauses; got != nil {
			t.Errorf("paused by %v after one failure", got)
		}
		time.Sleep(time.Minute)
		wantPause(t, status().Pauses, router.Fetching, away)
		src.mu.Lock()
		src.broken = nil
		src.mu.Unlock()
		src.put("a", "")
		time.Sleep(6 * time.Second) // the longest pause, and no more
		if got := status().Pauses; got != nil || src.how("a") != "ack" {
			t.Errorf("paused by %v, a settled by %q", got, src.how("a"))
		}
	})
}

// joining is a source that has not been given its share.
type joining struct {
	*feed
	err atomic.Pointer[error]
}

func (j *joining) Joined() error {
	if err := j.err.Load(); err != nil {
		return *err
	}
	return nil
}

func TestSourceThatHasNotJoined(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := &joining{feed: newFeed()}
		waits := errors.New("no partitions yet")
		src.err.Store(&waits)
		status := watched(t, src, router.WindowConfig{})
		synctest.Wait()
		wantPause(t, status().Pauses, router.Joining, waits)
		src.err.Store(nil)
		if got := status().Pauses; got != nil {
			t.Errorf("paused by %v", got)
		}
	})
}

// While the route is held nothing is fetched but one probe at a time; what was fetched goes on.
func TestHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src := newFeed()
		held := errors.New("the module keeps failing")
		var why atomic.Pointer[error]
		var probe atomic.Bool
		status := watched(t, src, router.WindowConfig{
			Handle: func(_ context.Context, x *job.Exchange) error {
				if string(x.Job.Body) == "probe" {
					time.Sleep(time.Minute)
				}
				return nil
			},
			Hold: func() (bool, error) {
				if err := why.Load(); err != nil {
					return probe.Load(), *err
				}
				return false, nil
			},
		})
		synctest.Wait()
		why.Store(&held)
		src.put("first", "") // the read that was under way takes it
		time.Sleep(time.Second)
		src.put("probe", "")
		src.put("last", "")
		time.Sleep(time.Hour)
		wantPause(t, status().Pauses, router.Breaker, held)
		if src.how("first") != "ack" || len(src.ch) != 2 {
			t.Fatalf("first settled by %q, %d wait: want ack and two", src.how("first"), len(src.ch))
		}
		probe.Store(true)
		time.Sleep(30 * time.Second)
		if s := status(); s.InFlight != 1 || len(src.ch) != 1 {
			t.Fatalf("%d run and %d wait, want the probe alone", s.InFlight, len(src.ch))
		}
		why.Store(nil)
		time.Sleep(time.Second)
		if src.how("last") != "ack" || status().Pauses != nil {
			t.Fatalf("last settled by %q, paused by %v", src.how("last"), status().Pauses)
		}
	})
}
