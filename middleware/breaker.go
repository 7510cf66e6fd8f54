package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// BreakerConfig says when a module that keeps failing gets no more jobs for a while. What counts is how a job left its module: as trap,
// timeout, internal or upstream, and any other way. Attempts that follow one another without leaving the slot count once.
type BreakerConfig struct {
	Consecutive int           // opens after so many in a row; 0: never
	Percent     int           // opens when so many percent within Window ended like that; 0: never
	Min         int           // for Percent: of at least so many jobs
	Window      time.Duration // for Percent: how far back is counted, to a tenth of it
	Open        time.Duration // how long no job is run; then one tries
}

// Breakers hold the breakers of one route, one for each module. The zero of them, nil, never opens.
type Breakers struct {
	cfg   BreakerConfig
	route string
	log   *slog.Logger
	by    map[string]*breaker
}

type breaker struct {
	module string
	two    *gobreaker.TwoStepCircuitBreaker[struct{}]

	mu    sync.Mutex
	until time.Time // open: when one job may try
	last  error     // the failure that opened it
}

// NewBreakers makes the breakers of a route for the modules that it may lead to; nil where the configuration never opens one.
func NewBreakers(route string, modules []string, cfg BreakerConfig, log *slog.Logger) *Breakers {
	if cfg.Consecutive <= 0 && cfg.Percent <= 0 {
		return nil
	}
	bs := &Breakers{cfg: cfg, route: route, log: log, by: make(map[string]*breaker, len(modules))}
	for _, module := range modules {
		b := &breaker{module: module}
		b.two = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
			Name: module, MaxRequests: 1, Interval: cfg.Window, BucketPeriod: cfg.Window / 10, Timeout: cfg.Open,
			ReadyToTrip:   cfg.trips,
			OnStateChange: func(_ string, _, to gobreaker.State) { bs.changed(b, to) },
			IsExcluded:    func(err error) bool { return errors.Is(err, errNotRun) },
		})
		bs.by[module] = b
	}
	return bs
}

// errNotRun tells a breaker that a job did not get to the module.
var errNotRun = errors.New("the job was not run")

// trips says whether these counts open a breaker.
func (c BreakerConfig) trips(n gobreaker.Counts) bool {
	if c.Consecutive > 0 && int(n.ConsecutiveFailures) >= c.Consecutive {
		return true
	}
	total := int(n.TotalSuccesses) + int(n.TotalFailures)
	return c.Percent > 0 && total >= max(c.Min, 1) && int(n.TotalFailures)*100 >= c.Percent*total
}

// changed notes that a breaker has another state.
func (bs *Breakers) changed(b *breaker, to gobreaker.State) {
	b.mu.Lock()
	if to == gobreaker.StateOpen {
		b.until = time.Now().Add(bs.cfg.Open)
	}
	last := b.last
	b.mu.Unlock()
	switch to {
	case gobreaker.StateOpen:
		bs.log.Warn("breaker open: jobs of the module wait", "route", bs.route, "module", b.module, "for", bs.cfg.Open, "err", last)
	case gobreaker.StateHalfOpen:
		bs.log.Info("breaker half open: one job tries the module", "route", bs.route, "module", b.module)
	case gobreaker.StateClosed:
		bs.log.Info("breaker closed: jobs of the module run again", "route", bs.route, "module", b.module)
	}
}

// Break leaves jobs for later whose module's breaker is open, before they are claimed, and tells it how the others ended. While it is half
// open one job at a time tries. No job fails for it and none loses an attempt.
func Break(bs *Breakers) Stage {
	return func(next job.Handler) job.Handler {
		if bs == nil {
			return next
		}
		return func(ctx context.Context, x *job.Exchange) error {
			b := bs.by[x.Job.Module]
			if b == nil || x.Job.Invalid != nil {
				return next(ctx, x)
			}
			done, err := b.two.Allow()
			if err != nil {
				x.Settlement = job.Settlement{Verb: job.Leave, After: b.wait(err)}
				return nil
			}
			x.Ran = false
			verdict := errNotRun
			defer func() { done(verdict) }()
			err = next(ctx, x)
			if x.Ran && !x.Repeat {
				verdict = b.verdict(x.Err)
			}
			return err
		}
	}
}

// wait is how long a job is left for that may not run.
func (b *breaker) wait(err error) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	spread := rand.N(250 * time.Millisecond) // they are not to come all at once
	if rest := time.Until(b.until); errors.Is(err, gobreaker.ErrOpenState) && rest > 0 {
		return rest + spread
	}
	return 500*time.Millisecond + spread // another one tries
}

// verdict is what the breaker makes of how an attempt ended.
func (b *breaker) verdict(err error) error {
	switch job.KindOf(err) {
	case job.KindTrap, job.KindTimeout, job.KindInternal, job.KindUpstream:
		b.mu.Lock()
		b.last = err
		b.mu.Unlock()
		return err
	case job.KindUnavailable, job.KindExpired, job.KindCancelled:
		return errNotRun // nothing that the module has done
	}
	return nil
}

// BreakerState is the state of one module's breaker.
type BreakerState struct {
	Module string
	State  int   // 0 closed, 1 half open, 2 open
	Err    error // why it is not closed
}

// States returns the state of every breaker, in no particular order.
func (bs *Breakers) States() []BreakerState {
	if bs == nil {
		return nil
	}
	out := make([]BreakerState, 0, len(bs.by))
	for _, b := range bs.by {
		out = append(out, b.state())
	}
	return out
}

func (b *breaker) state() BreakerState {
	s := BreakerState{Module: b.module}
	switch b.two.State() {
	case gobreaker.StateOpen:
		s.State = 2
	case gobreaker.StateHalfOpen:
		s.State = 1
	default:
		return s
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Err = fmt.Errorf("module %q keeps failing; jobs wait, and one at a time tries it from %s on; the last failure: %w", b.module,
		b.until.UTC().Format(time.TimeOnly), b.last)
	return s
}

// Hold is router.WindowConfig's for a route that leads to one module: nothing is fetched while its breaker is open, and one job to try it
// with when it is half open.
func (bs *Breakers) Hold(module string) func() (probe bool, why error) {
	if bs == nil || bs.by[module] == nil {
		return nil
	}
	b := bs.by[module]
	return func() (bool, error) {
		s := b.state()
		return s.State == 1, s.Err
	}
}
