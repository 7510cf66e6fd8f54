package schedule_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/cron"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/schedule"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/memkv"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// world is what outlives the replicas of a schedule: a store, and the broker with what was published.
type world struct {
	t     *testing.T
	store store.Store
	cfg   schedule.Config

	mu     sync.Mutex
	out    []published
	fired  int
	missed int
	failed int
	down   error // of the publisher
}

type published struct {
	m  transport.Message
	at time.Time
}

func (w *world) ScheduleFired(string, time.Duration) { w.count(&w.fired, 1) }
func (w *world) ScheduleMissed(_ string, n int)      { w.count(&w.missed, n) }
func (w *world) ScheduleFailed(string)               { w.count(&w.failed, 1) }
func (w *world) count(what *int, n int)              { w.mu.Lock(); defer w.mu.Unlock(); *what += n }
func (w *world) MaxBytes() int                       { return 0 }
func (w *world) setDown(err error)                   { w.mu.Lock(); defer w.mu.Unlock(); w.down = err }

func (w *world) Publish(_ context.Context, ms ...*transport.Message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down != nil {
		return w.down
	}
	for _, m := range ms {
		w.out = append(w.out, published{*m, time.Now()})
	}
	return nil
}

// newWorld is one for a schedule, every second unless expr says otherwise.
func newWorld(t *testing.T, expr, zone string) *world {
	t.Helper()
	st, err := memkv.Open(memkv.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	w := &world{t: t, store: st}
	w.cfg = schedule.Config{
		Name: "s", Message: transport.Message{Subject: "jobs", Body: []byte("b"), Header: job.Header{{Name: "X", Value: "y"}}},
		CatchUp: schedule.CatchUpLast, Window: 24 * time.Hour, Key: store.Key("schedules", "s"), Log: slog.New(slog.DiscardHandler),
	}
	w.say(expr, zone)
	return w
}

// say changes the expression of the replicas that are started from now on.
func (w *world) say(expr, zone string) {
	w.t.Helper()
	loc, err := cron.Zone(zone)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.cfg.Expr, err = cron.Parse(expr, loc); err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Spec = expr + " " + zone
}

// start runs a replica; the returned function drains it.
func (w *world) start(change func(*schedule.Config)) (stop func()) {
	w.t.Helper()
	cfg := w.cfg
	cfg.Store, cfg.Publisher, cfg.Observer = w.store, w, w
	if change != nil {
		change(&cfg)
	}
	s, err := schedule.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	return func() { cancel(); <-done }
}

// jobs are the due times of what was published, in order, after a check that each says the same everywhere.
func (w *world) jobs() []time.Time {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var dues []time.Time
	for _, p := range w.out {
		due, err := time.Parse(time.RFC3339, p.m.Header.Get("Wasm-Scheduled-At"))
		if err != nil {
			w.t.Fatal(err)
		}
		id := "s@" + due.UTC().Format(time.RFC3339)
		for name, want := range map[string]string{"Wasm-Job-Id": id, "Nats-Msg-Id": id, "Wasm-Schedule": "s", "X": "y"} {
			if got := p.m.Header.Get(name); got != want {
				w.t.Errorf("header %s is %q, want %q", name, got, want)
			}
		}
		if p.at.Before(due) {
			w.t.Errorf("the job due at %s was published at %s", due, p.at)
		}
		dues = append(dues, due)
	}
	return dues
}

// seconds holds the published jobs equal to one for each second from first on, n of them, each published within a second.
func (w *world) seconds(first time.Time, n int) {
	w.t.Helper()
	dues := w.jobs()
	for i, due := range dues {
		if want := first.Add(time.Duration(i) * time.Second); !due.Equal(want) {
			w.t.Fatalf("job %d is due at %s, want %s", i, due, want)
		}
		if late := w.out[i].at.Sub(due); late > time.Second {
			w.t.Errorf("job %d was %s late", i, late)
		}
	}
	if len(dues) != n {
		w.t.Errorf("%d jobs, want %d", len(dues), n)
	}
}

// begin is where the time of a bubble stands at first, plus a second.
func begin() time.Time { return time.Now().Truncate(time.Second).Add(time.Second) }

// R-03, S-16, R-22: however many replicas there are, whatever their clocks say and whoever is restarted, each due time has one job.
func TestReplicasPublishOnce(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 5; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, first := newWorld(t, "* * * * * *", "UTC"), begin()
				var stops []func()
				began := time.Now()
				for i := range n {
					skew := []time.Duration{0, time.Minute, -time.Minute, 25 * time.Hour, -time.Second}[i]
					stops = append(stops, w.start(func(c *schedule.Config) { c.Clock = func() time.Duration { return time.Since(began) + skew } }))
				}
				time.Sleep(60*time.Second + 10*time.Millisecond)
				for i := range n { // one after another
					stops[i]()
					stops[i] = w.start(nil)
					time.Sleep(5 * time.Second)
				}
				for _, stop := range stops {
					stop()
				}
				w.seconds(first, 60+5*n)
				if w.fired != 60+5*n || w.missed != 0 || w.failed != 0 {
					t.Errorf("fired %d, missed %d, failed %d", w.fired, w.missed, w.failed)
				}
			})
		})
	}
}

