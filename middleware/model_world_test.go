package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// fault is what befalls one transaction.
type fault uint8

const (
	noFault     fault = iota
	lostRequest       // it never gets there
	lostAnswer        // it takes place, and nobody hears of it
	repeated          // it is sent twice, as clients do whose connection was cut; the second answer is heard
	diesBefore        // the process dies before it sends it
	diesAfter         // the process dies before it hears the answer
)

func (f fault) String() string {
	return [...]string{"", "request lost", "answer lost", "sent twice", "dies before", "dies after"}[f]
}

var (
	errLost = errors.New("the connection was cut")
	errDead = errors.New("the process is dead")
)

// warp is the clock of a store, put forward by the model. What a key's age is then follows from when it was written. Keys do not
// expire by it: that is the store's own clock, which the store's suite and TestClaimsUnderContention have.
type warp struct {
	mu      sync.Mutex
	ahead   time.Duration
	written map[int64]time.Duration // by revision
}

// txn runs t on s and shows it with the times of the model.
func (w *warp) txn(ctx context.Context, s store.Store, t store.Txn) (store.Reply, error) {
	r, err := s.Txn(ctx, t)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return r, err
	}
	if r.Done && len(t.Then) > 0 {
		w.written[r.Revision] = w.ahead
	}
	for i, kv := range r.Read {
		r.Read[i].Modified = kv.Modified.Add(w.written[kv.Revision])
	}
	r.Now = r.Now.Add(w.ahead)
	return r, nil
}

// life is one life of one process: claims and a chain over a connection of its own. It is also its connection to the store, and its
// publisher.
type life struct {
	store.Store
	clock  *warp
	n      int
	claims *middleware.Claims
	handle job.Handler
	trips  map[*trip]bool
	since  int // the step at which the store was cut off

	mu      sync.Mutex
	dead    bool
	cut     bool // it does not reach the store
	mute    bool // the store did not answer when something was to be written
	fault   fault
	at      int           // which transaction of the step it befalls
	fired   bool          // it has
	deaf    int           // 1: the next publish fails; 2: it is done, and nobody hears of it
	heard   int           // which of them came about in this step
	refused chan struct{} // a transaction was, because of the cut
	gone    chan struct{} // closed when it dies
}

// begin starts a life with a connection.
func begin(st store.Store, clock *warp, n int, scope string) (*life, error) {
	l := &life{Store: st, clock: clock, n: n, trips: map[*trip]bool{}, refused: make(chan struct{}, 1), gone: make(chan struct{})}
	log := slog.New(slog.DiscardHandler)
	var err error
	l.claims, err = middleware.NewClaims(l, middleware.ClaimsConfig{
		Route: "jobs", Partition: "jobs", Scope: scope, Lease: modelLease, Results: time.Hour, Log: log,
	})
	if err != nil {
		return nil, err
	}
	l.handle, err = middleware.Chain(middleware.Config{
		Suspects: middleware.NewSuspects().Restless(), Route: "jobs", To: "results", DeadLetter: "dead", Publisher: l, Claims: l.claims, Log: log, Sink: event.Discard,
		Runner: func(j *job.Job) (job.Runner, error) {
			if j.Module == "pure" {
				return pureRunner{guest{}.Run}, nil
			}
			return guest{}, nil
		},
		Retry: middleware.RetryPolicy{
			MaxAttempts: modelAttempts, MaxCrashes: modelCrashes, Backoff: modelSoon, MaxBackoff: modelBackoff, NoJitter: true,
		},
	})
	return l, err
}

// arm sets what befalls the transactions and publishes of a step.
func (l *life) arm(f fault, at, deaf int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault, l.at, l.fired, l.deaf, l.heard = f, at, false, deaf, 0
	select {
	case <-l.refused:
	default:
	}
}

// disarm says whether the fault came about, and whether the process still lives.
func (l *life) disarm() (fired, alive bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fired = l.fired
	l.fault, l.deaf, l.fired = noFault, 0, false
	return fired, !l.dead
}

// Txn runs t as the process sees it.
func (l *life) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	r, err := l.try(ctx, t)
	if len(t.Then) > 0 {
		l.mu.Lock()
		l.mute = err != nil
		l.mu.Unlock()
	}
	return r, err
}

