package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// D-08: a heartbeat that is about to be written when its job ends does not undo the recorded outcome.
func TestHeartbeatNeverUndoesAnOutcome(t *testing.T) {
	t.Parallel()
	var runs atomic.Int32
	p := setup{store: newStore(t), policy: threeTries, lease: 15 * time.Millisecond, runner: func(context.Context, *job.Job) (*job.Result, error) {
		runs.Add(1)
		time.Sleep(6 * time.Millisecond)
		return &job.Result{Body: []byte("out")}, nil
	}}.start(t)
	const jobs, workers = 4000, 100
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < jobs; i += workers {
				if x, err := p.trip(t.Context(), fmt.Sprint(i)); err != nil || x.Outcome == nil {
					t.Errorf("job %d: outcome %v, error %v", i, x.Outcome, err)
				}
			}
		})
	}
	wg.Wait()
	for i := range jobs {
		if x, err := p.trip(t.Context(), fmt.Sprint(i)); err != nil || !x.Repeat {
			t.Errorf("job %d seen again: settlement %v, error %v; want its recorded outcome", i, x.Settlement, err)
		}
	}
	if n := runs.Load(); n != jobs {
		t.Errorf("%d runs of %d jobs", n, jobs)
	}
}

// D-08: what is delivered beside the delivery that runs is done with soon after it, and not one by one.
func TestRepeatsAreNotServedOneByOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := &lossy{Store: newStore(t), before: func(store.Txn) error {
			time.Sleep(time.Millisecond)
			return nil
		}}
		p := setup{store: st, policy: threeTries, runner: ok}.start(t)
		began := time.Now()
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for {
					x, err := p.trip(t.Context(), "same")
					if err != nil || x.Settlement.Verb == job.Ack {
						return
					}
					time.Sleep(x.Settlement.After)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took > 3*time.Second || len(p.out.to("results")) != 64 {
			t.Errorf("%d results in %s, want them within a second or so", len(p.out.to("results")), took)
		}
	})
}

// A record that is gone when the refused result is to be replaced ends the trip, not the process.
func TestRecordGoneBeforeTheAmendment(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	out := &outbox{}
	out.fail = func(m *transport.Message) error {
		if m.Subject != "results" {
			return nil
		}
		if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{store.Delete(store.Key("jobs", "claim", "", "jobs", "0", "a"))}}); err != nil {
			t.Error(err)
		}
		return fmt.Errorf("result: %w", transport.ErrRejected)
	}
	p := setup{store: st, policy: threeTries, out: out, runner: ok}.start(t)
	x, err := p.trip(t.Context(), "a")
	if err != nil || x.Outcome != nil || x.Settlement.Verb != job.Leave {
		t.Fatalf("outcome %+v, settlement %v, error %v: want the message left", x.Outcome, x.Settlement, err)
	}
}

// skewed is a store whose clock stepped.
type skewed struct {
	store.Store
	step time.Duration
}

func (s *skewed) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	r, err := s.Store.Txn(ctx, t)
	r.Now = r.Now.Add(s.step)
	return r, err
}

func TestStoreClockSteppingBackDoesNotLengthenWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		fails := setup{store: st, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
			return nil, &job.Error{Kind: job.KindRetry, Err: errors.New("later"), RetryAfter: 10 * time.Second}
		}}.start(t)
		if x, err := fails.trip(t.Context(), "retrying"); err != nil || x.Settlement.Verb != job.Retry {
			t.Fatalf("settlement %v, error %v", x.Settlement, err)
		}
		hangs := setup{store: st, policy: threeTries, runner: func(ctx context.Context, _ *job.Job) (*job.Result, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}.start(t)
		go hangs.trip(t.Context(), "running")
		synctest.Wait()
		p := setup{store: &skewed{st, -24 * time.Hour}, policy: threeTries, runner: ok}.start(t)
		if x, err := p.trip(t.Context(), "retrying"); err != nil || x.Settlement.Verb != job.Retry || x.Settlement.After > 10*time.Second {
			t.Errorf("retrying: settlement %v, error %v; want to wait 10 s at most", x.Settlement, err)
		}
		if x, err := p.trip(t.Context(), "running"); err != nil || x.Settlement.Verb != job.Leave || x.Settlement.After > 30*time.Second {
			t.Errorf("running: settlement %v, error %v; want to wait for one lease at most", x.Settlement, err)
		}
	})
}

// A job that goes well while it is being given up is not run again.
func TestOutcomeIsRecordedInTheGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		ctx, cancel := context.WithCancel(t.Context())
		first := setup{store: st, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
			cancel()
			return &job.Result{Body: []byte("out")}, nil
		}}.start(t)
		first.trip(ctx, "a") // what could not be published any more is published by the next owner
		second := setup{store: st, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
			t.Error("ran again")
			return nil, nil
		}}.start(t)
		x, err := second.trip(t.Context(), "a")
		if err != nil || !x.Repeat || string(x.Outcome.Body) != "out" {
			t.Fatalf("outcome %+v, settlement %v, error %v: want the recorded one", x.Outcome, x.Settlement, err)
		}
	})
}

// A crash is told when it is found, not again with every later attempt of the job.
func TestCrashIsToldOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStore(t)
		first := setup{store: st, policy: threeTries, lease: time.Second, runner: func(ctx context.Context, _ *job.Job) (*job.Result, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}.start(t)
		go first.trip(t.Context(), "a")
		synctest.Wait()
		first.claims.Close()
		time.Sleep(2 * time.Second)
		second := setup{store: st, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
			return nil, &job.Error{Kind: job.KindRetry, Err: errors.New("later"), RetryAfter: 10 * time.Second}
		}}.start(t)
		for range 2 {
			if _, err := second.trip(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(11 * time.Second)
		}
		if n := second.events.count(event.Crashed); n != 1 {
			t.Fatalf("one crash was told %d times", n)
		}
	})
}

func ExampleChain() {
	claims, _ := middleware.NewClaims(exampleStore(), middleware.ClaimsConfig{Route: "upper", Partition: "jobs", Log: discard})
	defer claims.Close()
	out := &outbox{}
	handle, err := middleware.Chain(middleware.Config{
		Route: "upper", To: "results", DeadLetter: "jobs_dlq", Publisher: out, Claims: claims,
		Runner: func(*job.Job) (job.Runner, error) {
			return job.RunnerFunc(func(_ context.Context, j *job.Job) (*job.Result, error) {
				return &job.Result{Body: []byte(strings.ToUpper(string(j.Body)))}, nil
			}), nil
		},
		Retry: middleware.RetryPolicy{MaxAttempts: 5, Backoff: time.Second, MaxBackoff: time.Minute},
		Sink:  event.Discard, Log: discard,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 2 { // the second delivery of one job gives the recorded result
		x := &job.Exchange{Job: &job.Job{ID: "1", Route: "upper", Subject: "jobs", Body: []byte("hello")}}
		if err := handle(context.Background(), x); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s, repeat %t: %s\n", x.Settlement.Verb, x.Repeat, out.to("results")[len(out.to("results"))-1].Body)
	}
	// Output:
	// ack, repeat false: HELLO
	// ack, repeat true: HELLO
}

var discard = slog.New(slog.DiscardHandler)

func exampleStore() store.Store {
	s, err := memkv.Open(memkv.Config{})
	if err != nil {
		panic(err)
	}
	return s
}