// mortal is what one replica has of store and publisher: at a given call it dies, before or after the call took place.
type mortal struct {
	*world
	store.Store
	left  int // calls of the kind that it survives
	after bool
	kind  string
	dead  chan struct{}
	back  atomic.Bool // lives again
}

func (m *mortal) MaxBytes() int { return 0 }

var errDead = errors.New("dead")

func (m *mortal) call(ctx context.Context, kind string, do func() error) error {
	select {
	case <-m.dead:
		if m.back.Load() {
			return do()
		}
		return errDead
	default:
	}
	dies := kind == m.kind && m.left == 0
	if kind == m.kind {
		m.left--
	}
	if dies && !m.after {
		close(m.dead)
		return errDead
	}
	err := do()
	if dies {
		close(m.dead)
		return errDead
	}
	return err
}

func (m *mortal) Txn(ctx context.Context, t store.Txn) (r store.Reply, err error) {
	kind := "look"
	if len(t.Then) > 0 {
		kind = "write"
	}
	err = m.call(ctx, kind, func() (err error) { r, err = m.Store.Txn(ctx, t); return err })
	return r, err
}

func (m *mortal) Publish(ctx context.Context, ms ...*transport.Message) error {
	return m.call(ctx, "publish", func() error { return m.world.Publish(ctx, ms...) })
}

// S-16: a replica that dies, wherever it is, takes no due time with it: another publishes the job, at most a second time under its id.
func TestDeathLosesNothing(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"write", "publish"} {
		for _, after := range []bool{false, true} {
			for n := range 6 {
				t.Run(fmt.Sprintf("%s %d after=%v", kind, n, after), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						w, first := newWorld(t, "@every 1s", "UTC"), begin()
						m := &mortal{world: w, Store: w.store, left: n, after: after, kind: kind, dead: make(chan struct{})}
						stopDead := w.start(func(c *schedule.Config) { c.Store, c.Publisher = m, m })
						<-m.dead
						go stopDead()
						stop := w.start(nil)
						time.Sleep(20*time.Second + 10*time.Millisecond)
						stop()
						all := w.jobs()
						dues := slices.Compact(slices.Clone(all))
						if n := len(all) - len(dues); n > 1 {
							t.Errorf("%d jobs were published twice", n)
						}
						for i, due := range dues {
							if want := first.Add(time.Duration(i) * time.Second); !due.Equal(want) {
								t.Fatalf("job %d is due at %s, want %s", i, due, want)
							}
						}
						if last := dues[len(dues)-1]; time.Since(last) > 1100*time.Millisecond {
							t.Errorf("the last job was due at %s, now it is %s", last, time.Now())
						}
						if w.missed != 0 {
							t.Errorf("%d missed", w.missed)
						}
					})
				})
			}
		}
	}
}