func (l *life) try(ctx context.Context, t store.Txn) (store.Reply, error) {
	l.mu.Lock()
	if l.dead || l.cut {
		defer l.mu.Unlock()
		if l.dead {
			return store.Reply{}, errDead
		}
		select {
		case l.refused <- struct{}{}:
		default:
		}
		return store.Reply{}, errLost
	}
	f := noFault
	if l.fault != noFault {
		if l.at == 0 {
			f, l.fault, l.fired = l.fault, noFault, true
		}
		l.at--
	}
	l.mu.Unlock()
	switch f {
	case diesBefore:
		return store.Reply{}, l.die()
	case lostRequest:
		return store.Reply{}, errLost
	case repeated:
		if _, err := l.clock.txn(ctx, l.Store, t); err != nil {
			return store.Reply{}, err
		}
	}
	r, err := l.clock.txn(ctx, l.Store, t)
	switch {
	case err != nil:
		return r, err
	case f == lostAnswer:
		return store.Reply{}, errLost
	case f == diesAfter:
		return store.Reply{}, l.die()
	}
	return r, nil
}

// die ends the process where it stands.
func (l *life) die() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dead {
		l.dead = true
		close(l.gone)
	}
	return errDead
}

// Publish emits what the process publishes while it lives.
func (l *life) Publish(ctx context.Context, ms ...*transport.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	deaf := l.deaf
	l.deaf, l.heard = 0, max(l.heard, deaf)
	if l.dead || deaf == 1 {
		return errLost
	}
	t := ctx.Value(tripKey{}).(*trip)
	t.emitted = append(t.emitted, ms...)
	if deaf == 2 {
		return errLost
	}
	return nil
}

// MaxBytes is unbounded.
func (l *life) MaxBytes() int { return 0 }

// trip is one message on its way through the chain of one process.
type trip struct {
	n       int
	task    *task
	life    *life
	message int
	open    bool // it runs without a claim
	suspect bool
	waits   *ending // it came to this, and waits for the store
	how     chan ending
	told    chan tale
	cancel  context.CancelFunc
	emitted []*transport.Message // read it when the trip has ended
}

func (t *trip) owner() owner { return owner{t.life.n, t.message, t.n} }

// tale is what a trip tells: the guest was entered, or the trip has ended.
type tale struct {
	attempt int // 0: it has ended
	x       *job.Exchange
	err     error
}

type tripKey struct{}

// guest comes to what it is told.
type guest struct{}

// Run waits to be told.
func (guest) Run(ctx context.Context, j *job.Job) (*job.Result, error) {
	t := ctx.Value(tripKey{}).(*trip)
	t.told <- tale{attempt: j.Attempt}
	select {
	case <-ctx.Done():
		return nil, job.Errorf(job.KindUnavailable, "%w", context.Cause(ctx))
	case e := <-t.how:
		switch e.verb {
		case refuses:
			return nil, job.Errorf(job.KindFailed, "%s", e.body)
		case traps:
			return nil, &job.Error{Kind: job.KindTrap, Err: errors.New(e.body), RetryAfter: modelBackoff}
		case trapsNow:
			return nil, job.Errorf(job.KindTrap, "%s", e.body)
		case parks:
			return nil, &job.Park{For: modelPark}
		case givesUp:
			return nil, job.Errorf(job.KindUnavailable, "%s", e.body)
		}
		return &job.Result{Body: []byte(e.body)}, nil
	}
}

// send begins a trip. One that would wait at the gate finds its process draining.
func (t *trip) send(ctx context.Context, fresh, gated bool) {
	ctx, t.cancel = context.WithCancel(context.WithValue(ctx, tripKey{}, t))
	t.how, t.told = make(chan ending, 1), make(chan tale, 4)
	k := t.task
	source := fmt.Sprintf("jobs/%s-%d-%d", k.id, k.generation, t.message)
	x := &job.Exchange{
		Job: &job.Job{
			ID: k.id, Generation: k.generation, Route: "jobs", Subject: "jobs", Source: source, Module: k.module, MaxAttempts: k.limit,
			Redelivered: !fresh, Moved: k.generation > 0, Body: []byte("in"), Raw: []byte("in"),
		},
		Received: time.Now(),
	}
	draining := make(chan struct{})
	if x.Draining = draining; gated {
		close(draining)
	}
	go func() {
		err := t.life.handle(ctx, x)
		t.told <- tale{x: x, err: err}
	}()
}

// wait returns what the trip tells next; nil when its process is dead, or when it waits for the store and blocks allows for that.
func (t *trip) wait(blocks bool) (*tale, error) {
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	refused := t.life.refused
	if !blocks {
		refused = nil
	}
	select {
	case e := <-t.told:
		return &e, nil
	case <-refused:
	case <-t.life.gone:
	case <-timeout.C:
		return nil, errors.New("nothing came of it in 30 s")
	}
	return nil, nil
}
