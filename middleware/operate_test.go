package middleware_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// A job that is cancelled before it was delivered leaves one result that says so, and no dead letter; it never runs.
func TestCancelBeforeDelivery(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	p := openProcess(t, newStore(t), dice(&runs), threeTries, true)
	if err := p.claims.Cancel(t.Context(), "a", 0, "not needed any more"); err != nil {
		t.Fatal(err)
	}
	x := p.carry(t, nil)
	if x.Settlement.Verb != job.Ack || runs.Load() != 0 || len(p.out.to("dead")) != 0 {
		t.Fatalf("settlement %v after %d runs, dead letters %v", x.Settlement, runs.Load(), p.out.to("dead"))
	}
	if rs := p.out.to("results"); len(rs) != 1 || rs[0].Header.Get("Wasm-Kind") != "cancelled" || rs[0].Header.Get("Wasm-Ok") != "false" {
		t.Fatalf("results %v", rs)
	}
	if err := p.claims.Cancel(t.Context(), "a", 0, "once more"); !errors.Is(err, middleware.ErrDone) {
		t.Fatalf("cancelled again: %v", err)
	}
}

// A job that is cancelled while it runs is stopped by the next heartbeat, and what it would have come to does not count.
func TestCancelWhileItRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := make(chan struct{})
		slow := job.RunnerFunc(func(ctx context.Context, _ *job.Job) (*job.Result, error) {
			close(began)
			<-ctx.Done()
			return &job.Result{Body: []byte("too late")}, nil
		})
		p := openProcess(t, newStore(t), slow, threeTries, true)
		ended := make(chan *job.Exchange, 1)
		go func() { ended <- p.carry(t, nil) }()
		<-began
		if err := p.claims.Cancel(t.Context(), "a", 0, "stop it"); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		x := <-ended
		if took := time.Since(at); took > time.Second/2 { // the lease is a second
			t.Errorf("stopped after %s", took)
		}
		if x.Settlement.Verb != job.Leave || x.Outcome != nil {
			t.Fatalf("settlement %v, outcome %+v", x.Settlement, x.Outcome)
		}
		if x = p.carry(t, nil); !x.Repeat || x.Outcome.Kind != job.KindCancelled {
			t.Fatalf("outcome %+v", x.Outcome)
		}
	})
}

// A job that waits for something holds nothing, counts no attempt, and goes on when it is due or woken.
func TestParkAndWake(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	parks := job.RunnerFunc(func(context.Context, *job.Job) (*job.Result, error) {
		if runs.Add(1) < 3 {
			return nil, &job.Park{For: time.Hour}
		}
		return &job.Result{Body: []byte("came")}, nil
	})
	policy := middleware.RetryPolicy{MaxAttempts: 2, Backoff: time.Millisecond}
	p := openProcess(t, newStore(t), parks, policy, true)
	for want := int64(1); want < 3; want++ {
		if x := p.carry(t, nil); x.Settlement != (job.Settlement{Verb: job.Retry, After: time.Hour}) || runs.Load() != want {
			t.Fatalf("settlement %+v after %d runs", x.Settlement, runs.Load())
		}
		if x := p.carry(t, nil); x.Settlement.Verb != job.Retry || x.Settlement.After > time.Hour || runs.Load() != want {
			t.Fatalf("delivered early: settlement %+v after %d runs", x.Settlement, runs.Load())
		}
		if err := p.claims.Wake(t.Context(), "a", 0); err != nil {
			t.Fatal(err)
		}
	}
	if x := p.carry(t, nil); x.Settlement.Verb != job.Ack || x.Outcome.Attempts != 1 || string(x.Outcome.Body) != "came" {
		t.Fatalf("settlement %+v, outcome %+v", x.Settlement, x.Outcome)
	}
	if err := p.claims.Wake(t.Context(), "a", 0); !errors.Is(err, middleware.ErrNotWaiting) {
		t.Fatalf("woken when done: %v", err)
	}
}
