package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
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
	"github.com/wasmsidecar/wasmsidecar/pkg/store/memkv"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// outbox is a publisher that keeps what it is given, and fails when fail says so.
type outbox struct {
	mu   sync.Mutex
	ms   []*transport.Message
	fail func(m *transport.Message) error
	max  int
}

func (o *outbox) Publish(_ context.Context, ms ...*transport.Message) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range ms {
		if o.fail != nil {
			if err := o.fail(m); err != nil {
				return err
			}
		}
		o.ms = append(o.ms, m)
	}
	return nil
}

func (o *outbox) MaxBytes() int { return o.max }

func (o *outbox) to(subject string) []*transport.Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*transport.Message
	for _, m := range o.ms {
		if m.Subject == subject {
			out = append(out, m)
		}
	}
	return out
}

// lossy is a store that can lose the answer to a transaction that took place, or fail before it takes place.
type lossy struct {
	store.Store
	before, after func(store.Txn) error
}

func (l *lossy) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	if l.before != nil {
		if err := l.before(t); err != nil {
			return store.Reply{}, err
		}
	}
	r, err := l.Store.Txn(ctx, t)
	if err == nil && l.after != nil {
		if aerr := l.after(t); aerr != nil {
			return store.Reply{}, aerr
		}
	}
	return r, err
}

// process is one life of a sidecar: its own claims over a store that outlives it.
type process struct {
	handle job.Handler
	claims *middleware.Claims
	out    *outbox
	events *events
}

type events struct {
	mu  sync.Mutex
	all []event.Event
}

func (e *events) Emit(ev event.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) count(t event.Type) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, ev := range e.all {
		if ev.Type == t {
			n++
		}
	}
	return n
}

type setup struct {
	store   store.Store
	runner  job.RunnerFunc
	policy  middleware.RetryPolicy
	out     *outbox
	lease   time.Duration
	results time.Duration
	timeout time.Duration
	admit   middleware.Admit

	breakers  *middleware.Breakers
	suspects  *middleware.Suspects
	unclaimed bool
}

