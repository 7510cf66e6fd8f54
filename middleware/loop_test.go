package middleware_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// arrived is a delivery of a message, for a decoder.
type arrived struct {
	transport.Delivery
	m   *transport.Message
	pos string
}

func (a arrived) Message() *transport.Message { return a.m }
func (a arrived) Position() string            { return a.pos }
func (a arrived) Published() time.Time        { return time.Time{} }
func (a arrived) Redelivered() bool           { return false }

// round sends a message through the chain, and every result of it again, as two routes do whose results are each other's jobs.
// It returns the results, the dead letters and how often the runner ran.
func round(t *testing.T, first *transport.Message, runner job.RunnerFunc, most int) (results, dead []*transport.Message, runs int) {
	t.Helper()
	p := setup{store: newStore(t), policy: middleware.RetryPolicy{MaxAttempts: 1}, runner: func(ctx context.Context, j *job.Job) (*job.Result, error) {
		runs++
		return runner(ctx, j)
	}}.start(t)
	d := &transport.Decoder{Route: "jobs", Module: "m"}
	for m, n := first, 0; m != nil && n < most; n++ {
		before := len(p.out.to("results"))
		x := &job.Exchange{Job: d.Decode(arrived{m: m, pos: "jobs/" + strings.Repeat("i", n+1)}), Draining: make(chan struct{})}
		x.Job.Raw = m.Body
		if err := p.handle(t.Context(), x); err != nil {
			t.Fatal(err)
		}
		m = nil
		if all := p.out.to("results"); len(all) > before {
			m = all[len(all)-1]
		}
	}
	return p.out.to("results"), p.out.to("dead"), runs
}

func TestLoopOfRoutesEnds(t *testing.T) {
	t.Parallel()
	results, dead, runs := round(t, &transport.Message{Subject: "jobs", Body: []byte("x")}, ok, 1000)
	if runs != job.MaxHops || len(results) != job.MaxHops || len(dead) != 1 {
		t.Fatalf("%d runs, %d results, %d dead letters: want it to end after %d hops with one dead letter", runs, len(results), len(dead), job.MaxHops)
	}
}

func TestFailureIsNotTheNextStepsJob(t *testing.T) {
	t.Parallel()
	fails := func(context.Context, *job.Job) (*job.Result, error) {
		return nil, job.Errorf(job.KindFailed, "no such order")
	}
	results, dead, runs := round(t, &transport.Message{Subject: "jobs", Body: []byte("x")}, fails, 3)
	if runs != 1 || len(results) != 3 || len(dead) != 1 {
		t.Fatalf("%d runs, %d results, %d dead letters: want one run, and the failure handed on", runs, len(results), len(dead))
	}
	last := results[2]
	if last.Header.Get(transport.HeaderOK) != "false" || last.Header.Get(transport.HeaderKind) != string(job.KindCancelled) || !strings.Contains(string(last.Body), "no such order") {
		t.Fatalf("last result %s with %v", last.Body, last.Header)
	}
	if got := last.Header.Get(transport.HeaderAttempt); got != "0" {
		t.Fatalf("a job that never ran says attempt %s", got)
	}
}

// Two groups that share a store do not take one another's jobs: each runs the message once.
func TestScopesShareAStore(t *testing.T) {
	t.Parallel()
	st, runs := newStore(t), 0
	for _, scope := range []string{"kafka:a", "kafka:b", "redis:a", "kafka:a"} {
		c, err := middleware.NewClaims(st, middleware.ClaimsConfig{Route: "jobs", Partition: "jobs", Scope: scope, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		run := job.RunnerFunc(func(context.Context, *job.Job) (*job.Result, error) { runs++; return &job.Result{}, nil })
		h, err := middleware.Chain(middleware.Config{
			Route: "jobs", To: "results", Publisher: &outbox{}, Claims: c, Sink: &events{}, Log: slog.New(slog.DiscardHandler),
			Runner: func(*job.Job) (job.Runner, error) { return run, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		x := &job.Exchange{Job: &job.Job{ID: "a", Route: "jobs", Source: "s"}, Draining: make(chan struct{})}
		if err := h(t.Context(), x); err != nil || x.Outcome == nil {
			t.Fatalf("scope %s: outcome %+v, error %v", scope, x.Outcome, err)
		}
	}
	if runs != 3 {
		t.Fatalf("%d runs, want one for each of three scopes", runs)
	}
}
