package middleware

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/crash"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Claim takes the job's id before the job runs and records its whole outcome after, result or failure. A job seen again gets
// the recorded outcome without being run; one that another owner holds is left for the rest of that lease; one that waits for
// its retry is moved on. A process that dies leaves a lease behind that runs out: the next owner counts the crash.
//
// check says why an outcome could never be published; such an outcome is recorded as a failure instead. Without claims (nil)
// nothing is taken or recorded, and the attempt counts from what the message says.
//
// pure says of which jobs nobody could see that they ran twice. One of them, in a message that was never delivered before, runs
// without a claim: the first to record its outcome is right, and whoever comes second emits that one.
func Claim(claims *Claims, policy RetryPolicy, worker string, check func(*job.Job, *job.Outcome) error, pure func(*job.Job) bool,
	ending func(context.Context, *job.Exchange) transport.Ending, sink event.Sink) Stage {
	return func(next job.Handler) job.Handler {
		s := &claimStage{claims: claims, policy: policy, worker: worker, check: check, pure: pure, ending: ending, sink: sink, next: next}
		if claims == nil {
			return s.unclaimed
		}
		return s.claimed
	}
}

// endTimeout bounds each try to write how a claim ends. It is no longer than what the window gives to jobs that it cancels.
const endTimeout = 4 * time.Second

// soon returns a context that ends after endTimeout or a little earlier, whatever becomes of the job. Jobs share it: to make one for each
// costs as much as a tenth of all that is done for a small job.
func (c *Claims) soon() context.Context {
	now := time.Now()
	c.ends.Lock()
	defer c.ends.Unlock()
	if c.ends.ctx == nil || now.After(c.ends.until) {
		c.ends.until = now.Add(endTimeout / 16)
		c.ends.ctx, c.ends.cancel = context.WithTimeout(context.Background(), endTimeout)
	}
	return c.ends.ctx
}

type claimStage struct {
	claims *Claims
	policy RetryPolicy
	worker string
	check  func(*job.Job, *job.Outcome) error
	pure   func(*job.Job) bool
	ending func(context.Context, *job.Exchange) transport.Ending // nil: every job ends step by step
	sink   event.Sink
	next   job.Handler
}

// busy is how long a delivery is left whose job this process has in hand for another. Those that wait for one job are spread: if all
// came at once, all but one would be left again.
func (c *Claims) busy() time.Duration {
	return time.Millisecond + rand.N(min(c.cfg.Lease/8, 250*time.Millisecond))
}

// unclaimed runs the job and keeps its outcome for this trip only.
func (s *claimStage) unclaimed(ctx context.Context, x *job.Exchange) error {
	x.Job.Attempt++
	x.Amend = func(_ context.Context, o *job.Outcome) error { x.Outcome = o; return nil }
	err := s.next(ctx, x)
	x.Err = err
	if park := parked(err); park != nil {
		x.Job.Attempt--
		x.Settlement = job.Settlement{Verb: job.Retry, After: park.For}
		return nil
	}
	if after, unfinished := s.unfinished(err); unfinished != job.Ack {
		if unfinished == job.Leave {
			return err
		}
		x.Settlement = job.Settlement{Verb: unfinished, After: after}
		return nil
	}
	x.Outcome = s.outcome(x, err)
	return nil
}