func newStore(t *testing.T) store.Store {
	t.Helper()
	s, err := memkv.Open(memkv.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (s setup) start(t *testing.T) *process {
	t.Helper()
	if s.out == nil {
		s.out = &outbox{}
	}
	if s.lease == 0 {
		s.lease = 30 * time.Second
	}
	p := &process{out: s.out, events: &events{}}
	log := slog.New(slog.DiscardHandler)
	if s.store != nil {
		c, err := middleware.NewClaims(s.store, middleware.ClaimsConfig{
			Route: "jobs", Partition: "jobs", Lease: s.lease, TTL: 24 * time.Hour, Results: s.results, RunUnclaimed: s.unclaimed, Log: log,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		p.claims = c
	}
	h, err := middleware.Chain(middleware.Config{
		Route:  "jobs",
		Runner: func(*job.Job) (job.Runner, error) { return s.runner, nil },
		To:     "results", DeadLetter: "dead", Publisher: p.out,
		Claims: p.claims, Retry: s.policy, Timeout: s.timeout, Admit: s.admit, Breakers: s.breakers, Suspects: s.suspects, Sink: p.events, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.handle = h
	return p
}

// trip takes a job through the chain once.
func (p *process) trip(ctx context.Context, id string) (*job.Exchange, error) {
	x := &job.Exchange{
		Job:      &job.Job{ID: id, Route: "jobs", Subject: "jobs", Source: "jobs/" + id, Body: []byte("in"), Raw: []byte("in")},
		Received: time.Now(), Draining: make(chan struct{}),
	}
	err := p.handle(ctx, x)
	return x, err
}

var threeTries = middleware.RetryPolicy{MaxAttempts: 3, MaxCrashes: 3, Backoff: 10 * time.Millisecond, MaxBackoff: time.Minute}

func ok(context.Context, *job.Job) (*job.Result, error) {
	return &job.Result{Body: []byte("out"), Module: "m", Digest: "d"}, nil
}

// R-11, S-08: the outcome is one write with the completion, before anything is published or settled.
func TestResultIsRecordedThenPublishedThenAcked(t *testing.T) {
	t.Parallel()
	var order []string
	st := &lossy{Store: newStore(t)}
	st.after = func(x store.Txn) error {
		order = append(order, "store")
		return nil
	}
	out := &outbox{fail: func(m *transport.Message) error { order = append(order, m.Subject); return nil }}
	p := setup{store: st, runner: ok, policy: threeTries, out: out}.start(t)
	x, err := p.trip(t.Context(), "a")
	if err != nil || x.Settlement.Verb != job.Ack {
		t.Fatalf("settlement %v, error %v", x.Settlement, err)
	}
	if got := strings.Join(order, " "); got != "store store results" {
		t.Fatalf("order: %s; want claim, record, publish", got)
	}
}

// D-06: a failing job is executed three times in one live process, with backoff, then dead-lettered once.
func TestFailingJobRunsThreeTimesThenDies(t *testing.T) {
	t.Parallel()
	for name, withStore := range map[string]bool{"claimed": true, "dedup off": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var runs []time.Time
				s := setup{policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
					runs = append(runs, time.Now())
					return nil, job.Errorf(job.KindTrap, "%w", &job.Ran{Digest: "d1" + strings.Repeat("0", 62), Err: errors.New("unreachable\r\nX-Evil: 1")})
				}}
				s.policy.NoJitter = true
				if withStore {
					s.store = newStore(t)
				}
				p := s.start(t)
				x, err := p.trip(t.Context(), "a")
				if err != nil || x.Settlement.Verb != job.Dead {
					t.Fatalf("settlement %v, error %v", x.Settlement, err)
				}
				if len(runs) != 3 || runs[1].Sub(runs[0]) != 10*time.Millisecond || runs[2].Sub(runs[1]) != 20*time.Millisecond {
					t.Fatalf("runs at %v: want three, 10 ms and 20 ms apart", runs)
				}
				if n := len(p.out.to("results")); n != 1 {
					t.Fatalf("%d failure results, want 1 (D-19)", n)
				}
				dead := p.out.to("dead")
				for _, m := range slices.Concat(p.out.to("results"), dead) {
					if got := m.Header.Get(transport.HeaderDigest); !strings.HasPrefix(got, "d100") {
						t.Errorf("the module's digest is %q in %v", got, m.Header)
					}
				}
				if len(dead) != 1 {
					t.Fatalf("%d dead letters, want 1", len(dead))
				}
				if got := dead[0].Header.Get(transport.HeaderDeadAttempts); got != "3" {
					t.Fatalf("dead letter says %q attempts, want 3", got)
				}
				if string(dead[0].Body) != "in" {
					t.Fatalf("dead letter's body is %q, want the original", dead[0].Body)
				}
				if e := dead[0].Header.Get(transport.HeaderDeadError); strings.ContainsAny(e, "\r\n") || !strings.Contains(e, "unreachable") {
					t.Fatalf("dead letter's error is %q", e)
				}
				if o := x.Outcome; !o.Dead || o.Kind != job.KindTrap {
					t.Fatalf("outcome %+v: want a dead trap", o)
				}
			})
		})
	}
}

// D-07: the count of attempts outlives the process, and an execution that ends without a word is a crash.
func TestAttemptsSurviveTheProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		hang := make(chan struct{})
		first := setup{store: st, policy: threeTries, lease: 2 * time.Second, runner: func(ctx context.Context, j *job.Job) (*job.Result, error) {
			if j.Attempt == 1 {
				return nil, errors.New("first attempt fails")
			}
			<-hang
			return nil, errors.New("too late")
		}}.start(t)
		done := make(chan *job.Exchange)
		go func() {
			x, _ := first.trip(context.WithoutCancel(t.Context()), "a")
			done <- x
		}()
		time.Sleep(time.Second)
		first.claims.Close() // no heartbeat any more: as dead as a process can be inside a test
		time.Sleep(2 * time.Second)

		var attempts []int
		second := setup{store: st, policy: threeTries, runner: func(_ context.Context, j *job.Job) (*job.Result, error) {
			attempts = append(attempts, j.Attempt)
			return nil, errors.New("fails again")
		}}.start(t)
		x, err := second.trip(t.Context(), "a")
		if err != nil || x.Settlement.Verb != job.Dead {
			t.Fatalf("settlement %v, error %v", x.Settlement, err)
		}
		// Attempt 2 crashed: two attempts that ended with a word are left of three.
		if fmt.Sprint(attempts) != "[3 4]" || x.Outcome.Crashes != 1 || x.Outcome.Attempts != 4 {
			t.Fatalf("attempts %v, outcome %+v", attempts, x.Outcome)
		}
		if second.events.count(event.Crashed) != 1 {
			t.Fatal("the crash was not told")
		}
		close(hang)
		if x := <-done; x.Outcome != nil || x.Settlement.Verb != job.Leave {
			t.Fatalf("the stale owner ended with %+v, %v: its write must be refused", x.Outcome, x.Settlement)
		}
		if first.events.count(event.Fenced) != 1 || len(first.out.ms) != 0 {
			t.Fatal("the stale owner was not fenced, or published")
		}
	})
}

