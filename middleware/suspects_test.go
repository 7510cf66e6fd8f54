package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// a job that kills its process, again and again, with others beside it, ends as a dead letter, and the others end well:
// after the second crash they run one at a time, so that the third is the killer's own.
func TestKillerTakesNobodyWithIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const neighbours = 20
		st, out := newStore(t), &outbox{}
		settled := map[string]job.Settlement{}
		for life := 0; len(settled) < neighbours+1; life++ {
			if life == 10 {
				t.Fatalf("after ten lives %d jobs are settled: %v", len(settled), settled)
			}
			var mu sync.Mutex
			dying, die := context.WithCancelCause(t.Context())
			killed := errors.New("killed")
			dead := make(chan struct{})
			once := sync.OnceFunc(func() { close(dead); die(killed) })
			gone := &lossy{Store: st, before: func(store.Txn) error { return context.Cause(dying) }}
			p := setup{store: gone, policy: threeTries, lease: time.Second, out: out, runner: func(ctx context.Context, j *job.Job) (*job.Result, error) {
				if j.ID == "killer" {
					time.Sleep(10 * time.Millisecond) // its neighbours are running by now
					once()
				}
				select {
				case <-dead: // nobody has a word to say any more
					<-ctx.Done()
					return nil, ctx.Err()
				case <-time.After(20 * time.Millisecond):
				}
				return &job.Result{Body: []byte(j.ID)}, nil
			}}.start(t)
			var wg sync.WaitGroup
			for i := range neighbours + 1 {
				id := fmt.Sprint("neighbour", i)
				if i == neighbours/2 {
					id = "killer"
				}
				mu.Lock()
				_, over := settled[id]
				mu.Unlock()
				if over {
					continue
				}
				wg.Go(func() {
					for dying.Err() == nil {
						x, err := p.trip(dying, id)
						if dying.Err() != nil {
							return
						}
						if err == nil && (x.Settlement.Verb == job.Ack || x.Settlement.Verb == job.Dead) {
							mu.Lock()
							settled[id] = x.Settlement
							mu.Unlock()
							return
						}
						time.Sleep(max(x.Settlement.After, time.Millisecond))
					}
				})
			}
			wg.Wait()
			die(nil)
			p.claims.Close()
			time.Sleep(1100 * time.Millisecond) // the leases of a dead process run out
		}
		for id, s := range settled {
			if want := job.Ack; id == "killer" && s.Verb != job.Dead || id != "killer" && s.Verb != want {
				t.Errorf("%s was settled by %s", id, s.Verb)
			}
		}
		if n := len(out.to("dead")); n != 1 {
			t.Errorf("%d dead letters, want the killer's", n)
		}
	})
}

// crash has processes end while they run a job, so often, and their leases run out.
func crash(t *testing.T, st store.Store, id string, times int) {
	t.Helper()
	for range times {
		dying, die := context.WithCancelCause(t.Context())
		gone := &lossy{Store: st, before: func(store.Txn) error { return context.Cause(dying) }}
		p := setup{store: gone, policy: threeTries, lease: time.Second, runner: func(ctx context.Context, _ *job.Job) (*job.Result, error) {
			die(errDead)
			return nil, ctx.Err()
		}}.start(t)
		for dying.Err() == nil {
			x, _ := p.trip(dying, id)
			time.Sleep(x.Settlement.After)
		}
		p.claims.Close()
		time.Sleep(1100 * time.Millisecond)
	}
}

// settle takes a job through the chain until its message is settled.
func (p *process) settle(t *testing.T, id string) *job.Exchange {
	for t.Context().Err() == nil {
		x, err := p.trip(t.Context(), id)
		if err == nil && (x.Settlement.Verb == job.Ack || x.Settlement.Verb == job.Dead) {
			return x
		}
		time.Sleep(max(x.Settlement.After, time.Millisecond))
	}
	return nil
}

