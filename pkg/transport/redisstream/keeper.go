package redisstream

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// keepEvery is how often a source looks for messages that have become due. Whoever schedules one looks again at once and
	// then knows the time; this is for messages of a process that has died since.
	keepEvery = 500 * time.Millisecond
	// dueBatch and dueBytes bound one run of the mover: the server does nothing else meanwhile.
	dueBatch = 200
	dueBytes = 4 << 20
	// sweepEvery is how often idle consumers are removed, sweepAge how long they must have been silent, in leases.
	sweepEvery = time.Minute
	sweepAge   = 20
)

// wakeKeeper makes the keeper look at the schedule, because it has changed.
func (s *source) wakeKeeper() {
	select {
	case s.keeperWake <- struct{}{}:
	default:
	}
}

// keep moves messages that have become due to the stream, looks for those that were lost, and removes consumers that are gone. It runs until Close.
func (s *source) keep() {
	defer close(s.keeperDone)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	go func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	// Not all at once when many start together.
	sweep := time.Now().Add(sweepEvery/2 + rand.N(sweepEvery))
	var look time.Time
	for ctx.Err() == nil {
		wait := s.moveDue(ctx)
		look = s.lookAfter(ctx, look)
		if now := time.Now(); now.After(sweep) {
			sweep = now.Add(sweepEvery/2 + rand.N(sweepEvery))
			s.sweep(ctx)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-s.keeperWake:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// moveDue moves what is due and returns how long to wait before looking again.
func (s *source) moveDue(ctx context.Context) time.Duration {
	for ctx.Err() == nil {
		r, err := dueScript.Run(ctx, s.t.client, []string{s.keys.stream, s.keys.due, s.keys.moved}, dueBatch, dueBytes).Int64Slice()
		if err != nil || len(r) != 2 {
			if ctx.Err() == nil {
				s.log.Warn("moving due messages is delayed", "stream", s.stream, "err", fail("move due messages of stream", s.stream, err))
			}
			return 2 * keepEvery
		}
		switch next := time.Duration(r[1]) * time.Millisecond; {
		case r[1] < 0:
			return keepEvery + rand.N(keepEvery/10)
		case next > 0:
			return min(next, keepEvery)
		}
	}
	return keepEvery
}

// sweep removes consumers that nobody has heard of for long and that hold nothing.
func (s *source) sweep(ctx context.Context) {
	age := max(sweepAge*s.lease, sweepEvery)
	n, err := sweepScript.Run(ctx, s.t.client, []string{s.stream}, s.group, age.Milliseconds(), "").Int()
	switch {
	case err != nil && !noGroup(err) && ctx.Err() == nil:
		s.log.Debug("idle consumers were not removed", "stream", s.stream, "err", err)
	case n > 0:
		s.log.Debug("idle consumers removed", "stream", s.stream, "consumers", n)
	}
}