// leases that run out are counted, and in the end there are a dead letter, a result and an event.
func TestJobThatKillsItsProcessDies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		for range 3 {
			p := setup{store: st, policy: threeTries, lease: time.Second, runner: func(ctx context.Context, _ *job.Job) (*job.Result, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}}.start(t)
			go p.trip(t.Context(), "a")
			synctest.Wait()
			p.claims.Close()
			time.Sleep(time.Second + time.Millisecond)
		}
		runs := 0
		p := setup{store: st, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) { runs++; return &job.Result{}, nil }}.start(t)
		x, err := p.trip(t.Context(), "a")
		if err != nil || x.Settlement.Verb != job.Dead || runs != 0 {
			t.Fatalf("settlement %v, error %v, %d runs: want dead without another run", x.Settlement, err, runs)
		}
		if x.Outcome.Attempts != 3 || x.Outcome.Crashes != 3 {
			t.Fatalf("outcome %+v: want three attempts, all of them crashed", x.Outcome)
		}
		results, dead := p.out.to("results"), p.out.to("dead")
		if len(results) != 1 || len(dead) != 1 || p.events.count(event.Dead) != 1 || results[0].Header.Get(transport.HeaderOK) != "false" {
			t.Fatalf("results %v, dead letters %v, %d events: want one of each", bodies(results), bodies(dead), p.events.count(event.Dead))
		}
	})
}

// D-08: one job id delivered a hundred times at once to three workers is executed once and has one recorded result.
func TestOneIDDeliveredAHundredTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		var runs atomic.Int32
		var ps []*process
		for range 3 {
			ps = append(ps, setup{store: st, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
				time.Sleep(5 * time.Millisecond)
				return &job.Result{Body: fmt.Appendf(nil, "run %d", runs.Add(1))}, nil
			}}.start(t))
		}
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				for {
					x, err := ps[i%3].trip(t.Context(), "same")
					if err != nil {
						t.Error(err)
						return
					}
					if x.Settlement.Verb == job.Ack {
						return
					}
					if x.Settlement.Verb != job.Leave || x.Settlement.After <= 0 {
						t.Errorf("settlement %+v", x.Settlement)
						return
					}
					time.Sleep(x.Settlement.After)
				}
			})
		}
		wg.Wait()
		if runs.Load() != 1 {
			t.Fatalf("%d executions, want 1", runs.Load())
		}
		for _, p := range ps {
			for _, m := range p.out.to("results") {
				if string(m.Body) != "run 1" || m.Header.Get(transport.HeaderMsgID) != "same/jobs" {
					t.Fatalf("a result differs: %q, id %q", m.Body, m.Header.Get(transport.HeaderMsgID))
				}
			}
		}
	})
}

// D-09, S-12: a crash between record and publish, and between result and dead letter, repeats the same outputs, under the same message id.
func TestCrashBetweenRecordAndOutputs(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"results", "dead"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			st, away := newStore(t), true
			out := &outbox{fail: func(m *transport.Message) error {
				if away && m.Subject == at {
					return errors.New("broker away")
				}
				return nil
			}}
			dice := 0
			s := setup{store: st, out: out, policy: middleware.RetryPolicy{MaxAttempts: 1}, runner: func(context.Context, *job.Job) (*job.Result, error) {
				dice++
				return nil, fmt.Errorf("dice show %d", dice)
			}}
			if _, err := s.start(t).trip(t.Context(), "a"); err == nil {
				t.Fatal("the chain settled a job whose outputs are not out")
			}
			away = false
			x, err := s.start(t).trip(t.Context(), "a") // another life of the process
			if err != nil || x.Settlement.Verb != job.Dead || !x.Repeat {
				t.Fatalf("settlement %v, repeat %v, error %v", x.Settlement, x.Repeat, err)
			}
			if dice != 1 {
				t.Fatalf("the job ran %d times", dice)
			}
			dead := out.to("dead")
			if len(dead) != 1 || !strings.Contains(dead[0].Header.Get(transport.HeaderDeadError), "dice show 1") {
				t.Fatalf("dead letters: %v", dead)
			}
			for _, m := range out.to("results") {
				if id := m.Header.Get(transport.HeaderMsgID); !strings.Contains(string(m.Body), "dice show 1") || id != "a/jobs" {
					t.Fatalf("another result: %s, message id %q", m.Body, id)
				}
			}
			if n := len(out.to("results")); at == "dead" && n != 2 {
				t.Fatalf("%d results, want the one that was out and its repeat", n)
			}
		})
	}
}