func (s *claimStage) claimed(ctx context.Context, x *job.Exchange) error {
	cl, t, err := s.take(ctx, x)
	for p := (patience{}); x.Alone && err != nil && !s.runs(err) && p.pause < time.Second && p.wait(ctx); {
		// It may have been claimed, and nobody heard of it: if it were left now, what somebody else does would count against it.
		cl, t, err = s.take(ctx, x)
	}
	switch {
	case err != nil && s.runs(err):
		x.Unclaimed = job.UnclaimedStore
		return s.unclaimed(ctx, x)
	case err != nil:
		return err
	case t == nil:
	case t.outcome != nil, t.silent:
		s.repeat(x, t)
		return nil
	case t.suspect > 0:
		x.Crashes = t.suspect
		return errSuspect
	case t.leave > 0:
		x.Settlement = job.Settlement{Verb: job.Leave, After: t.leave}
		return nil
	default:
		x.Settlement = job.Settlement{Verb: job.Retry, After: t.retry}
		if t.retry < time.Second {
			x.Settlement.Verb = job.Leave // a move would cost more than the wait
		}
		return nil
	}
	defer cl.forget()

	run := &cl.run
	run.Begin(ctx)
	defer run.Cancel(nil)
	cl.mu.Lock()
	cl.running = true // also of one that is not claimed: with its second attempt it is, and may be lost
	rec, crashed := cl.rec, cl.crashed
	if cl.open {
		x.Unclaimed = job.UnclaimedPure
	}
	cl.mu.Unlock()
	x.Job.Attempt, x.Crashes = rec.Attempts, rec.Crashes
	x.NextAttempt = func(ctx context.Context) error {
		err := cl.next(ctx)
		switch {
		case err == nil:
			x.Unclaimed = ""
		case s.runs(err):
			x.Unclaimed = job.UnclaimedStore
		default:
			return err
		}
		return nil
	}
	x.Amend = s.amend(cl, x)
	if crashed {
		s.sink.Emit(event.Event{Type: event.Crashed, Time: time.Now(), Job: x.Job, Attempt: rec.Attempts})
	}

	if limit := s.policy.crashes(x); limit > 0 && rec.Crashes >= limit {
		err = exhausted{job.Errorf(job.KindTrap, "the process that ran it ended without a word %d times", rec.Crashes)}
	} else {
		crash.At(crash.AfterClaim)
		err = s.next(run, x)
		crash.At(crash.AfterRun)
	}
	x.Err = err
	if park := parked(err); park != nil {
		return s.putBack(ctx, cl, x, step{verb: parkIt, wait: park.For})
	}
	switch after, verb := s.unfinished(err); verb {
	case job.Retry:
		return s.putBack(ctx, cl, x, step{verb: retryIt, wait: after, err: job.CleanText(err.Error())})
	case job.Leave:
		if errors.Is(err, errFenced) {
			return s.fenced(x, err)
		}
		if perr := s.putBack(ctx, cl, x, step{verb: returnIt, err: job.CleanText(err.Error())}); perr != nil {
			return perr
		}
		return err
	}
	x.Outcome = s.outcome(x, err)
	return s.record(ctx, cl, x, s.ending)
}

// unseen says whether a job needs no claim before it runs: running it twice could not be seen, and this message cannot have been
// delivered before. A job that may be tried once only is always claimed first, and so is one that was moved, whose record counts
// its attempts.
func (s *claimStage) unseen(j *job.Job) bool {
	return !j.Redelivered && !j.Moved && j.Invalid == nil && s.policy.MaxAttempts != 1 && j.MaxAttempts != 1 && s.pure != nil && s.pure(j)
}

// repeat hands on what was recorded before, to be emitted again; nothing where its output is no longer kept.
func (s *claimStage) repeat(x *job.Exchange, t *taken) {
	x.Outcome, x.Repeat = t.outcome, true
	if t.outcome != nil {
		x.Job.Attempt = t.outcome.Attempts
		x.Amend = s.amend(t.claim, x)
	}
}

// amend replaces the outcome that cl recorded.
func (s *claimStage) amend(cl *claim, x *job.Exchange) func(context.Context, *job.Outcome) error {
	return func(ctx context.Context, o *job.Outcome) error {
		x.Outcome = o
		return s.record(ctx, cl, x, nil)
	}
}

// fenced ends the trip of a job that another owner has taken: what that one records is what counts.
func (s *claimStage) fenced(x *job.Exchange, err error) error {
	s.sink.Emit(event.Event{Type: event.Fenced, Time: time.Now(), Job: x.Job, Attempt: x.Job.Attempt, Err: err})
	x.Outcome, x.Amend = nil, nil
	x.Settlement = job.Settlement{Verb: job.Leave, After: 100 * time.Millisecond}
	return nil
}

// parked returns what a job waits for that is neither failed nor over; nil for any other.
func parked(err error) *job.Park {
	if err == nil {
		return nil // most jobs, for which errors.As would make room to look
	}
	var park *job.Park
	errors.As(err, &park)
	return park
}

// unfinished says how a job that has no outcome yet goes on: Retry after a wait, Leave because the attempt was given up and
// does not count; Ack means that the error, or its absence, is the outcome.
func (s *claimStage) unfinished(err error) (time.Duration, job.Verb) {
	if err == nil {
		return 0, job.Ack
	}
	var l later
	if errors.As(err, &l) {
		return l.after, job.Retry
	}
	var e exhausted
	if !errors.As(err, &e) && !job.KindOf(err).Fate().Counts && job.KindOf(err).Fate().Retry {
		return 0, job.Leave
	}
	return 0, job.Ack
}

