// Package schedule publishes jobs at the times of a cron expression, once for each time however many sidecars run it.
//
// A record in the store says up to which time a schedule's jobs are out. When a time is due, whoever changes the record first has
// claimed it, publishes the job and records that. An owner that ends in between is followed by another once its lease is over, under
// the same job id and message id: nothing is lost, and what is repeated is told by its id. All times are the store's: clocks of
// sidecars may be wrong. While the store is away nothing is published.
package schedule

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/cron"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// CatchUp is what becomes of times that passed while nobody published.
type CatchUp string

// The policies.
const (
	CatchUpNone CatchUp = "none" // nothing
	CatchUpLast CatchUp = "last" // the last of them stands for all
	CatchUpAll  CatchUp = "all"  // each has its job, the last MaxCatchUp of them at most
)

const (
	// Punctual is how much later than due a job may be published whatever the policy; beyond that its time has been missed.
	Punctual = 10 * time.Second
	// MaxCatchUp is how many missed times have their jobs published with CatchUpAll.
	MaxCatchUp = 1000

	lease      = 5 * time.Second // of a claim, by the store's clock
	callTime   = 4 * time.Second // of one call of store or publisher; less than lease
	lookEvery  = time.Minute     // how often the record is read, and with it the store's clock
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
	pollEvery  = 200 * time.Millisecond // how often the record is read while another has a claim
	// keep is how long the record of a schedule that is not run any more stays; longer than any two due times are apart in most.
	keep = 2 * 8760 * time.Hour
)

// Observer is told what schedules do. Its methods must not block.
type Observer interface {
	// ScheduleFired is called for each job that was published, late after it was due.
	ScheduleFired(schedule string, late time.Duration)
	// ScheduleMissed is called for times that will have no job; those before Window are not counted.
	ScheduleMissed(schedule string, n int)
	// ScheduleFailed is called for each try to claim, publish or record that failed.
	ScheduleFailed(schedule string)
}

// Config is one schedule. All fields but Jitter and Clock are required.
type Config struct {
	Name string // the jobs' ids begin with it
	Expr *cron.Expr
	// Spec is the text of the expression and its zone. What was missed under another text is not made up.
	Spec    string
	Message transport.Message // of every job, without the headers that differ
	// Jitter is the longest time by which a job is published later than due. It must be shorter than the time between two jobs.
	Jitter  time.Duration
	CatchUp CatchUp
	Window  time.Duration // how far back CatchUp goes

	Key       string // of the record in the store; the same for all sidecars that share the schedule
	Store     store.Store
	Publisher transport.Publisher
	Observer  Observer
	Log       *slog.Logger
	// Clock replaces the time since New. Only differences count, and they must not change when the host's clock is set.
	Clock func() time.Duration
}

// Schedule is one schedule in one sidecar. Run is called once.
type Schedule struct {
	cfg   Config
	nonce string // differs in every life

	known    bool // what follows is as the store had it last
	rec      record
	rev      int64
	modified time.Time     // by the store's clock
	stood    time.Time     // where the store's clock stood
	seen     time.Duration // when that was by ours, or a little later
	begun    bool          // the record was seen to be of our Spec, or made so
	out      time.Time     // the due time whose job this sidecar has published last
}

// New makes a schedule.
func New(cfg Config) (*Schedule, error) {
	switch {
	case cfg.Name == "" || cfg.Expr == nil || cfg.Key == "" || cfg.Message.Subject == "":
		return nil, errors.New("schedule: name, expression, key and subject are required")
	case cfg.Store == nil || cfg.Publisher == nil || cfg.Observer == nil || cfg.Log == nil:
		return nil, fmt.Errorf("schedule %q: store, publisher, observer and log are required", cfg.Name)
	case cfg.CatchUp != CatchUpNone && cfg.CatchUp != CatchUpLast && cfg.CatchUp != CatchUpAll:
		return nil, fmt.Errorf("schedule %q: catch up %q: want none, last or all", cfg.Name, cfg.CatchUp)
	}
	if cfg.Clock == nil {
		began := time.Now()
		cfg.Clock = func() time.Duration { return time.Since(began) }
	}
	cfg.Log = cfg.Log.With("schedule", cfg.Name)
	return &Schedule{cfg: cfg, nonce: rand.Text()}, nil
}