// A claim or a record whose answer was cut off is recognised by its own nonce: no wait for one's own lease, no second run.
func TestAnswerOfTheStoreCutOff(t *testing.T) {
	t.Parallel()
	for _, nth := range []int{1, 2} { // 1: the claim, 2: the outcome
		t.Run(fmt.Sprint(nth), func(t *testing.T) {
			t.Parallel()
			n, st := 0, &lossy{Store: newStore(t)}
			st.after = func(store.Txn) error {
				if n++; n == nth {
					return errors.New("connection reset")
				}
				return nil
			}
			runs := 0
			p := setup{store: st, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) { runs++; return &job.Result{}, nil }}.start(t)
			x, err := p.trip(t.Context(), "a")
			if err != nil { // the window presents it again
				x, err = p.trip(t.Context(), "a")
			}
			if err != nil || x.Settlement.Verb != job.Ack || runs != 1 || x.Outcome.Attempts != 1 || x.Outcome.Crashes != 0 {
				t.Fatalf("settlement %v, error %v, %d runs, outcome %+v", x.Settlement, err, runs, x.Outcome)
			}
		})
	}
}

// R-07, S-11: the job of an owner that has gone is taken when its lease is over, neither earlier nor later.
func TestAnothersLeaseIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, left := range []time.Duration{10 * time.Millisecond, 29 * time.Second} {
		t.Run(left.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				st := newStore(t)
				other := setup{store: st, policy: threeTries, runner: func(ctx context.Context, _ *job.Job) (*job.Result, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				}}.start(t)
				go other.trip(t.Context(), "a")
				synctest.Wait()
				other.claims.Close()
				time.Sleep(30*time.Second - left)
				p := setup{store: st, policy: threeTries, runner: ok}.start(t)
				x, err := p.trip(t.Context(), "a")
				if err != nil || x.Settlement.Verb != job.Leave || x.Settlement.After != left {
					t.Fatalf("settlement %+v, error %v: want it left for %s", x.Settlement, err, left)
				}
				time.Sleep(x.Settlement.After)
				if x, err = p.trip(t.Context(), "a"); err != nil || x.Settlement.Verb != job.Ack {
					t.Fatalf("after the lease: settlement %+v, error %v", x.Settlement, err)
				}
			})
		})
	}
}

// a job may take longer than a lease, which its owner renews.
func TestHeartbeatOutlivesTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		slow := setup{store: st, policy: threeTries, lease: time.Second, runner: func(context.Context, *job.Job) (*job.Result, error) {
			time.Sleep(10 * time.Second)
			return &job.Result{}, nil
		}}.start(t)
		done := make(chan *job.Exchange)
		go func() { x, _ := slow.trip(t.Context(), "a"); done <- x }()
		time.Sleep(5 * time.Second)
		x, _ := setup{store: st, policy: threeTries, lease: time.Second, runner: ok}.start(t).trip(t.Context(), "a")
		if x.Settlement.Verb != job.Leave {
			t.Fatalf("settlement %+v: the job was stolen from its owner", x.Settlement)
		}
		if x := <-done; x.Settlement.Verb != job.Ack || x.Outcome.Crashes != 0 {
			t.Fatalf("settlement %+v, outcome %+v", x.Settlement, x.Outcome)
		}
	})
}

// a guest says when it wants to be tried again.
func TestLongWaitIsMovedAndCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		s := setup{store: st, policy: threeTries, runner: func(_ context.Context, j *job.Job) (*job.Result, error) {
			if j.Attempt == 1 {
				return nil, &job.Error{Kind: job.KindRetry, Err: errors.New("come back"), RetryAfter: 10 * time.Second}
			}
			return &job.Result{}, nil
		}}
		x, err := s.start(t).trip(t.Context(), "a")
		if err != nil || x.Settlement != (job.Settlement{Verb: job.Retry, After: 10 * time.Second}) {
			t.Fatalf("settlement %+v, error %v", x.Settlement, err)
		}
		time.Sleep(4 * time.Second)
		x, err = s.start(t).trip(t.Context(), "a") // the original again: a crash before it was settled
		if err != nil || x.Settlement != (job.Settlement{Verb: job.Retry, After: 6 * time.Second}) {
			t.Fatalf("not yet due: settlement %+v, error %v; want it moved again, never acked", x.Settlement, err)
		}
		time.Sleep(6 * time.Second)
		x, err = s.start(t).trip(t.Context(), "a")
		if err != nil || x.Settlement.Verb != job.Ack || x.Outcome.Attempts != 2 || x.Outcome.Crashes != 0 {
			t.Fatalf("settlement %+v, outcome %+v, error %v", x.Settlement, x.Outcome, err)
		}
	})
}

func TestStoreAwayRunsNothing(t *testing.T) {
	t.Parallel()
	st := &lossy{Store: newStore(t), before: func(store.Txn) error { return errors.New("store away") }}
	p := setup{store: st, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
		t.Error("ran unclaimed")
		return &job.Result{}, nil
	}}.start(t)
	if _, err := p.trip(t.Context(), "a"); err == nil {
		t.Fatal("no error")
	}
}

