// Package middleware is the chain that every job crosses, one file for each stage, in one order:
//
//	Observe → Correlate → DeadLetter → Publish → Break → Gate → Claim → Retry → Deadline → Recover → Run
//
// The order is part of the promise. The outcome is recorded by Claim before Publish and DeadLetter, which stand outside it,
// emit what was recorded: a crash anywhere repeats the same outputs and never makes a second one. DeadLetter stands outside
// Retry, and Recover inside it, so that a panic is one failed attempt. The window settles the message when the chain returns.
//
// Inside Claim an error is how an attempt ended, with its job.Kind; outside it an error means that the chain could not do its
// work (publisher or store away) and that the message is to be left for later.
package middleware

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Stage wraps a handler with one concern.
type Stage func(next job.Handler) job.Handler

// Config is what a route's chain needs.
type Config struct {
	Route string
	// Runner finds the runner of a job; an error of a Kind of its own is the attempt's (KindInvalid for an unknown module).
	Runner func(j *job.Job) (job.Runner, error)

	// Admit is asked before each attempt, outside of its Timeout; nil admits all.
	Admit Admit

	To         string // subject of results; empty for none
	DeadLetter string // subject of dead letters; empty for none
	Envelope   transport.Envelope
	Publisher  transport.Publisher
	Replier    transport.Publisher

	Worker string  // this process, as DRASM results name it
	Claims *Claims // nil: nothing is claimed or recorded (dedup: off)
	// Suspects is shared by all routes of a process; nil makes one of the route's own.
	Suspects *Suspects
	// ClaimAlways has jobs claimed before they run even where running them twice could not be seen.
	ClaimAlways bool
	Retry       RetryPolicy
	// Breakers may be nil: no module is spared.
	Breakers *Breakers
	Timeout  time.Duration // of one attempt; 0 leaves it to the module's limits

	Sink event.Sink
	Log  *slog.Logger
}

// Chain builds the chain of a route.
func Chain(cfg Config) (job.Handler, error) {
	switch {
	case cfg.Runner == nil || cfg.Publisher == nil || cfg.Sink == nil || cfg.Log == nil:
		return nil, errors.New("chain: runner, publisher, sink and log are required")
	case cfg.Route == "":
		return nil, errors.New("chain: the route has no name")
	}
	if cfg.Replier == nil {
		cfg.Replier = cfg.Publisher
	}
	if cfg.Suspects == nil {
		cfg.Suspects = NewSuspects()
	}
	out := &outputs{cfg: cfg}
	h := Run(cfg.Runner)
	for _, s := range []Stage{
		Recover(cfg.Log),
		Deadline(cfg.Timeout, cfg.Admit),
		Retry(cfg.Retry, cfg.Suspects, cfg.Sink),
		Claim(cfg.Claims, cfg.Retry, cfg.Worker, out.check, pure(cfg), out.joint(), cfg.Sink),
		Gate(cfg.Suspects, cfg.Log),
		blame(job.PartStore),
		Break(cfg.Breakers),
		Publish(out),
		DeadLetter(out),
		blame(job.PartPublisher),
		Correlate(),
		Observe(cfg.Sink),
	} {
		h = s(h)
	}
	return h, nil
}

// pure asks a job's runner whether it is a job.Pure.
func pure(cfg Config) func(*job.Job) bool {
	if cfg.ClaimAlways {
		return nil
	}
	return func(j *job.Job) bool {
		r, err := cfg.Runner(j)
		p, ok := r.(job.Pure)
		return err == nil && ok && p.Pure()
	}
}

// blame names the part that errors of the stages within come from.
func blame(part job.Part) Stage {
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) error {
			err := next(ctx, x)
			if err != nil && job.PartOf(err) == "" {
				return &job.Trouble{Part: part, Err: err}
			}
			return err
		}
	}
}

// Run is the chain's end: it runs the job.
func Run(find func(j *job.Job) (job.Runner, error)) job.Handler {
	return func(ctx context.Context, x *job.Exchange) error {
		j := x.Job
		x.Took, x.Ran = 0, false
		if j.Invalid != nil {
			return invalid(j.Invalid)
		}
		if err := failedBefore(j); err != nil {
			return err
		}
		if !j.ExpiresAt.IsZero() && time.Now().After(j.ExpiresAt) {
			return job.Errorf(job.KindExpired, "the job expired at %s, before it could run", j.ExpiresAt.UTC().Format(time.RFC3339))
		}
		r, err := find(j)
		if err != nil {
			return err
		}
		x.Ran = true
		begun := time.Now()
		defer func() { x.Took = time.Since(begun) }()
		res, err := r.Run(ctx, j)
		x.Result = res
		return err
	}
}

// failedBefore says that a job is the failure result of the step before it, in a chain of routes: it is not run, and its own
// result says so in turn.
func failedBefore(j *job.Job) error {
	ok, isResult := j.Header.Lookup(transport.HeaderOK)
	if !isResult || ok != "false" {
		return nil
	}
	var problem struct {
		Detail string `json:"detail"`
	}
	if err := json.Unmarshal(j.Body, &problem); err != nil || problem.Detail == "" {
		problem.Detail = "no detail"
	}
	return job.Errorf(job.KindCancelled, "job %q, whose result this is, failed (%s): %s",
		job.CleanText(j.Header.Get(transport.HeaderResultOf)), job.CleanText(j.Header.Get(transport.HeaderKind)), problem.Detail)
}

func invalid(err error) error {
	var e *job.Error
	if errors.As(err, &e) {
		return err
	}
	return &job.Error{Kind: job.KindInvalid, Err: err}
}
