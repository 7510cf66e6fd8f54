package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
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