func TestUnavailableDoesNotCount(t *testing.T) {
	t.Parallel()
	st, n := newStore(t), 0
	p := setup{store: st, policy: middleware.RetryPolicy{MaxAttempts: 1}, runner: func(_ context.Context, j *job.Job) (*job.Result, error) {
		if n++; n < 5 {
			return nil, job.Errorf(job.KindUnavailable, "store of the module away")
		}
		return &job.Result{}, nil
	}}.start(t)
	for range 4 {
		if _, err := p.trip(t.Context(), "a"); err == nil {
			t.Fatal("the route is not told to pause")
		}
	}
	x, err := p.trip(t.Context(), "a")
	if err != nil || x.Outcome == nil || x.Outcome.Attempts != 1 {
		t.Fatalf("outcome %+v, error %v: want the first attempt", x.Outcome, err)
	}
}

func TestDrainIsNoFailure(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	p := setup{store: st, policy: middleware.RetryPolicy{MaxAttempts: 1}, timeout: time.Hour, runner: func(ctx context.Context, _ *job.Job) (*job.Result, error) {
		cancel(errors.New("drain timeout"))
		<-ctx.Done()
		return nil, job.Errorf(job.KindTrap, "closed under the guest: %w", ctx.Err())
	}}.start(t)
	if x, err := p.trip(ctx, "a"); err == nil || len(p.out.ms) != 0 {
		t.Fatalf("settlement %+v, %d outputs: a drained job was classified", x.Settlement, len(p.out.ms))
	}
	x, err := setup{store: st, policy: threeTries, runner: ok}.start(t).trip(t.Context(), "a")
	if err != nil || x.Outcome == nil || x.Outcome.Attempts != 1 {
		t.Fatalf("next owner: outcome %+v, error %v; want attempt 1 at once", x.Outcome, err)
	}
}

// what is tried again and what is not.
func TestVerdictsAreNotRetried(t *testing.T) {
	t.Parallel()
	for _, k := range job.Kinds() {
		if k == job.KindUnavailable {
			continue
		}
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			runs := 0
			p := setup{store: newStore(t), policy: middleware.RetryPolicy{MaxAttempts: 2, Backoff: time.Millisecond}, runner: func(context.Context, *job.Job) (*job.Result, error) {
				runs++
				if k == job.KindOK {
					return &job.Result{}, nil
				}
				return nil, job.Errorf(k, "because")
			}}.start(t)
			x, err := p.trip(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			want, letters := 1, 0
			if k.Fate().Retry {
				want = 2
			}
			if k.Fate().DeadLetter {
				letters = 1
			}
			if runs != want || len(p.out.to("dead")) != letters || len(p.out.to("results")) != 1 || x.Outcome.Kind != k {
				t.Fatalf("%d runs (want %d), %d dead letters (want %d), %d results, kind %s", runs, want, len(p.out.to("dead")), letters, len(p.out.to("results")), x.Outcome.Kind)
			}
		})
	}
}

func TestPanicIsOneFailedAttempt(t *testing.T) {
	t.Parallel()
	runs := 0
	p := setup{store: newStore(t), policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
		if runs++; runs == 1 {
			panic("boom")
		}
		return &job.Result{}, nil
	}}.start(t)
	x, err := p.trip(t.Context(), "a")
	if err != nil || x.Outcome.Kind != job.KindOK || x.Outcome.Attempts != 2 {
		t.Fatalf("outcome %+v, error %v", x.Outcome, err)
	}
}

func TestDeadlineIsATimeout(t *testing.T) {
	t.Parallel()
	p := setup{store: newStore(t), policy: middleware.RetryPolicy{MaxAttempts: 1}, timeout: 5 * time.Millisecond, runner: func(ctx context.Context, _ *job.Job) (*job.Result, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}.start(t)
	x, err := p.trip(t.Context(), "a")
	if err != nil || x.Outcome.Kind != job.KindTimeout {
		t.Fatalf("outcome %+v, error %v", x.Outcome, err)
	}
}

// What a job waits for before it may begin is no part of its time, and one that waited in vain has made no attempt.
func TestAdmission(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		vain, open := true, 0
		p := setup{
			store: newStore(t), policy: middleware.RetryPolicy{MaxAttempts: 1}, timeout: time.Second,
			admit: func(ctx context.Context, _ *job.Job) (context.Context, func(), error) {
				time.Sleep(time.Minute)
				if vain {
					return nil, nil, job.Errorf(job.KindUnavailable, "no memory")
				}
				open++
				return context.WithValue(ctx, key{}, "admitted"), func() { open-- }, nil
			},
			runner: func(ctx context.Context, j *job.Job) (*job.Result, error) {
				if d, ok := ctx.Deadline(); !ok || time.Until(d) != time.Second || ctx.Value(key{}) != "admitted" || open != 1 || j.Attempt != 1 {
					t.Errorf("deadline %v, %v, attempt %d", d, ctx.Value(key{}), j.Attempt)
				}
				return &job.Result{Body: []byte("out")}, nil
			},
		}.start(t)
		for range 3 {
			if x, err := p.trip(t.Context(), "a"); job.KindOf(err) != job.KindUnavailable || x.Outcome != nil {
				t.Errorf("in vain: outcome %+v, error %v", x.Outcome, err)
			}
		}
		vain = false
		x, err := p.trip(t.Context(), "a")
		if err != nil || x.Outcome == nil || x.Outcome.Kind != job.KindOK || x.Outcome.Attempts != 1 || open != 0 {
			t.Errorf("outcome %+v, error %v, %d open", x.Outcome, err, open)
		}
	})
}