func TestWhoIsSuspect(t *testing.T) {
	t.Parallel()
	for limit, want := range map[int][]int{0: {2, 3, 4, 5}, 1: nil, 2: {1}, 3: {2}, 4: {2, 3}, 5: {2, 3, 4}} {
		var got []int
		for crashes := range 6 {
			if middleware.IsSuspect(crashes, limit) {
				got = append(got, crashes)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("max_crashes %d: suspects after %v crashes, want %v", limit, got, want)
		}
	}
}

// A suspect comes to run alone although long jobs follow one another without a gap, and one that loops until its time is up does not
// have the process to itself: whatever it does, the others have three quarters of the time.
func TestSuspectsShareTheProcess(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		loops       bool
		takes       time.Duration // an ordinary job
		streams     int           // of them
		most, share time.Duration // that a stream stands still: at a time; per minute
	}{
		{"long jobs", false, 7 * time.Second, 4, 16 * time.Second, 20 * time.Second},
		{"looping suspects", true, 100 * time.Millisecond, 2, 11 * time.Second, 16 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				st, suspects := newStore(t), []string{"suspect0", "suspect1", "suspect2"}
				for _, id := range suspects {
					crash(t, st, id, 2)
				}
				var running, beside atomic.Int64
				p := setup{store: st, policy: threeTries, timeout: 10 * time.Second, runner: func(ctx context.Context, j *job.Job) (*job.Result, error) {
					if running.Add(1) > 1 && strings.HasPrefix(j.ID, "suspect") {
						beside.Add(1)
					}
					defer running.Add(-1)
					takes := tt.takes
					if strings.HasPrefix(j.ID, "suspect") && tt.loops {
						takes = time.Hour
					}
					select {
					case <-time.After(takes):
						return &job.Result{}, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				}}.start(t)
				var over atomic.Bool
				var wg, streams sync.WaitGroup
				begun := time.Now()
				for n := range tt.streams {
					streams.Go(func() {
						time.Sleep(time.Duration(n) * tt.takes / time.Duration(tt.streams))
						var stood time.Duration
						for i := 0; !over.Load(); i++ {
							at := time.Now()
							p.settle(t, fmt.Sprint("job", n, "-", i))
							still := time.Since(at) - tt.takes
							stood += still
							if still > tt.most {
								t.Errorf("a job waited for %s, want at most %s", still, tt.most)
							}
						}
						if all := time.Since(begun); stood > time.Duration(float64(tt.share)*all.Minutes())+tt.most {
							t.Errorf("of %s jobs stood still for %s", all, stood)
						}
					})
				}
				for _, id := range suspects {
					wg.Go(func() {
						if x := p.settle(t, id); tt.loops != (x.Settlement.Verb == job.Dead) || x.Crashes != 2 {
							t.Errorf("%s: %s after %d crashes: %v", id, x.Settlement.Verb, x.Crashes, x.Err)
						}
					})
				}
				wg.Wait()
				t.Logf("all suspects were done after %s", time.Since(begun))
				over.Store(true)
				streams.Wait()
				if n := beside.Load(); n > 0 {
					t.Errorf("%d suspects ran beside others", n)
				}
			})
		})
	}
}

// While a job runs for hours a suspect keeps trying, without taking the process from those who come now and then; when the job is over it
// runs before long.
func TestSuspectBesideAnEndlessJob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		crash(t, st, "suspect", 2)
		p := setup{store: st, policy: threeTries, runner: func(_ context.Context, j *job.Job) (*job.Result, error) {
			if j.ID == "endless" {
				time.Sleep(5 * time.Hour)
			}
			return &job.Result{}, nil
		}}.start(t)
		begun := time.Now()
		var ended, ran time.Duration
		var wg sync.WaitGroup
		wg.Go(func() { p.settle(t, "endless"); ended = time.Since(begun) })
		time.Sleep(time.Second)
		wg.Go(func() { p.settle(t, "suspect"); ran = time.Since(begun) })
		late, n := 0, 0
		for ; time.Since(begun) < 4*time.Hour; n++ {
			at := time.Now()
			p.settle(t, fmt.Sprint("job", n))
			if d := time.Since(at); d > 9*time.Minute {
				t.Errorf("a job waited for %s", d)
			} else if d > time.Second {
				late++
			}
			time.Sleep(47 * time.Second)
		}
		wg.Wait()
		if late > n/4 || ran < ended || ran > ended+40*time.Minute {
			t.Errorf("%d of %d jobs had to wait; the endless one was over after %s, and the suspect after %s", late, n, ended, ran)
		}
	})
}