// S-16: what becomes of the times that pass while nobody runs.
func TestCatchUp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		policy schedule.CatchUp
		window time.Duration
		away   time.Duration
		made   int // jobs for what was missed
		missed int
	}{
		{schedule.CatchUpNone, time.Hour, 2 * time.Hour, 0, -1},
		{schedule.CatchUpLast, 3 * time.Hour, 2 * time.Hour, 1, 119},
		{schedule.CatchUpAll, 3 * time.Hour, 2 * time.Hour, 120, 0},
		{schedule.CatchUpAll, time.Hour, 2 * time.Hour, 60, 0},
		{schedule.CatchUpAll, 168 * time.Hour, 100 * time.Hour, schedule.MaxCatchUp, 5000},
		{schedule.CatchUpNone, time.Hour, 9 * time.Second, 0, 0}, // a restart in good time
	} {
		t.Run(fmt.Sprintf("%s %s of %s", tt.policy, tt.window, tt.away), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "30 * * * * *", "UTC")
				w.cfg.CatchUp, w.cfg.Window = tt.policy, tt.window
				time.Sleep(15 * time.Second)
				stop := w.start(nil)
				time.Sleep(time.Minute)
				stop() // at 01:15
				time.Sleep(tt.away)
				stop = w.start(nil)
				defer stop()
				synctest.Wait()
				time.Sleep(5 * time.Second)
				dues := w.jobs()
				if len(dues) != 1+tt.made {
					t.Fatalf("%d jobs, want one and %d for what was missed", len(dues), tt.made)
				}
				for i := 2; i < len(dues); i++ {
					if dues[i].Sub(dues[i-1]) != time.Minute {
						t.Fatalf("after %s comes %s", dues[i-1], dues[i])
					}
				}
				if tt.made > 0 && time.Since(dues[len(dues)-1]) > time.Minute {
					t.Errorf("the last job was due at %s", dues[len(dues)-1])
				}
				if tt.missed >= 0 && w.missed != tt.missed || tt.missed < 0 && w.missed == 0 {
					t.Errorf("%d counted as missed, want %d", w.missed, tt.missed)
				}
				time.Sleep(time.Minute)
				if n := len(w.jobs()); n != 2+tt.made {
					t.Errorf("%d jobs a minute later", n)
				}
			})
		})
	}
}

// S-16: while one replica publishes, however slowly, the others wait.
func TestSlowPublisher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, first := newWorld(t, "@every 5s", "UTC"), begin().Add(4*time.Second)
		for range 3 {
			defer w.start(func(c *schedule.Config) { c.Publisher = slow{w, 3 * time.Second} })()
		}
		time.Sleep(time.Minute)
		dues := w.jobs()
		for i, due := range dues {
			if want := first.Add(5 * time.Duration(i) * time.Second); !due.Equal(want) {
				t.Fatalf("job %d is due at %s, want %s", i, due, want)
			}
		}
		if len(dues) != 11 || w.failed != 0 {
			t.Errorf("%d jobs, want 11; %d failures", len(dues), w.failed)
		}
	})
}

// slow is a publisher that takes its time.
type slow struct {
	*world
	time time.Duration
}

func (s slow) Publish(ctx context.Context, ms ...*transport.Message) error {
	time.Sleep(s.time)
	return s.world.Publish(ctx, ms...)
}

// The claim of a sidecar that died with another expression makes nothing up either.
func TestChangedExpressionUnderAClaim(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "0 0 * * * *", "UTC")
		w.cfg.CatchUp = schedule.CatchUpAll
		m := &mortal{world: w, Store: w.store, left: 1, after: true, kind: "write", dead: make(chan struct{})} // the claim is its second write
		stopDead := w.start(func(c *schedule.Config) { c.Store, c.Publisher = m, m })
		<-m.dead
		stopDead()
		time.Sleep(150 * time.Minute) // 03:30
		w.say("0 10 * * * *", "UTC")
		defer w.start(nil)()
		time.Sleep(time.Minute)
		if got := w.jobs(); len(got) != 0 {
			t.Errorf("jobs at %v, want none", got)
		}
		time.Sleep(time.Hour)
		if got := w.jobs(); len(got) != 1 || got[0].Hour() != 4 {
			t.Errorf("jobs at %v, want 04:10", got)
		}
	})
}

// The times of an expression that has changed do not count as missed, and two sidecars with different ones each fire their own.
func TestChangedExpression(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "0 0 * * * *", "UTC")
		stop := w.start(nil)
		time.Sleep(90 * time.Minute)
		w.say("0 10 * * * *", "UTC")
		stopNew := w.start(nil)
		time.Sleep(time.Minute)
		if n := len(w.jobs()); n != 1 {
			t.Errorf("%d jobs at the change, want 1", n)
		}
		time.Sleep(2 * time.Hour) // 03:31
		if got := w.jobs(); len(got) != 5 {
			t.Errorf("jobs at %v, want those of both", got)
		}
		stop()
		stopNew()
		time.Sleep(time.Hour) // 04:10 has passed
		defer w.start(nil)()
		time.Sleep(time.Second)
		if got := w.jobs(); len(got) != 6 || got[5].Minute() != 10 || got[5].Hour() != 4 {
			t.Errorf("jobs at %v, want 04:10 made up last", got)
		}
	})
}