func TestTooLargeAResultIsALimit(t *testing.T) {
	t.Parallel()
	out := &outbox{max: 8 << 10}
	p := setup{store: newStore(t), policy: middleware.RetryPolicy{MaxAttempts: 1}, out: out, runner: func(context.Context, *job.Job) (*job.Result, error) {
		return &job.Result{Body: make([]byte, 9<<10)}, nil
	}}.start(t)
	x, err := p.trip(t.Context(), "a")
	if err != nil || x.Outcome.Kind != job.KindLimit || len(out.to("results")) != 1 || len(out.to("dead")) != 1 {
		t.Fatalf("outcome %+v, error %v, %d results, %d dead letters", x.Outcome, err, len(out.to("results")), len(out.to("dead")))
	}
}

// A result that the broker refuses for good, unforeseen, becomes a recorded failure, also when a crash came in between.
func TestRefusedResultBecomesAFailure(t *testing.T) {
	t.Parallel()
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprint(crash), func(t *testing.T) {
			t.Parallel()
			st, away := newStore(t), crash
			out := &outbox{fail: func(m *transport.Message) error {
				switch {
				case away:
					return errors.New("broker away")
				case string(m.Body) == "out":
					return fmt.Errorf("body: %w", transport.ErrRejected)
				}
				return nil
			}}
			s := setup{store: st, policy: threeTries, out: out, runner: ok}
			p := s.start(t)
			if crash {
				p.trip(t.Context(), "a")
				away, p = false, s.start(t)
			}
			x, err := p.trip(t.Context(), "a")
			if err != nil || x.Outcome.OK() || x.Settlement.Verb != job.Dead || len(out.to("dead")) != 1 {
				t.Fatalf("outcome %+v, settlement %v, error %v", x.Outcome, x.Settlement, err)
			}
			y, err := p.trip(t.Context(), "a")
			if err != nil || y.Outcome.Err != x.Outcome.Err {
				t.Fatalf("seen again: outcome %+v, error %v", y.Outcome, err)
			}
		})
	}
}

// A dead letter that the broker refuses for its headers goes out without them: no message of anybody holds up a route.
func TestRefusedDeadLetterGoesOutBare(t *testing.T) {
	t.Parallel()
	out := &outbox{fail: func(m *transport.Message) error {
		if m.Subject == "dead" && m.Header.Get("Huge") != "" {
			return fmt.Errorf("headers: %w", transport.ErrRejected)
		}
		return nil
	}}
	p := setup{store: newStore(t), policy: threeTries, out: out, runner: func(context.Context, *job.Job) (*job.Result, error) {
		return nil, &job.Error{Kind: job.KindFailed, Err: errors.New("no")}
	}}.start(t)
	x := &job.Exchange{Job: &job.Job{ID: "a", Route: "jobs", Source: "s", Raw: []byte("body"), Header: job.Header{{Name: "Huge", Value: "x"}}}, Draining: make(chan struct{})}
	if err := p.handle(t.Context(), x); err != nil || x.Settlement.Verb != job.Dead {
		t.Fatalf("settlement %v, error %v", x.Settlement, err)
	}
	dead := out.to("dead")
	if len(dead) != 1 || string(dead[0].Body) != "body" || dead[0].Header.Get(transport.HeaderDeadTruncated) != "4" || dead[0].Header.Get(transport.HeaderJobID) != "a" {
		t.Fatalf("dead letters %+v", dead)
	}
}

