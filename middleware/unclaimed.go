package middleware

import (
	"context"
	"errors"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

const (
	// claimPatience is how long a job waits for a store that is perhaps away, where it may run without.
	claimPatience = 2 * time.Second
	// awayPause is for how long after that the others do not even ask.
	awayPause = 2 * time.Second
)

// errAway says that the store was away a moment ago.
var errAway = errors.New("the store was away a moment ago")

// take asks for a claim; where jobs may run without, for so long only as is worth it.
func (s *claimStage) take(ctx context.Context, x *job.Exchange) (*claim, *taken, error) {
	q := request{open: s.unseen(x.Job), alone: x.Alone, limit: s.policy.crashes(x)}
	if !s.claims.cfg.RunUnclaimed {
		return s.claims.take(ctx, x.Job, q)
	}
	if int64(time.Since(s.claims.begun)) < s.claims.away.Load() {
		return nil, nil, errAway
	}
	tctx, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	cl, t, err := s.claims.take(tctx, x.Job, q)
	if err != nil && ctx.Err() == nil {
		s.claims.away.Store(int64(time.Since(s.claims.begun) + awayPause))
	}
	return cl, t, err
}

// runs says whether a job goes on although the store has failed with err.
func (s *claimStage) runs(err error) bool {
	if !s.claims.cfg.RunUnclaimed || errors.Is(err, errFenced) || errors.Is(err, errRecorded) {
		return false
	}
	if !errors.Is(err, errAway) {
		s.claims.cfg.Log.Warn("the store is away, and the job goes on without it", "route", s.claims.cfg.Route, "err", err)
	}
	return true
}
