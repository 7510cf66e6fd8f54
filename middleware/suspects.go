package middleware

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Suspects is a process's gate, which all its jobs pass before they are claimed, and which shuts for a suspect: a job whose lease ran
// out without a word so often that the next time ends it, or twice. It, or a job that ran beside it, ends processes. It is claimed only
// while no other job is within, so that another crash is its own doing, and that of no other job is counted against it.
//
// The routes of a process share one. Its methods may be called from many goroutines.
type Suspects struct {
	within atomic.Int64 // jobs past the gate; and shut, while it is shut

	mu     sync.Mutex
	opened chan struct{} // closed while the gate is open
	shut   chan struct{} // closed while it is shut
	line   int           // suspects that it is shut for: one after another runs
	since  time.Time     // when it was shut
	until  time.Time     // until when suspects in line may begin
	rested time.Time     // when it may be shut again
	ran    bool          // a suspect has begun since it was shut
	held   bool          // somebody was held back
	missed int           // how often it was shut in vain, less how often not

	turn  chan struct{} // holds the one of the line whose turn it is
	empty chan struct{} // told when the last job within has left

	patience time.Duration
	rest     time.Duration // a factor
}

const (
	// suspectAfter is the number of crashes that make a suspect.
	suspectAfter = 2
	// suspectPatience is how long the gate is shut for jobs within to end and for suspects to begin. It doubles each time that they do
	// not end, up to suspectDoubled times.
	suspectPatience = 2 * time.Second
	suspectDoubled  = 8 // to nine minutes
	// suspectRest is how much longer than it was shut the gate stays open where others were held back, or no suspect ran: others have it
	// for three quarters of the time.
	suspectRest = 3
	// suspectHold is the longest wait of a suspect that is not moved.
	suspectHold = 10 * time.Second
	// gateShut is more than there are ever jobs.
	gateShut = 1 << 40
)

// NewSuspects makes the gate of a process.
func NewSuspects() *Suspects {
	s := &Suspects{
		opened: make(chan struct{}), shut: make(chan struct{}), turn: make(chan struct{}, 1), empty: make(chan struct{}, 1),
		patience: suspectPatience, rest: suspectRest,
	}
	close(s.opened)
	return s
}

// Len is the number of suspects that the gate is shut for, the one that runs included.
func (s *Suspects) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.line
}

// suspect says whether a job with so many crashes, of which limit end it (0: none does), may run only alone. One that has had them
// all does not run any more.
func suspect(crashes, limit int) bool {
	if limit <= 0 {
		return crashes >= suspectAfter
	}
	return crashes < limit && crashes >= max(1, min(suspectAfter, limit-1))
}

// errSuspect says that a job was not claimed, as it is a suspect and others are within the gate.
var errSuspect = errors.New("the job is suspected of ending processes, and runs alone")

// Gate holds jobs back while the gate is shut, before they are claimed, and takes suspects through it alone.
func Gate(s *Suspects, log *slog.Logger) Stage {
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) error {
			if !s.enter(ctx, x.Draining) {
				x.Settlement = job.Settlement{Verb: job.Leave, After: time.Millisecond}
				return nil
			}
			err := next(ctx, x)
			s.leave()
			if !errors.Is(err, errSuspect) {
				return err
			}
			wait := s.alone(ctx, x.Draining)
			if wait > 0 {
				x.Settlement = job.Settlement{Verb: job.Leave, After: wait}
				if wait > suspectHold {
					x.Settlement.Verb = job.Retry
					log.Warn("a suspect waits to run alone", "route", x.Job.Route, "job_id", x.Job.ID, "module", x.Job.Module, "crashes", x.Crashes, "for", wait)
				}
				return nil
			}
			defer s.part()
			log.Warn("a suspect runs alone: it or a job beside it has ended processes", "route", x.Job.Route, "job_id", x.Job.ID, "module", x.Job.Module, "crashes", x.Crashes)
			x.Alone = true
			return next(ctx, x)
		}
	}
}

// enter waits until the gate is open and passes it. It returns false when the process drains or ctx ends first.
func (s *Suspects) enter(ctx context.Context, draining <-chan struct{}) bool {
	for s.within.Add(1) >= gateShut {
		s.leave()
		s.mu.Lock()
		opened := s.opened
		s.held = true
		s.mu.Unlock()
		select {
		case <-opened:
		case <-draining:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// leave is for who has entered.
func (s *Suspects) leave() {
	if s.within.Add(-1) == gateShut {
		select {
		case s.empty <- struct{}{}:
		default:
		}
	}
}

// alone shuts the gate for a suspect, which is not within, and waits until all others have left and its turn has come. It returns 0
// when it has, and part is to be called after the run; or else how long to stay away.
func (s *Suspects) alone(ctx context.Context, draining <-chan struct{}) time.Duration {
	until, wait := s.join()
	if wait > 0 {
		return wait
	}
	late := time.NewTimer(time.Until(until))
	defer late.Stop()
	select {
	case s.turn <- struct{}{}:
		for s.within.Load() != gateShut {
			select {
			case <-s.empty:
				continue
			case <-late.C:
			case <-draining:
			case <-ctx.Done():
			}
			return s.part()
		}
		s.mu.Lock()
		s.ran = true
		s.mu.Unlock()
		return 0
	case <-late.C:
	case <-draining:
	case <-ctx.Done():
	}
	return s.quit()
}

// join shuts the gate, or joins the line while it is shut. It returns until when the suspect may begin, or how long to stay away.
func (s *Suspects) join() (until time.Time, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	switch {
	case s.line > 0 && !now.Before(s.until):
		return until, max(s.pause(now), time.Millisecond)
	case s.line > 0:
	case now.Before(s.rested):
		return until, s.rested.Sub(now)
	default:
		s.since, s.until = now, now.Add(s.patience<<min(s.missed, suspectDoubled))
		s.ran, s.held = false, false
		s.within.Add(gateShut)
		s.opened = make(chan struct{})
		close(s.shut)
	}
	s.line++
	return s.until, 0
}

// part ends the turn of a suspect; see quit.
func (s *Suspects) part() time.Duration {
	<-s.turn
	return s.quit()
}

// quit takes a suspect out of the line, and opens the gate when it was the last. It returns how long suspects are to stay away, at least.
func (s *Suspects) quit() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	wait := max(s.pause(now), time.Millisecond)
	if s.line--; s.line > 0 {
		return wait
	}
	if s.rested = now.Add(s.pause(now)); s.ran {
		s.missed = max(s.missed-1, 0)
	} else {
		s.missed++
	}
	s.shut = make(chan struct{})
	s.within.Add(-gateShut)
	close(s.opened)
	return wait
}

// pause is how long the gate stays open that is opened now. The caller holds mu.
func (s *Suspects) pause(now time.Time) time.Duration {
	if s.ran && !s.held {
		return 0
	}
	return s.rest * now.Sub(s.since)
}

// shutting is closed as soon as the gate is shut.
func (s *Suspects) shutting() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shut
}