func TestResultKeptForLessThanItsID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := setup{store: newStore(t), policy: threeTries, runner: ok, results: time.Minute}
		s.out = &outbox{}
		for _, step := range []struct {
			wait time.Duration
			want int
		}{{0, 1}, {30 * time.Second, 2}, {time.Minute, 2}} {
			time.Sleep(step.wait)
			p := s.start(t)
			x, err := p.trip(t.Context(), "a")
			if err != nil || x.Settlement.Verb != job.Ack {
				t.Fatalf("settlement %+v, error %v", x.Settlement, err)
			}
			if n := p.events.count(event.Finished) + p.events.count(event.Repeated); n != 1 {
				t.Fatalf("after %s the end of the job was told %d times, want once", step.wait, n)
			}
			if n := len(s.out.to("results")); n != step.want {
				t.Fatalf("%d results, want %d", n, step.want)
			}
			if m := s.out.to("results"); string(m[len(m)-1].Body) != "out" {
				t.Fatalf("result %q", m[len(m)-1].Body)
			}
		}
	})
}

func TestExpiredJobIsNotRun(t *testing.T) {
	t.Parallel()
	p := setup{store: newStore(t), policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
		t.Error("ran")
		return &job.Result{}, nil
	}}.start(t)
	x := &job.Exchange{Job: &job.Job{ID: "a", Route: "jobs", Source: "s", ExpiresAt: time.Now().Add(-time.Second)}, Draining: make(chan struct{})}
	if err := p.handle(t.Context(), x); err != nil || x.Outcome.Kind != job.KindExpired || len(p.out.to("dead")) != 0 || len(p.out.to("results")) != 1 {
		t.Fatalf("outcome %+v, error %v", x.Outcome, err)
	}
}

func TestCorrelationIDIsCreated(t *testing.T) {
	t.Parallel()
	p := setup{store: newStore(t), policy: threeTries, runner: func(_ context.Context, j *job.Job) (*job.Result, error) {
		return &job.Result{Body: []byte(j.Header.Get(transport.HeaderCorrelation))}, nil
	}}.start(t)
	x, err := p.trip(t.Context(), "a")
	if err != nil || string(x.Outcome.Body) != "a" || x.Outcome.CorrelationID != "a" {
		t.Fatalf("outcome %+v, error %v", x.Outcome, err)
	}
}

// backoff doubles, is capped, survives a thousand attempts, and never runs hot.
func TestBackoff(t *testing.T) {
	t.Parallel()
	p := middleware.RetryPolicy{Backoff: 2 * time.Second, MaxBackoff: time.Hour, NoJitter: true}
	for n, want := range map[int]time.Duration{1: 2 * time.Second, 2: 4 * time.Second, 3: 8 * time.Second, 12: time.Hour, 1000: time.Hour, -5: 2 * time.Second} {
		if got := p.Wait(n, 0); got != want {
			t.Errorf("Wait(%d) = %s, want %s", n, got, want)
		}
	}
	if got := p.Wait(1, 3*time.Hour); got != time.Hour {
		t.Errorf("a wish beyond the cap gave %s", got)
	}
	if got := p.Wait(1, 3*time.Second); got != 3*time.Second {
		t.Errorf("a wish of 3 s gave %s", got)
	}
	if got := p.Wait(1000, time.Millisecond); got != time.Hour/100 {
		t.Errorf("a wish of 1 ms after a thousand attempts gave %s: a hot loop", got)
	}
	p.NoJitter = false
	var lo, hi time.Duration = time.Hour, 0
	for range 2000 {
		d := p.Wait(3, 0)
		lo, hi = min(lo, d), max(hi, d)
	}
	if lo < 80*time.Millisecond || lo > time.Second || hi > 8*time.Second || hi < 7*time.Second {
		t.Errorf("jitter from %s to %s, want all of (0, 8s]", lo, hi)
	}
	if d := (middleware.RetryPolicy{}).Wait(1, 0); d < time.Millisecond {
		t.Errorf("no backoff gave %s: a hot loop", d)
	}
}

