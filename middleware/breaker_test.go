package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// broken is a chain whose module fails while failing is not nil, and a way to send jobs through it.
type broken struct {
	t       *testing.T
	bs      *middleware.Breakers
	p       *process
	st      store.Store
	failing atomic.Pointer[error]
	ran     atomic.Int32
	slow    time.Duration
	n       atomic.Int32
}

func newBroken(t *testing.T, cfg middleware.BreakerConfig) *broken {
	t.Helper()
	b := &broken{t: t, st: newStore(t), bs: middleware.NewBreakers("jobs", []string{"m", "other"}, cfg, slog.New(slog.DiscardHandler))}
	b.p = setup{store: b.st, policy: middleware.RetryPolicy{MaxAttempts: 100, Backoff: time.Hour, MaxBackoff: time.Hour, NoJitter: true}, breakers: b.bs,
		runner: func(context.Context, *job.Job) (*job.Result, error) {
			b.ran.Add(1)
			time.Sleep(b.slow)
			if err := b.failing.Load(); err != nil {
				return nil, *err
			}
			return &job.Result{Body: []byte("out")}, nil
		}}.start(t)
	return b
}

func (b *broken) fail(err error) {
	if err == nil {
		b.failing.Store(nil)
		return
	}
	b.failing.Store(&err)
}

// send takes a new job of a module through the chain.
func (b *broken) send(module string) job.Settlement {
	b.t.Helper()
	id := fmt.Sprint("job", b.n.Add(1))
	x := &job.Exchange{
		Job:      &job.Job{ID: id, Route: "jobs", Module: module, Subject: "jobs", Source: "jobs/" + id, Body: []byte("in")},
		Received: time.Now(), Draining: make(chan struct{}),
	}
	if err := b.p.handle(b.t.Context(), x); err != nil {
		b.t.Fatal(err)
	}
	return x.Settlement
}

func (b *broken) state(module string) int {
	for _, s := range b.bs.States() {
		if s.Module == module {
			return s.State
		}
	}
	return -1
}

// What opens a breaker, and what does not.
func TestBreakerOpens(t *testing.T) {
	t.Parallel()
	trap := job.Errorf(job.KindTrap, "unreachable")
	inARow := middleware.BreakerConfig{Consecutive: 3, Window: time.Minute, Open: time.Minute}
	half := middleware.BreakerConfig{Percent: 50, Min: 6, Window: time.Minute, Open: time.Minute}
	for name, c := range map[string]struct {
		cfg   middleware.BreakerConfig
		ends  string // t trap, u upstream, i internal, o timeout, f failed, r retry, . ok, _ half a minute
		state int
	}{
		"in a row":                       {inARow, "ttt", 2},
		"all kinds":                      {inARow, "tuo", 2},
		"an error that says nothing":     {inARow, "iii", 2},
		"not in a row":                   {inARow, "tt.tt.tt", 0},
		"the guest's verdicts":           {inARow, "fffrrr", 0},
		"half of them":                   {half, "t.t.t.t", 2},
		"half, but of few":               {half, "t.t.t", 0},
		"less than half":                 {half, "t..t..t..", 0},
		"half, but over a long time":     {half, "tt___tt___tt___tt", 0},
		"too many within a moving while": {half, "..___...ttttt", 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroken(t, c.cfg)
				for _, end := range c.ends {
					switch end {
					case 't':
						b.fail(trap)
					case 'u':
						b.fail(job.Errorf(job.KindUpstream, "the shop is away"))
					case 'o':
						b.fail(job.Errorf(job.KindTimeout, "too slow"))
					case 'i':
						b.fail(errors.New("says nothing"))
					case 'f':
						b.fail(job.Errorf(job.KindFailed, "no such order"))
					case 'r':
						b.fail(job.Errorf(job.KindRetry, "not yet"))
					case '.':
						b.fail(nil)
					case '_':
						time.Sleep(30 * time.Second)
						continue
					}
					b.send("m")
				}
				if got := b.state("m"); got != c.state {
					t.Errorf("state %d, want %d", got, c.state)
				}
			})
		})
	}
}

