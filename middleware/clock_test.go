package middleware_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// warped is a store whose clock is put forward and back.
type warped struct {
	store.Store
	clock *warp
}

func (w warped) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	return w.clock.txn(ctx, w.Store, t)
}

func (w *warp) step(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead += d
}

// The store's clock is put back by an hour: the lease of an owner who is gone still runs out, a retry still comes, and an owner who
// lives keeps his job.
func TestStoreClockIsPutBack(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		lives bool // the first owner
		fails bool // the first attempt
		wait  time.Duration
		verbs string
		runs  int
	}{
		{name: "the owner is gone", wait: 30 * time.Second, verbs: "leave ack", runs: 2},
		{name: "the owner lives", lives: true, wait: 15 * time.Second, verbs: "leave leave leave leave", runs: 1},
		{name: "a retry", lives: true, fails: true, wait: time.Minute, verbs: "retry ack", runs: 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				st, runs := warped{newStore(t), &warp{written: map[int64]time.Duration{}}}, 0
				over := make(chan struct{})
				run := func(ctx context.Context, j *job.Job) (*job.Result, error) {
					if runs++; runs > 1 {
						return &job.Result{}, nil
					}
					if tt.fails {
						return nil, &job.Error{Kind: job.KindTrap, Err: errLost, RetryAfter: time.Minute}
					}
					<-over
					return &job.Result{}, ctx.Err()
				}
				policy := threeTries
				first := setup{store: st, policy: policy, runner: run}.start(t)
				if !tt.lives {
					first.claims.Close() // and so its heartbeat
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					if x, err := first.trip(t.Context(), "a"); tt.lives && !tt.fails && (err != nil || x.Settlement.Verb != job.Ack) {
						t.Errorf("the owner who lives: settlement %v, error %v", x.Settlement, err)
					}
				}()
				synctest.Wait()
				st.clock.step(-time.Hour)
				second := setup{store: st, policy: policy, runner: run}.start(t)
				var verbs []string
				for range 4 {
					x := second.exchange("a")
					x.Job.Source = "jobs/elsewhere"
					if err := second.handle(t.Context(), x); err != nil {
						t.Fatal(err)
					}
					verbs = append(verbs, x.Settlement.Verb.String())
					if x.Settlement.Verb == job.Ack {
						break
					}
					if x.Settlement.After > tt.wait && !tt.lives {
						t.Errorf("left for %s", x.Settlement.After)
					}
					time.Sleep(tt.wait)
				}
				close(over)
				<-done
				if got := strings.Join(verbs, " "); got != tt.verbs || runs != tt.runs {
					t.Errorf("%s, %d runs; want %s, %d", got, runs, tt.verbs, tt.runs)
				}
			})
		})
	}
}

// Names with which the keys of some jobs would be too long are refused at the start, and not when such a job comes.
func TestNamesTooLongForKeys(t *testing.T) {
	t.Parallel()
	cfg := middleware.ClaimsConfig{Route: "r", Partition: "p", Scope: "kafka:g", Log: slog.New(slog.DiscardHandler)}
	for _, long := range []*string{&cfg.Route, &cfg.Partition, &cfg.Scope} {
		was := *long
		*long = strings.Repeat("/", 300)
		if _, err := middleware.NewClaims(newStore(t), cfg); err == nil || !strings.Contains(err.Error(), "shorten") {
			t.Errorf("error %v", err)
		}
		*long = was
	}
}