// a job may ask for a longer backoff and a lower cap; what it asks for beyond those of its route is clamped.
func TestBackoffOfAJob(t *testing.T) {
	t.Parallel()
	route := middleware.RetryPolicy{Backoff: time.Second, MaxBackoff: time.Hour, NoJitter: true}
	const s = time.Second
	for name, tt := range map[string]struct {
		route     middleware.RetryPolicy
		base, cap time.Duration
		want      map[int]time.Duration // by attempt
	}{
		"nothing":               {route, 0, 0, map[int]time.Duration{1: s, 2: 2 * s, 3: 4 * s, 12: 2048 * s, 13: time.Hour, 1000: time.Hour}},
		"base":                  {route, 2 * s, 0, map[int]time.Duration{1: 2 * s, 2: 4 * s, 3: 8 * s, 11: 2048 * s, 12: time.Hour, 1000: time.Hour}},
		"cap":                   {route, 0, 5 * s, map[int]time.Duration{1: s, 2: 2 * s, 3: 4 * s, 4: 5 * s, 1000: 5 * s}},
		"base and cap":          {route, 3 * s, 7 * s, map[int]time.Duration{1: 3 * s, 2: 6 * s, 3: 7 * s, 1000: 7 * s}},
		"base above cap":        {route, 9 * s, 7 * s, map[int]time.Duration{1: 7 * s, 1000: 7 * s}},
		"hot base":              {route, time.Nanosecond, 0, map[int]time.Duration{1: s, 2: 2 * s, 1000: time.Hour}},
		"hot cap":               {route, 0, time.Nanosecond, map[int]time.Duration{1: s, 2: s, 1000: s}},
		"endless base":          {route, math.MaxInt64, 0, map[int]time.Duration{1: time.Hour, 2: time.Hour, 1000: time.Hour}},
		"overflow":              {route, 1<<41 + 1, 0, map[int]time.Duration{1: 1<<41 + 1, 2: time.Hour, 23: time.Hour, 24: time.Hour, 1000: time.Hour}},
		"endless cap":           {route, 0, math.MaxInt64, map[int]time.Duration{1: s, 12: 2048 * s, 13: time.Hour, 1000: time.Hour}},
		"no cap of the route's": {middleware.RetryPolicy{Backoff: s, NoJitter: true}, 2 * s, math.MaxInt64, map[int]time.Duration{1: 2 * s, 1000: time.Hour}},
	} {
		p := tt.route.For(&job.Job{Backoff: tt.base, MaxBackoff: tt.cap})
		for n, want := range tt.want {
			if got := p.Wait(n, 0); got != want {
				t.Errorf("%s: after attempt %d it waits %s, want %s", name, n, got, want)
			}
		}
		if got := p.Wait(1, math.MaxInt64); got > tt.want[1000] {
			t.Errorf("%s: a guest may wish for %s, want at most %s", name, got, tt.want[1000])
		}
	}
}

// the chain waits as the job asks.
func TestRetriesWaitAsTheJobAsks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs []time.Time
		policy := middleware.RetryPolicy{MaxAttempts: 4, Backoff: 10 * time.Millisecond, MaxBackoff: time.Minute, NoJitter: true}
		p := setup{store: newStore(t), policy: policy, runner: func(context.Context, *job.Job) (*job.Result, error) {
			runs = append(runs, time.Now())
			return nil, job.Errorf(job.KindTrap, "again")
		}}.start(t)
		x := &job.Exchange{
			Job:      &job.Job{ID: "a", Route: "jobs", Source: "s", Backoff: 400 * time.Millisecond, MaxBackoff: time.Second},
			Received: time.Now(), Draining: make(chan struct{}),
		}
		if err := p.handle(t.Context(), x); err != nil || len(runs) != 4 {
			t.Fatalf("%d runs, error %v", len(runs), err)
		}
		for i, want := range []time.Duration{400 * time.Millisecond, 800 * time.Millisecond, time.Second} {
			if got := runs[i+1].Sub(runs[i]); got != want {
				t.Errorf("after attempt %d it waited %s, want %s", i+1, got, want)
			}
		}
	})
}

// max_attempts 0 is no end, 1 a single attempt, N are N attempts; a job may ask for fewer.
func TestMaxAttempts(t *testing.T) {
	t.Parallel()
	const end = 200 // when the job of an endless policy goes well
	for _, tt := range []struct{ route, own, want int }{{0, 0, end}, {1, 0, 1}, {2, 0, 2}, {5, 0, 5}, {0, 3, 3}, {5, 2, 2}, {5, 9, 5}, {1, 9, 1}, {0, 1, 1}} {
		runs := 0
		p := setup{store: newStore(t), policy: middleware.RetryPolicy{MaxAttempts: tt.route, Backoff: time.Nanosecond, MaxBackoff: time.Nanosecond}, runner: func(context.Context, *job.Job) (*job.Result, error) {
			if runs++; runs == end {
				return &job.Result{}, nil
			}
			return nil, job.Errorf(job.KindTrap, "again")
		}}.start(t)
		x := &job.Exchange{Job: &job.Job{ID: "a", Route: "jobs", Source: "s", MaxAttempts: tt.own}, Received: time.Now(), Draining: make(chan struct{})}
		if err := p.handle(t.Context(), x); err != nil || runs != tt.want || (x.Outcome.Kind == job.KindOK) != (tt.want == end) {
			t.Errorf("route %d, job %d: %d attempts, outcome %v, error %v; want %d", tt.route, tt.own, runs, x.Outcome, err, tt.want)
		}
	}
}