// A day with the clock put forward, and one with it put back: one job each, as on the days around.
func TestChangeOfTheClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "30 2 * * *", "Europe/Berlin")
		w.cfg.CatchUp = schedule.CatchUpNone
		for _, day := range []time.Time{time.Date(2000, 3, 25, 0, 0, 0, 0, time.UTC), time.Date(2000, 10, 28, 0, 0, 0, 0, time.UTC)} {
			time.Sleep(time.Until(day))
			stop := w.start(nil)
			time.Sleep(3 * 24 * time.Hour)
			stop()
		}
		days := map[string]int{}
		berlin, err := cron.Zone("Europe/Berlin")
		if err != nil {
			t.Fatal(err)
		}
		for _, due := range w.jobs() {
			days[due.In(berlin).Format(time.DateOnly)]++
		}
		if len(days) != 6 || days["2000-03-26"] != 1 || days["2000-10-29"] != 1 {
			t.Errorf("%d days; %d jobs on 2000-03-26, %d on 2000-10-29", len(days), days["2000-03-26"], days["2000-10-29"])
		}
	})
}

// S-16: jitter moves each job by a time of its own, the same in all replicas, and leaves none out.
func TestJitter(t *testing.T) {
	t.Parallel()
	var runs [2][]time.Duration
	for i := range runs {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "0 * * * * *", "UTC")
			w.cfg.Jitter = 40 * time.Second
			defer w.start(nil)()
			defer w.start(nil)()
			time.Sleep(101 * time.Minute)
			dues, lates := w.jobs(), map[time.Duration]bool{}
			for j, due := range dues {
				late := w.out[j].at.Sub(due).Truncate(time.Second)
				runs[i] = append(runs[i], late)
				lates[late] = true
				if late > 40*time.Second {
					t.Errorf("%s late", late)
				}
				if j > 0 && due.Sub(dues[j-1]) != time.Minute {
					t.Errorf("after %s comes %s", dues[j-1], due)
				}
			}
			if len(dues) < 100 || len(lates) < 20 {
				t.Errorf("%d jobs, late by %v", len(dues), lates)
			}
		})
	}
	if n := min(len(runs[0]), len(runs[1])); !slices.Equal(runs[0][:n], runs[1][:n]) {
		t.Errorf("late by %v in one run and by %v in another", runs[0], runs[1])
	}
}

// A publisher that fails is tried again, and the job comes late; a store that fails holds everything up.
func TestTroubles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, first := newWorld(t, "@every 1s", "UTC"), begin()
		defer w.start(nil)()
		time.Sleep(3*time.Second + 10*time.Millisecond)
		w.setDown(errors.New("away"))
		time.Sleep(4 * time.Second)
		if n := len(w.jobs()); n != 3 || w.failed == 0 || w.failed > 20 {
			t.Errorf("%d jobs, %d failures", n, w.failed)
		}
		w.setDown(nil)
		time.Sleep(10 * time.Second)
		dues := w.jobs()
		for i, due := range dues {
			if want := first.Add(time.Duration(i) * time.Second); !due.Equal(want) {
				t.Fatalf("job %d is due at %s, want %s", i, due, want)
			}
		}
		if len(dues) != 17 {
			t.Errorf("%d jobs, want 17", len(dues))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "@every 1s", "UTC")
		m := &mortal{world: w, Store: w.store, left: 7, kind: "write", dead: make(chan struct{})}
		defer w.start(func(c *schedule.Config) { c.Store, c.Publisher = m, w })()
		time.Sleep(time.Minute)
		n, failed := len(w.jobs()), w.failed
		if n > 4 || failed < 5 || failed > 40 {
			t.Errorf("%d jobs with the store away, %d failures", n, failed)
		}
		m.back.Store(true)
		time.Sleep(10 * time.Second)
		dues := w.jobs()
		for _, due := range dues[n+1:] { // the first stands for those that were missed
			if late := time.Since(due); late > 30*time.Second {
				t.Errorf("a job due %s ago was made up", late)
			}
		}
		if w.missed == 0 || len(dues) < n+15 || time.Since(dues[len(dues)-1]) > 2*time.Second {
			t.Errorf("%d jobs after the store came back, %d missed", len(dues)-n, w.missed)
		}
	})
}
