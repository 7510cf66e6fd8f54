package middleware_test

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

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// pureRunner is a runner whose work nobody can see.
type pureRunner struct{ job.RunnerFunc }

// Pure implements job.Pure.
func (pureRunner) Pure() bool { return true }

// dice answers something else each time.
func dice(runs *atomic.Int64) pureRunner {
	return pureRunner{func(context.Context, *job.Job) (*job.Result, error) {
		return &job.Result{Body: fmt.Appendf(nil, "throw %d", runs.Add(1))}, nil
	}}
}

// openProcess is a process whose runner is r, over a store that outlives it.
func openProcess(t *testing.T, st store.Store, r job.Runner, policy middleware.RetryPolicy, always bool) *process {
	t.Helper()
	p := &process{out: &outbox{}, events: &events{}}
	log := slog.New(slog.DiscardHandler)
	c, err := middleware.NewClaims(st, middleware.ClaimsConfig{Route: "jobs", Partition: "jobs", Lease: time.Second, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p.claims = c
	p.handle, err = middleware.Chain(middleware.Config{
		Route: "jobs", Runner: func(*job.Job) (job.Runner, error) { return r, nil }, To: "results", DeadLetter: "dead", Publisher: p.out,
		Claims: c, ClaimAlways: always, Retry: policy, Sink: p.events, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// carry takes a job through the chain once, as change makes it.
func (p *process) carry(t *testing.T, change func(*job.Job)) *job.Exchange {
	t.Helper()
	x := &job.Exchange{
		Job:      &job.Job{ID: "a", Route: "jobs", Subject: "jobs", Source: "jobs/1", Body: []byte("in"), Raw: []byte("in")},
		Received: time.Now(), Draining: make(chan struct{}),
	}
	if change != nil {
		change(x.Job)
	}
	if err := p.handle(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	return x
}

func bodies(ms []*transport.Message) []string {
	var out []string
	for _, m := range ms {
		out = append(out, string(m.Body))
	}
	return out
}

// A job whose running twice nobody can see costs one write; any doubt brings the claim back.
func TestWhoNeedsNoClaim(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		runner job.Runner
		policy middleware.RetryPolicy
		always bool
		job    func(*job.Job)
		writes int64
	}{
		{name: "nothing granted", runner: pureRunner{ok}, policy: threeTries, writes: 1},
		{name: "a capability", runner: job.RunnerFunc(ok), policy: threeTries, writes: 2},
		{name: "claims wanted always", runner: pureRunner{ok}, policy: threeTries, always: true, writes: 2},
		{name: "redelivered", runner: pureRunner{ok}, policy: threeTries, job: func(j *job.Job) { j.Redelivered = true }, writes: 2},
		{name: "moved", runner: pureRunner{ok}, policy: threeTries, job: func(j *job.Job) { j.Moved = true }, writes: 2},
		{name: "one attempt granted", runner: pureRunner{ok}, policy: middleware.RetryPolicy{MaxAttempts: 1}, writes: 2},
		{name: "one attempt asked for", runner: pureRunner{ok}, policy: threeTries, job: func(j *job.Job) { j.MaxAttempts = 1 }, writes: 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var writes atomic.Int64
			st := &lossy{Store: newStore(t), after: func(store.Txn) error { writes.Add(1); return nil }}
			p := openProcess(t, st, tt.runner, tt.policy, tt.always)
			if x := p.carry(t, tt.job); x.Settlement.Verb != job.Ack || x.Outcome == nil || x.Outcome.Attempts != 1 {
				t.Fatalf("settlement %v, outcome %+v", x.Settlement, x.Outcome)
			}
			want := job.Unclaimed("")
			if tt.writes == 1 {
				want = job.UnclaimedPure
			}
			for _, e := range p.events.all {
				if e.Type == event.Attempted && e.Unclaimed != want {
					t.Errorf("the attempt is told to be unclaimed for reason %q, want %q", e.Unclaimed, want)
				}
			}
			if writes.Load() != tt.writes {
				t.Errorf("%d transactions, want %d", writes.Load(), tt.writes)
			}
		})
	}
}

// Two replicas run one job without a claim at the same time: both emit the outcome that was recorded first.
func TestUnclaimedTwins(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	var runs atomic.Int64
	together := make(chan struct{})
	var arrived sync.WaitGroup
	arrived.Add(2)
	throw := dice(&runs)
	both := pureRunner{func(ctx context.Context, j *job.Job) (*job.Result, error) {
		arrived.Done()
		<-together
		return throw.Run(ctx, j)
	}}
	ps := []*process{openProcess(t, st, both, threeTries, false), openProcess(t, st, both, threeTries, false)}
	var wg sync.WaitGroup
	for _, p := range ps {
		wg.Go(func() { p.carry(t, nil) })
	}
	arrived.Wait()
	close(together)
	wg.Wait()
	a, b := ps[0].out.to("results"), ps[1].out.to("results")
	if len(a) != 1 || len(b) != 1 || string(a[0].Body) != string(b[0].Body) || runs.Load() != 2 {
		t.Fatalf("%d runs; results %v and %v", runs.Load(), bodies(a), bodies(b))
	}
}

// A job that another has claimed and is running is recorded by whoever is done first; the other's outcome is refused, and what it
// emits in the end is the first one's.
func TestUnclaimedOvertakesAClaim(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	var runs atomic.Int64
	throw := dice(&runs)
	began, finish := make(chan struct{}), make(chan struct{})
	slow := job.RunnerFunc(func(ctx context.Context, j *job.Job) (*job.Result, error) {
		close(began)
		<-finish
		return throw.Run(ctx, j)
	})
	owner := openProcess(t, st, slow, threeTries, true)
	late := make(chan *job.Exchange, 1)
	go func() { late <- owner.carry(t, nil) }()
	<-began
	twin := openProcess(t, st, throw, threeTries, false)
	twin.carry(t, nil)
	close(finish)
	if x := <-late; x.Settlement.Verb != job.Leave || x.Outcome != nil {
		t.Fatalf("the overtaken owner settled %v with %+v", x.Settlement, x.Outcome)
	}
	if x := owner.carry(t, nil); !x.Repeat {
		t.Fatal("the overtaken owner ran the job again")
	}
	a, b := owner.out.to("results"), twin.out.to("results")
	if len(a) != 1 || len(b) != 1 || string(a[0].Body) != string(b[0].Body) || string(a[0].Body) != "throw 1" {
		t.Fatalf("results %v and %v", bodies(a), bodies(b))
	}
}

// The answer to the only write is cut off: the outcome stands, and is not replaced by that of a second run.
func TestUnclaimedAnswerCutOff(t *testing.T) {
	t.Parallel()
	var runs, cuts atomic.Int64
	st := &lossy{Store: newStore(t), after: func(store.Txn) error {
		if cuts.Add(1) == 1 {
			return errors.New("cut off")
		}
		return nil
	}}
	p := openProcess(t, st, dice(&runs), threeTries, false)
	if x := p.carry(t, nil); x.Repeat || string(x.Outcome.Body) != "throw 1" {
		t.Fatalf("outcome %+v", x.Outcome)
	}
	// The same message once more in the same process, as after a publish that failed.
	if x := p.carry(t, nil); !x.Repeat || string(x.Outcome.Body) != "throw 1" {
		t.Fatalf("repeat %v, outcome %q", x.Repeat, x.Outcome.Body)
	}
}

// What fails without a claim is counted from the first attempt on, in place and after a move (D-06).
func TestUnclaimedFailureIsCounted(t *testing.T) {
	t.Parallel()
	for _, backoff := range []time.Duration{time.Millisecond, time.Hour} {
		t.Run(backoff.String(), func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			trap := pureRunner{func(context.Context, *job.Job) (*job.Result, error) {
				return nil, job.Errorf(job.KindTrap, "trap %d", runs.Add(1))
			}}
			policy := middleware.RetryPolicy{MaxAttempts: 3, Backoff: backoff, MaxBackoff: backoff, NoJitter: true}
			p := openProcess(t, newStore(t), trap, policy, false)
			x := p.carry(t, nil)
			if backoff == time.Hour {
				if x.Settlement.Verb != job.Retry || runs.Load() != 1 {
					t.Fatalf("settlement %v after %d runs", x.Settlement, runs.Load())
				}
				// Delivered again before it is due, it waits; the record knows.
				if x = p.carry(t, func(j *job.Job) { j.Redelivered = true }); x.Settlement.Verb != job.Retry || runs.Load() != 1 {
					t.Fatalf("settlement %v after %d runs", x.Settlement, runs.Load())
				}
				return
			}
			if x.Settlement.Verb != job.Dead || runs.Load() != 3 || x.Outcome.Attempts != 3 || len(p.out.to("dead")) != 1 {
				t.Fatalf("settlement %v after %d runs, outcome %+v", x.Settlement, runs.Load(), x.Outcome)
			}
			if p.events.count(event.Retried) != 2 {
				t.Errorf("%d retries told, want 2", p.events.count(event.Retried))
			}
		})
	}
}

// While the store is away nothing runs unclaimed: the job that finds out keeps its outcome until it is recorded, the others wait.
func TestUnclaimedNotWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		var runs atomic.Int64
		st := &lossy{Store: newStore(t), before: func(store.Txn) error {
			if away.Load() {
				return errors.New("the store is away")
			}
			return nil
		}}
		p := openProcess(t, st, dice(&runs), threeTries, false)
		away.Store(true)
		first := make(chan *job.Exchange, 1)
		go func() { first <- p.carry(t, nil) }()
		time.Sleep(time.Minute)
		for range 3 {
			if _, err := p.trip(t.Context(), "b"); err == nil {
				t.Error("a job was settled while the store was away")
			}
		}
		if runs.Load() != 1 {
			t.Errorf("%d jobs ran, want the one that found out", runs.Load())
		}
		away.Store(false)
		if x := <-first; x.Settlement.Verb != job.Ack || string(x.Outcome.Body) != "throw 1" {
			t.Errorf("settlement %v, outcome %+v", x.Settlement, x.Outcome)
		}
		if x, err := p.trip(t.Context(), "b"); err != nil || x.Settlement.Verb != job.Ack {
			t.Errorf("settlement %v, %v", x.Settlement, err)
		}
	})
}