// An open breaker lets jobs wait, unclaimed and without losing an attempt; one at a time tries, and one that succeeds closes it.
func TestBreakerHalfOpens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBroken(t, middleware.BreakerConfig{Consecutive: 2, Window: time.Minute, Open: time.Minute})
		hold := b.bs.Hold("m")
		if probe, why := hold(); probe || why != nil {
			t.Fatalf("held from the start: %v", why)
		}
		b.fail(job.Errorf(job.KindTrap, "unreachable in handle"))
		b.send("m")
		b.send("m")
		if probe, why := hold(); probe || why == nil || !strings.Contains(why.Error(), "unreachable in handle") || !strings.Contains(why.Error(), `"m"`) {
			t.Errorf("probe %t, because: %v", probe, why)
		}
		ran := b.ran.Load()
		for range 5 {
			if s := b.send("m"); s.Verb != job.Leave || s.After < time.Minute-time.Second || s.After > time.Minute+time.Second {
				t.Errorf("settled by %v, want to be left for a minute", s)
			}
		}
		if b.ran.Load() != ran {
			t.Errorf("%d jobs ran", b.ran.Load()-ran)
		}
		if s := b.send("other"); s.Verb != job.Retry { // it fails, too, by itself
			t.Errorf("a job of another module was settled by %v", s)
		}

		time.Sleep(time.Minute + time.Second)
		if probe, why := hold(); !probe || why == nil {
			t.Errorf("probe %t, because: %v, want one", probe, why)
		}
		if s := b.send("m"); s.Verb != job.Retry || b.state("m") != 2 {
			t.Errorf("the first probe was settled by %v, state %d; want open again", s, b.state("m"))
		}
		time.Sleep(time.Minute + time.Second)
		b.fail(nil)
		b.slow = time.Second
		ran = b.ran.Load()
		verbs := make(chan job.Verb, 10)
		for range 10 {
			go func() { verbs <- b.send("m").Verb }()
		}
		left := 0
		for range 10 {
			if <-verbs == job.Leave {
				left++
			}
		}
		if n := b.ran.Load() - ran; n != 1 || left != 9 {
			t.Errorf("%d ran and %d were left, want one and nine", n, left)
		}
		if _, why := hold(); b.state("m") != 0 || why != nil {
			t.Errorf("state %d, held because %v; want closed", b.state("m"), why)
		}
	})
}

// Jobs whose outcome is on record say nothing about the module, and a probe that turns out to be one makes room for the next.
func TestBreakerAndRepeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBroken(t, middleware.BreakerConfig{Consecutive: 1, Window: time.Minute, Open: time.Second})
		again := func() *job.Exchange {
			x := &job.Exchange{Job: &job.Job{ID: "old", Route: "jobs", Module: "m", Subject: "jobs", Source: "jobs/old"}, Received: time.Now()}
			if err := b.p.handle(t.Context(), x); err != nil {
				t.Fatal(err)
			}
			return x
		}
		again()
		b.fail(job.Errorf(job.KindTrap, "unreachable"))
		b.send("m")
		time.Sleep(2 * time.Second)
		if x := again(); !x.Repeat || b.state("m") != 1 {
			t.Fatalf("repeat %t, state %d; want a repeat that leaves it half open", x.Repeat, b.state("m"))
		}
		b.fail(nil)
		if s := b.send("m"); s.Verb != job.Ack || b.state("m") != 0 {
			t.Errorf("settled by %v, state %d", s, b.state("m"))
		}
	})
}

// on_store_error: run. While the store is away jobs run without claims and their results are published; with it back they are claimed.
func TestRunUnclaimed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		var asked atomic.Int32
		st := &lossy{Store: newStore(t)}
		st.before = func(store.Txn) error {
			asked.Add(1)
			if away.Load() {
				return errors.New("connection refused")
			}
			return nil
		}
		var runs atomic.Int32
		whileRunning := func() {}
		p := setup{store: st, policy: threeTries, unclaimed: true, runner: func(context.Context, *job.Job) (*job.Result, error) {
			runs.Add(1)
			whileRunning()
			return &job.Result{Body: []byte("out")}, nil
		}}.start(t)
		away.Store(true)
		began := time.Now()
		for range 2 {
			if x, err := p.trip(t.Context(), "a"); err != nil || x.Settlement.Verb != job.Ack {
				t.Fatalf("settled by %v, error %v", x.Settlement, err)
			}
		}
		if runs.Load() != 2 || len(p.out.to("results")) != 2 || time.Since(began) > 5*time.Second {
			t.Errorf("%d runs, %d results after %v; want two without waiting", runs.Load(), len(p.out.to("results")), time.Since(began))
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("the store was asked %d times within its pause, want once", n)
		}
		away.Store(false)
		time.Sleep(3 * time.Second)
		whileRunning = func() { away.Store(true) } // the outcome cannot be recorded
		if x, err := p.trip(t.Context(), "b"); err != nil || x.Settlement.Verb != job.Ack || len(p.out.to("results")) != 3 {
			t.Fatalf("settled by %v, error %v", x.Settlement, err)
		}
		away.Store(false)
		whileRunning = func() {}
		time.Sleep(time.Minute) // its lease has run out
		p.trip(t.Context(), "c")
		if x, err := p.trip(t.Context(), "c"); err != nil || !x.Repeat || runs.Load() != 4 {
			t.Errorf("repeat %t, error %v, %d runs: want the recorded outcome", x.Repeat, err, runs.Load())
		}
	})
}
