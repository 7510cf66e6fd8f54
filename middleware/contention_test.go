package middleware_test

import (
	"cmp"
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
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	contendedLease = 300 * time.Millisecond
	// clockSlack is what a store's clock may be off by: NATS does not tell its own with each answer.
	clockSlack = 25 * time.Millisecond
)

// history is what several processes that compete for few jobs over one store wrote and ran, to be looked through afterwards.
type history struct {
	mu      sync.Mutex
	writes  map[string][]written    // by key
	runs    map[string][]*contender // whose guests are at it, by job
	results map[string]string       // by job
	wrong   []string
}

// written is one write of a record that took place.
type written struct {
	over, revision int64     // what it replaced, and what it became
	sent, heard    time.Time // by the machine's clock, on which the store runs too: it took place in between
	by             *contender
	middleware.Recorded
}

func (h *history) fail(format string, args ...any) {
	h.wrong = append(h.wrong, fmt.Sprintf(format, args...))
}

// contender is one life of one process that competes. It stalls and dies as its guests say.
type contender struct {
	store.Store
	h      *history
	claims *middleware.Claims
	handle job.Handler
	life   context.Context // until it dies
	die    context.CancelFunc
	stall  atomic.Int64 // nothing is sent until then, Unix nanoseconds
	mu     sync.Mutex
	sent   map[string]time.Time // when the last write of a record that took place was sent, by job
}

// Txn writes down what took place. A process that stalls sends it later all the same.
func (c *contender) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	time.Sleep(time.Until(time.Unix(0, c.stall.Load())))
	if c.life.Err() != nil {
		return store.Reply{}, errDead
	}
	sent := time.Now()
	r, err := c.Store.Txn(context.WithoutCancel(ctx), t) // whatever takes place is heard of, even where nobody waits for it
	heard := time.Now()
	if err != nil || !r.Done || len(t.Then) == 0 {
		return r, err
	}
	key := t.Then[0].Key
	id := key[strings.LastIndex(key, "/")+1:]
	rec, err := middleware.ReadRecord(t.Then[0].Value, id)
	if err != nil {
		return r, err
	}
	c.mu.Lock()
	c.sent[id] = sent
	c.mu.Unlock()
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.h.writes[key] = append(c.h.writes[key], written{t.If[0].Revision, r.Revision, sent, heard, c, rec})
	return r, nil
}

// Publish compares what is published.
func (c *contender) Publish(_ context.Context, ms ...*transport.Message) error {
	if c.life.Err() != nil {
		return errDead
	}
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	for _, m := range ms {
		id := m.Header.Get(transport.HeaderResultOf)
		if old, seen := c.h.results[id]; seen && old != string(m.Body) {
			c.h.fail("job %s has two results: %s and %s", id, old, m.Body)
		}
		c.h.results[id] = string(m.Body)
	}
	return nil
}

// MaxBytes is unbounded.
func (c *contender) MaxBytes() int { return 0 }

// Run is a guest that goes well, fails, takes longer than a lease, or has its process stall beyond its lease or die.
func (c *contender) Run(ctx context.Context, j *job.Job) (*job.Result, error) {
	h := c.h
	h.mu.Lock()
	for _, o := range h.runs[j.ID] {
		o.mu.Lock()
		living := time.Until(o.sent[j.ID].Add(contendedLease - clockSlack))
		o.mu.Unlock()
		if living > 0 && o.life.Err() == nil {
			h.fail("job %s has two holders: the first one's lease lives for another %s", j.ID, living)
		}
	}
	h.runs[j.ID] = append(h.runs[j.ID], c)
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.runs[j.ID] = slices.DeleteFunc(h.runs[j.ID], func(o *contender) bool { return o == c })
	}()
	takes := rand.N(10 * time.Millisecond)
	switch rand.IntN(8) {
	case 0:
		takes = contendedLease * 3 / 2
	case 1:
		takes = contendedLease * 3 / 2
		c.stall.Store(time.Now().Add(takes).UnixNano())
	case 2:
		c.die()
		return nil, job.Errorf(job.KindUnavailable, "%w", errDead)
	case 3, 4:
		return nil, job.Errorf(job.KindTrap, "failed")
	}
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, job.Errorf(job.KindUnavailable, "%w", context.Cause(ctx))
	}
	return &job.Result{Body: fmt.Appendf(nil, "throw %d", rand.Uint64())}, nil
}