// Whoever waits at the gate, or to run alone, is handed back at once when the process drains; jobs that nothing is claimed for wait as
// others do.
func TestDrainAtTheGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, gate := newStore(t), middleware.NewSuspects()
		crash(t, st, "suspect", 2)
		crash(t, st, "other", 2)
		stop := make(chan struct{})
		run := func(context.Context, *job.Job) (*job.Result, error) { <-stop; return &job.Result{}, nil }
		p := setup{store: st, policy: threeTries, runner: run, suspects: gate}.start(t)
		loose := setup{policy: threeTries, runner: run, suspects: gate}.start(t)
		var wg sync.WaitGroup
		wg.Go(func() { p.settle(t, "suspect") })
		synctest.Wait()
		draining := make(chan struct{})
		var back atomic.Int64
		for id, at := range map[string]*process{"other": p, "job": p, "loose": loose} {
			wg.Go(func() {
				x := at.exchange(id)
				x.Draining = draining
				if err := at.handle(t.Context(), x); err != nil || x.Settlement.Verb != job.Leave || x.Ran {
					t.Errorf("%s: settlement %v, ran %t, error %v", id, x.Settlement, x.Ran, err)
				}
				back.Add(1)
			})
		}
		synctest.Wait()
		if n := back.Load(); n > 0 || gate.Len() != 1 {
			t.Errorf("%d of those that wait are back, %d in line", n, gate.Len())
		}
		close(draining)
		synctest.Wait()
		if n := back.Load(); n != 3 {
			t.Errorf("%d of three are back when the process drains", n)
		}
		close(stop)
		wg.Wait()
		if x := p.settle(t, "other"); x.Settlement.Verb != job.Ack || gate.Len() != 0 {
			t.Errorf("settlement %v, %d in line", x.Settlement, gate.Len())
		}
	})
}

// A retry that waits in its slot gives way to a suspect, and a suspect's own retry is not waited for while all others stand still.
func TestRetriesGiveWayToSuspects(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		crash(t, st, "suspect", 2)
		policy := threeTries
		policy.Backoff, policy.NoJitter = 1900*time.Millisecond, true
		p := setup{store: st, policy: policy, runner: func(context.Context, *job.Job) (*job.Result, error) {
			return nil, job.Errorf(job.KindTrap, "no")
		}}.start(t)
		begun := time.Now()
		var wg sync.WaitGroup
		for _, id := range []string{"job", "suspect"} {
			wg.Go(func() {
				x, err := p.trip(t.Context(), id)
				if s := x.Settlement; err != nil || s.Verb != job.Retry || s.After < 1800*time.Millisecond || s.After > 1900*time.Millisecond {
					t.Errorf("%s: settlement %v, error %v", id, s, err)
				}
			})
			time.Sleep(50 * time.Millisecond)
		}
		wg.Wait()
		if took := time.Since(begun); took > 500*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

// killers keep coming on one route of a fleet, each of which ends its process whenever it runs, and jobs of another route that
// have nothing to do with them run beside them. Every killer ends as a dead letter, for crashes of its own, and every other job with its
// result, however long it takes. No killer ends more processes than its crashes are counted, and one more where it first ran without a claim.
func TestKillersKeepComing(t *testing.T) {
	t.Parallel()
	const processes, killers, innocents = 3, 20, 60
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fleet{t: t, st: newStore(t), out: &outbox{}, dice: rand.New(rand.NewPCG(seed, 0)), lives: make([]*mortal, processes)}
				for n := range f.lives {
					f.begin(n)
				}
				begun := time.Now()
				var wg sync.WaitGroup
				for i := range killers + innocents {
					id, after := fmt.Sprint("innocent", i), time.Duration(i)*30*time.Millisecond
					if i < killers {
						id, after = fmt.Sprint("killer", i), time.Duration(i)*150*time.Millisecond
					}
					wg.Go(func() {
						time.Sleep(after)
						f.settle(id)
					})
				}
				wg.Wait()
				took := time.Since(begun)
				time.Sleep(time.Second) // who died last lives again
				f.mu.Lock()
				defer f.mu.Unlock()
				for _, l := range f.lives {
					l.die(nil)
				}
				letters, results := f.out.to("dead"), map[string]string{}
				for _, m := range letters {
					if id := m.Header.Get(transport.HeaderJobID); !strings.HasPrefix(id, "killer") {
						t.Errorf("%s is dead: %s", id, m.Header.Get(transport.HeaderDeadError))
					}
				}
				for _, m := range f.out.to("results") {
					results[m.Header.Get(transport.HeaderResultOf)] = m.Header.Get(transport.HeaderOK)
				}
				for i := range killers + innocents {
					id, want := fmt.Sprint("innocent", i), "true"
					if i < killers {
						id, want = fmt.Sprint("killer", i), "false"
					}
					if results[id] != want {
						t.Errorf("%s has a result with ok %q, want %q", id, results[id], want)
					}
				}
				if len(letters) != killers || f.deaths > killers*(threeTries.MaxCrashes+1) {
					t.Errorf("%d dead letters and %d deaths, want %d and at most %d", len(letters), f.deaths, killers, killers*(threeTries.MaxCrashes+1))
				}
				t.Logf("%d deaths, %s", f.deaths, took)
			})
		})
	}
}

