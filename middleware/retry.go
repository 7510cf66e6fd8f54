package middleware

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// RetryPolicy says how often and when a failed job is tried again.
type RetryPolicy struct {
	MaxAttempts int           // attempts in all, the first included; 0: no limit
	MaxCrashes  int           // executions that end without a word before the job is dead; 0: no limit
	Backoff     time.Duration // ceiling of the first wait; doubles with each attempt
	MaxBackoff  time.Duration // ceiling of every wait, the guest's own wishes included
	NoJitter    bool          // wait the whole ceiling instead of a random part of it
	// MaxHold is the longest wait that holds a slot; a longer one is moved. 0 means 2 s.
	MaxHold time.Duration
}

// exhausted wraps the failure of the last attempt that a job was granted.
type exhausted struct{ error }

func (e exhausted) Unwrap() error { return e.error }

// later wraps a failure after which the job is to be tried again, but not from here.
type later struct {
	error
	after time.Duration
}

func (l later) Unwrap() error { return l.error }

// Retry makes another attempt after one that failed, as the failure's Kind and the policy allow. Short waits hold the slot;
// for longer ones the failure is handed on with the wait, and the message is moved. The number of the attempt is counted
// durably before it is made.
func Retry(p RetryPolicy, suspects *Suspects, sink event.Sink) Stage {
	if p.MaxHold == 0 {
		p.MaxHold = 2 * time.Second
	}
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) error {
			for {
				err := next(ctx, x)
				if parked(err) != nil {
					return err // no attempt, and not over
				}
				sink.Emit(event.Event{Type: event.Attempted, Time: time.Now(), Job: x.Job, Kind: job.KindOf(err), Err: err, Attempt: x.Job.Attempt, Duration: took(x), Unclaimed: x.Unclaimed})
				if err == nil || !job.KindOf(err).Fate().Counts || !job.KindOf(err).Fate().Retry {
					return err
				}
				x.Err = err
				if p.spent(x) {
					return exhausted{err}
				}
				wait := p.For(x.Job).Wait(x.Job.Attempt-x.Crashes, job.RetryAfterOf(err))
				sink.Emit(event.Event{Type: event.Retried, Time: time.Now(), Job: x.Job, Kind: job.KindOf(err), Err: err, Attempt: x.Job.Attempt, Delay: wait})
				if rest := p.hold(ctx, x, suspects, wait); rest > 0 {
					return later{err, rest}
				}
				if x.NextAttempt != nil {
					if nerr := x.NextAttempt(ctx); nerr != nil {
						return later{err, wait} // this one is counted, and the next is not begun
					}
				}
				x.Job.Attempt++
				x.Result = nil
			}
		}
	}
}

// spent says whether the job has had all its attempts. Those that crashed do not count, unless only one was granted at all:
// who allows one attempt does not want a second.
func (p RetryPolicy) spent(x *job.Exchange) bool {
	limit := p.attempts(x)
	n := x.Job.Attempt - x.Crashes
	if limit == 1 {
		n = x.Job.Attempt
	}
	return limit > 0 && n >= limit
}

// attempts is how many attempts the job is granted: what the policy says, or fewer where the job asks for fewer.
func (p RetryPolicy) attempts(x *job.Exchange) int {
	if m := x.Job.MaxAttempts; m > 0 && (p.MaxAttempts == 0 || m < p.MaxAttempts) {
		return m
	}
	return p.MaxAttempts
}

// crashes is how many executions may end without a word before the job is dead; 0 for no limit.
func (p RetryPolicy) crashes(x *job.Exchange) int {
	if p.attempts(x) == 1 {
		return 1
	}
	return p.MaxCrashes
}

// For is the policy for one job, whose own Backoff may be longer and whose own MaxBackoff may be shorter: no wait of its retries
// has a ceiling below Backoff or above MaxBackoff, whatever the job asks for.
func (p RetryPolicy) For(j *job.Job) RetryPolicy {
	if p.MaxBackoff <= 0 {
		p.MaxBackoff = time.Hour
	}
	if j.MaxBackoff > 0 {
		p.MaxBackoff = min(p.MaxBackoff, max(j.MaxBackoff, p.Backoff))
	}
	if j.Backoff > 0 {
		p.Backoff = min(p.MaxBackoff, max(j.Backoff, p.Backoff))
	}
	return p
}

// Wait returns how long to wait after the n-th failed attempt (from 1): the wish, if there is one, else a random time up to
// Backoff·2ⁿ⁻¹ ("full jitter"), never more than MaxBackoff and never less than a hundredth of the ceiling: whatever a guest
// wishes, no job runs hot.
func (p RetryPolicy) Wait(n int, wish time.Duration) time.Duration {
	limit := p.MaxBackoff
	if limit <= 0 {
		limit = time.Hour
	}
	ceil := limit
	if n = max(n, 1); p.Backoff <= limit>>min(n-1, 63) {
		ceil = p.Backoff << (n - 1)
	}
	if p.Backoff <= 0 {
		ceil = min(limit, time.Millisecond)
	}
	wait := ceil
	switch {
	case wish > 0:
		wait = min(wish, limit)
	case !p.NoJitter:
		wait = rand.N(ceil + 1)
	}
	return max(wait, ceil/100, time.Millisecond)
}

// hold waits in the slot and returns what is left of the wait when it may not, or no longer, wait here.
func (p RetryPolicy) hold(ctx context.Context, x *job.Exchange, suspects *Suspects, wait time.Duration) time.Duration {
	if wait > p.MaxHold || x.Alone {
		return wait // alone it holds up all others
	}
	end := time.Now().Add(wait)
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return 0
	case <-x.Draining:
	case <-suspects.shutting(): // a suspect waits for this one
	case <-ctx.Done():
	}
	return max(time.Until(end), time.Millisecond)
}

func took(x *job.Exchange) time.Duration {
	if x.Result != nil {
		return x.Result.Duration
	}
	return x.Took
}