// Run publishes jobs until ctx ends. What it has claimed by then it still publishes, for a few seconds at most.
func (s *Schedule) Run(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		wait, err := s.step(ctx)
		if err == nil {
			pause = firstPause
		} else {
			wait, pause = pause, min(2*pause, maxPause)
			s.known = false
			s.cfg.Observer.ScheduleFailed(s.cfg.Name)
			s.cfg.Log.Warn("schedule is held up", "err", err, "pause", wait)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// step does what is due, one job at most, and returns how long nothing else will be.
func (s *Schedule) step(ctx context.Context) (time.Duration, error) {
	// What has begun is finished when the sidecar drains.
	ctx, draining := context.WithoutCancel(ctx), ctx.Done()
	if !s.known || s.cfg.Clock()-s.seen >= lookEvery {
		if err := s.look(ctx); err != nil {
			return 0, fmt.Errorf("read what is published: %w", err)
		}
	}
	now := s.now()
	if left := lease - now.Sub(s.modified); s.rec.Due != 0 && s.rec.Nonce != s.nonce && left > 0 {
		s.known = false
		return min(left, pollEvery), nil
	}
	p := s.plan(now)
	if p.due.IsZero() {
		if p.missed > 0 {
			return 0, s.skip(ctx, p)
		}
		return min(max(p.next.Sub(now), time.Millisecond), lookEvery), nil
	}
	if ours, err := s.write(ctx, record{Done: s.rec.Done, Due: p.due.Unix(), Nonce: s.nonce, Spec: s.rec.Spec}); err != nil || !ours {
		return 0, wrap(err, "claim what is due")
	}
	if s.out.Equal(p.due) { // and was not recorded
		return 0, s.record(ctx, p)
	}
	if err := s.publish(ctx, p.due); err != nil {
		select {
		case <-draining: // another need not wait for the lease
			_, rerr := s.write(ctx, record{Done: s.rec.Done, Spec: s.rec.Spec})
			err = errors.Join(err, wrap(rerr, "give the claim back"))
		default:
		}
		return 0, err
	}
	s.out = p.due
	s.cfg.Observer.ScheduleFired(s.cfg.Name, max(s.now().Sub(s.ripe(p.due)), 0))
	s.cfg.Log.Debug("scheduled job published", "due", p.due)
	return 0, s.record(ctx, p)
}

// record writes down that the job of a plan is out, and what was passed over before it.
func (s *Schedule) record(ctx context.Context, p plan) error {
	ours, err := s.write(ctx, record{Done: p.due.Unix(), Spec: s.cfg.Spec})
	if ours && err == nil {
		s.miss(p)
	}
	return wrap(err, "record what is published")
}

// skip writes down that what a plan passes over will have no job.
func (s *Schedule) skip(ctx context.Context, p plan) error {
	ours, err := s.write(ctx, record{Done: p.last.Unix(), Spec: s.cfg.Spec})
	if ours && err == nil {
		s.miss(p)
	}
	return wrap(err, "record what is missed")
}

func (s *Schedule) miss(p plan) {
	if p.missed > 0 {
		s.cfg.Observer.ScheduleMissed(s.cfg.Name, p.missed)
		s.cfg.Log.Warn("times of a schedule have passed without a job", "missed", p.missed, "from", p.first, "to", p.last, "catch_up", s.cfg.CatchUp)
	}
}

// publish writes the job that is due, the same however often and by whom.
func (s *Schedule) publish(ctx context.Context, due time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	m, at := s.cfg.Message, due.UTC().Format(time.RFC3339)
	id := s.cfg.Name + "@" + at
	m.Header = append(m.Header[:len(m.Header):len(m.Header)],
		job.Field{Name: transport.HeaderJobID, Value: id}, job.Field{Name: transport.HeaderMsgID, Value: id},
		job.Field{Name: transport.HeaderSchedule, Value: s.cfg.Name}, job.Field{Name: transport.HeaderScheduledAt, Value: at})
	return wrap(s.cfg.Publisher.Publish(ctx, &m), fmt.Sprintf("publish the job due at %s to %q", at, m.Subject))
}

// now is the store's time, or a little earlier.
func (s *Schedule) now() time.Time { return s.stood.Add(s.cfg.Clock() - s.seen) }

// saw takes note of the store's time in an answer that has just come.
func (s *Schedule) saw(t time.Time) { s.stood, s.seen = t.Round(0), s.cfg.Clock() }

// ripe is when the job of a due time is published.
func (s *Schedule) ripe(due time.Time) time.Time {
	if s.cfg.Jitter <= 0 {
		return due
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s@%d", s.cfg.Name, due.Unix())
	return due.Add(time.Duration(h.Sum64() % uint64(s.cfg.Jitter)))
}

func wrap(err error, doing string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