func contend(st store.Store, h *history) (*contender, error) {
	c := &contender{Store: st, h: h, sent: map[string]time.Time{}}
	c.life, c.die = context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	var err error
	c.claims, err = middleware.NewClaims(c, middleware.ClaimsConfig{Route: "jobs", Partition: "jobs", Lease: contendedLease, Log: log})
	if err != nil {
		return nil, err
	}
	c.handle, err = middleware.Chain(middleware.Config{
		Route: "jobs", To: "results", Publisher: c, Claims: c.claims, Log: log, Sink: event.Discard,
		Runner: func(*job.Job) (job.Runner, error) { return c, nil },
		Retry:  middleware.RetryPolicy{Backoff: 5 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, MaxHold: 20 * time.Millisecond},
	})
	return c, err
}

// Six processes over three connections compete for few jobs, by the store's own clock and with real heartbeats. What they wrote is
// one line of writes for each job, each over the one before: one holder at a time while leases live, growing tokens, one outcome
// and nothing after it.
func TestClaimsUnderContention(t *testing.T) {
	t.Parallel()
	jobs := int(number(t, "WASMSIDECAR_MODEL_STEPS", 2000) / 250)
	for name, open := range modelStores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &history{writes: map[string][]written{}, runs: map[string][]*contender{}, results: map[string]string{}}
			conns := open(t)
			var over atomic.Int64 // jobs below are done
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					if err := compete(t.Context(), conns[i%len(conns)], h, jobs, &over); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			h.check(t, jobs)
		})
	}
}

// compete lives, and lives again, until all jobs are done; over says how many are, of which the next four are worked at.
func compete(ctx context.Context, st store.Store, h *history, jobs int, over *atomic.Int64) error {
	for message := 0; ; {
		c, err := contend(st, h)
		if err != nil {
			return err
		}
		for c.life.Err() == nil {
			first := int(over.Load())
			if first >= jobs {
				return c.claims.Close()
			}
			id := fmt.Sprint("j", min(first+rand.IntN(4), jobs-1))
			message++
			x := &job.Exchange{
				Job:      &job.Job{ID: id, Route: "jobs", Subject: "jobs", Source: fmt.Sprint("jobs/", message%3), Body: []byte("in"), Redelivered: true},
				Received: time.Now(), Draining: make(chan struct{}),
			}
			life, cancel := context.WithCancel(ctx)
			stop := context.AfterFunc(c.life, cancel) // a dead process waits for nothing
			err := c.handle(life, x)
			stop()
			cancel()
			switch {
			case err != nil && c.life.Err() == nil && ctx.Err() != nil:
				return errors.Join(err, c.claims.Close())
			case err == nil && x.Outcome != nil && id == fmt.Sprint("j", first):
				over.CompareAndSwap(int64(first), int64(first)+1)
			case err == nil && x.Settlement.After > 0:
				time.Sleep(min(x.Settlement.After, 5*time.Millisecond))
			}
		}
		if err := c.claims.Close(); err != nil {
			return err
		}
	}
}

// check looks through the history.
func (h *history) check(t *testing.T, jobs int) {
	t.Helper()
	for _, w := range h.wrong {
		t.Error(w)
	}
	if len(h.writes) != jobs {
		t.Errorf("%d jobs have a record, want %d", len(h.writes), jobs)
	}
	n := 0
	for key, ws := range h.writes {
		slices.SortFunc(ws, func(a, b written) int { return cmp.Compare(a.revision, b.revision) })
		var last written
		for _, w := range ws {
			n++
			living := last.State == "running" && w.heard.Before(last.sent.Add(contendedLease-clockSlack))
			switch {
			case w.over != last.revision:
				t.Errorf("%s: revision %d was written over %d, which was not the last, %d", key, w.revision, w.over, last.revision)
			case w.Token < last.Token:
				t.Errorf("%s: token %d after %d", key, w.Token, last.Token)
			case last.State == "done":
				t.Errorf("%s: a write after the outcome: %+v", key, w)
			case w.Token == last.Token && (w.by != last.by || last.State != "running"):
				t.Errorf("%s: token %d serves two holders", key, w.Token)
			case w.Token > last.Token && living:
				t.Errorf("%s: another holder after %s of a lease of %s", key, w.heard.Sub(last.sent), contendedLease)
			case w.Token > last.Token && w.Crashes-last.Crashes != btoi(last.State == "running"):
				t.Errorf("%s: %d crashes after %d and a holder that was %s", key, w.Crashes, last.Crashes, last.State)
			case w.Token > last.Token && w.Attempts != last.Attempts+1:
				t.Errorf("%s: attempt %d after %d", key, w.Attempts, last.Attempts)
			}
			last = w
		}
		if last.State != "done" {
			t.Errorf("%s ends %s", key, last.State)
		}
	}
	t.Logf("%d jobs, %d writes", jobs, n)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
