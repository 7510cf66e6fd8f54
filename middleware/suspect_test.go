package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
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