// outcome is what is recorded of a finished job. What a producer wrote is in it as it is emitted, and no longer, so that it fits into any
// store.
func (s *claimStage) outcome(x *job.Exchange, err error) *job.Outcome {
	j := x.Job
	o := &job.Outcome{
		Kind: job.KindOf(err), Attempts: j.Attempt, Crashes: x.Crashes, Source: j.Source, CorrelationID: job.CleanText(j.CorrelationID),
		Module: job.CleanText(j.Module), Worker: s.worker, Duration: took(x), FinishedAt: time.Now().UnixMilli(),
	}
	if !x.Ran {
		o.Attempts = max(0, o.Attempts-1) // this one was refused before it began
	}
	if r := x.Result; r != nil {
		o.Module, o.Digest, o.Fuel = r.Module, r.Digest, r.Fuel
		if err == nil {
			o.Body, o.Header, o.TypeName = r.Body, r.Header, r.TypeName
		}
	}
	if err != nil {
		var e exhausted
		var ran *job.Ran
		o.Err, o.Dead = job.CleanText(err.Error()), errors.As(err, &e)
		if errors.As(err, &ran) {
			o.Digest = ran.Digest
		}
		return o
	}
	if cerr := s.check(j, o); cerr != nil {
		x.Err = cerr
		o.Kind, o.Err, o.Body, o.Header = job.KindOf(cerr), job.CleanText(cerr.Error()), nil, nil
	}
	return o
}

// record makes the outcome last, and ends the job's message with it where ending, which may be nil, makes that possible. While the
// store is away it tries again until ctx ends: the job has run, and running it twice is what claims are there to avoid.
func (s *claimStage) record(ctx context.Context, cl *claim, x *job.Exchange, ending func(context.Context, *job.Exchange) transport.Ending) error {
	if limit := s.claims.st.MaxValue(); limit > 0 && len(x.Outcome.Body)+x.Outcome.Header.Size()+2048 > limit {
		o := *x.Outcome
		o.Kind, o.Body, o.Header = job.KindLimit, nil, nil
		o.Err = fmt.Sprintf("the result is %d bytes, the store takes %d: make the result smaller or raise the store's limit", len(x.Outcome.Body), limit)
		x.Outcome = &o
	}
	for p := (patience{}); ; {
		err := s.finish(cl, x, ending)
		switch {
		case err == nil:
			crash.At(crash.AfterRecord)
			return nil
		case errors.Is(err, errFenced):
			return s.fenced(x, err)
		case errors.Is(err, errRecorded):
			t, rerr := cl.recorded(ctx, &cl.rec)
			if rerr != nil {
				x.Outcome = nil
				return rerr
			}
			s.repeat(x, t)
			return nil
		case errors.Is(err, store.ErrTooLarge) && x.Outcome.Body != nil:
			o := *x.Outcome
			o.Kind, o.Err, o.Body, o.Header = job.KindLimit, job.CleanText(err.Error()), nil, nil
			x.Outcome = &o
			continue
		case s.runs(err):
			return nil
		}
		if !p.wait(ctx) {
			x.Outcome = nil
			return fmt.Errorf("record the outcome: %w", err)
		}
	}
}

// patience is what waits for a store that is away, longer each time.
type patience struct{ pause time.Duration }

// wait returns false when ctx ends.
func (p *patience) wait(ctx context.Context) bool {
	p.pause = min(max(2*p.pause, 20*time.Millisecond), 2*time.Second)
	t := time.NewTimer(p.pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// finish writes the outcome, though the job's context may have ended with the drain timeout: the store is still there.
func (s *claimStage) finish(cl *claim, x *job.Exchange, ending func(context.Context, *job.Exchange) transport.Ending) error {
	var end transport.Ending
	wctx := s.claims.soon()
	if ending != nil {
		end = ending(wctx, x)
	}
	ended, err := cl.finish(wctx, x.Outcome, end)
	if err != nil || !ended {
		return err
	}
	end.Settled()
	x.Published, x.Settlement = true, job.Settlement{Verb: job.Settled}
	return nil
}

// putBack ends a claim without an outcome: the job waits for its retry, or, where the attempt was given up, is free at once
// with the attempt uncounted. While the store is away it tries again until ctx ends, as for an outcome: an attempt that failed and
// is not written down would not count.
func (s *claimStage) putBack(ctx context.Context, cl *claim, x *job.Exchange, st step) error {
	for p := (patience{}); ; {
		_, err := cl.put(s.claims.soon(), st, s.claims.keep()+st.wait, extras{}) // as for finish
		switch {
		case errors.Is(err, errFenced):
			return s.fenced(x, err)
		case err == nil, s.runs(err):
			x.Settlement = job.Settlement{Verb: job.Retry, After: st.wait}
			return nil
		case !p.wait(ctx):
			return fmt.Errorf("record the retry: %w", err)
		}
	}
}