// fleet is processes over one store, which live again when they have died.
type fleet struct {
	t   *testing.T
	st  store.Store
	out *outbox

	mu     sync.Mutex
	dice   *rand.Rand
	lives  []*mortal
	deaths int
}

// mortal is one life of a process with two routes.
type mortal struct {
	context.Context
	die    context.CancelCauseFunc
	routes map[string]job.Handler
	*outbox
}

// Publish publishes while the process lives.
func (m *mortal) Publish(ctx context.Context, ms ...*transport.Message) error {
	if m.Err() != nil {
		return m.Err()
	}
	return m.outbox.Publish(ctx, ms...)
}

// begin begins the nth process's next life.
func (f *fleet) begin(n int) {
	m := &mortal{routes: map[string]job.Handler{}, outbox: f.out}
	m.Context, m.die = context.WithCancelCause(f.t.Context())
	gone := &lossy{Store: f.st, before: func(store.Txn) error { return context.Cause(m) }}
	suspects, log := middleware.NewSuspects(), slog.New(slog.DiscardHandler)
	kill := sync.OnceFunc(func() { f.kill(n, m) })
	for _, route := range []string{"killer", "innocent"} {
		claims, err := middleware.NewClaims(gone, middleware.ClaimsConfig{Route: route, Partition: route, Lease: time.Second, Log: log})
		if err != nil {
			f.t.Fatal(err)
		}
		context.AfterFunc(m, func() { claims.Close() })
		m.routes[route], err = middleware.Chain(middleware.Config{
			Route: route, To: "results", DeadLetter: "dead", Publisher: m, Claims: claims, Retry: threeTries, Sink: event.Discard, Log: log,
			Suspects: suspects,
			Runner: func(j *job.Job) (job.Runner, error) {
				run := job.RunnerFunc(func(ctx context.Context, j *job.Job) (*job.Result, error) { return mortalRun(ctx, j, kill) })
				if strings.HasSuffix(j.ID, "7") {
					return pureRunner{run}, nil
				}
				return run, nil
			},
		})
		if err != nil {
			f.t.Fatal(err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lives[n] = m
}

// mortalRun runs a job: a killer ends the process, an innocent takes its time.
func mortalRun(ctx context.Context, j *job.Job, kill func()) (*job.Result, error) {
	takes := 20 * time.Millisecond
	switch {
	case strings.HasPrefix(j.ID, "killer"):
		time.Sleep(10 * time.Millisecond)
		kill()
	case strings.HasSuffix(j.ID, "5"):
		takes = 3 * time.Second
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(takes):
		return &job.Result{Body: []byte(j.ID)}, nil
	}
}

// kill ends a process, which is back after a while.
func (f *fleet) kill(n int, m *mortal) {
	if m.Err() != nil {
		return
	}
	f.mu.Lock()
	f.deaths++
	f.mu.Unlock()
	m.die(errDead)
	time.AfterFunc(200*time.Millisecond, func() { f.begin(n) })
}

// settle delivers a job to one process and another until its message is settled.
func (f *fleet) settle(id string) {
	route := strings.TrimRight(id, "0123456789")
	for again := false; f.t.Context().Err() == nil; again = true {
		f.mu.Lock()
		m := f.lives[f.dice.IntN(len(f.lives))]
		f.mu.Unlock()
		x := &job.Exchange{
			Job:      &job.Job{ID: id, Route: route, Subject: route, Source: route + "/" + id, Body: []byte("in"), Raw: []byte("in"), Redelivered: again},
			Received: time.Now(), Draining: make(chan struct{}),
		}
		err := m.routes[route](m, x)
		if m.Err() != nil || err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if v := x.Settlement.Verb; v == job.Ack || v == job.Dead {
			return
		}
		time.Sleep(max(x.Settlement.After, time.Millisecond))
	}
}

// A suspect whose claim was granted, and the answer lost, has it when others run again: whatever they do would count against it.
func TestUnheardClaimOfASuspect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		crash(t, st, "suspect", 2)
		lost := 0
		deaf := &lossy{Store: st, after: func(x store.Txn) error {
			if len(x.Then) > 0 && x.If[0].Revision > 0 && lost < 2 {
				lost++
				return errLost
			}
			return nil
		}}
		p := setup{store: deaf, policy: threeTries, runner: ok}.start(t)
		if x, err := p.trip(t.Context(), "suspect"); err != nil || x.Settlement.Verb != job.Ack || lost != 2 {
			t.Errorf("settlement %v, error %v, %d answers lost", x.Settlement, err, lost)
		}
	})
}
