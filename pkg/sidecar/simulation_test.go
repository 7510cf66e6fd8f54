package sidecar_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
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
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/inmem"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// world is what outlives the replicas of a simulation: a broker, a store, and what the guests were seen to do. Its time is simulated.
type world struct {
	t      *testing.T
	rnd    *rand.Rand
	broker *inmem.Broker
	store  store.Store
	log    *slog.Logger

	mu      sync.Mutex          // guards what follows, and rnd
	away    bool                // the store does not answer
	running map[string]*replica // jobs that hold capabilities, by who runs them
	twice   []string            // those that ran in two living replicas at once
	runs    int
}

// replica is one life of one process. When it is killed, nothing it does has an effect any more.
type replica struct {
	w    *world
	dead atomic.Bool
	stop context.CancelFunc
	gone chan struct{}
	cut  atomic.Bool // it reaches neither broker nor store
}

var errKilled = errors.New("the process was killed")

// chance says yes once in n times.
func (w *world) chance(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rnd.IntN(n) == 0
}

func (w *world) between(a, b time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a + time.Duration(w.rnd.Int64N(int64(b-a)))
}

// kill ends a replica as SIGKILL does.
func (r *replica) kill() {
	r.dead.Store(true)
	r.w.forget(r)
	r.stop()
}

// sever cuts a replica off for longer than its leases live. What it was at is anybody's then.
func (r *replica) sever() {
	r.w.forget(r)
	r.cut.Store(true)
	time.AfterFunc(r.w.between(35*time.Second, 90*time.Second), func() { r.cut.Store(false) })
}

// forget no longer counts what a replica runs.
func (w *world) forget(r *replica) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, who := range w.running {
		if who == r {
			delete(w.running, id)
		}
	}
}

// at is called wherever a process may die: before something takes effect, or after it did and before anybody heard.
func (r *replica) at() error {
	if r.cut.Load() {
		return errors.New("the network is cut")
	}
	if !r.dead.Load() && r.w.chance(400) {
		r.kill()
	}
	if r.dead.Load() {
		return errKilled
	}
	return nil
}

// mortalStore is the store as one replica sees it.
type mortalStore struct {
	store.Store
	r *replica
}

// Txn fails where the process died, the store is away, or the answer is lost.
func (s mortalStore) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	if err := s.r.at(); err != nil {
		return store.Reply{}, err
	}
	s.r.w.mu.Lock()
	away := s.r.w.away
	s.r.w.mu.Unlock()
	if away {
		return store.Reply{}, errors.New("the store is away")
	}
	reply, err := s.Store.Txn(ctx, t)
	if err == nil && s.r.w.chance(200) {
		err = errors.New("the answer was cut off")
	}
	return reply, errors.Join(err, s.r.at())
}

// mortalPublisher is the broker's publisher as one replica sees it.
type mortalPublisher struct {
	transport.Publisher
	r *replica
}

// Publish fails where the process died, and now and then.
func (p mortalPublisher) Publish(ctx context.Context, ms ...*transport.Message) error {
	if err := p.r.at(); err != nil {
		return err
	}
	if p.r.w.chance(200) {
		return errors.New("the broker is busy")
	}
	err := p.Publisher.Publish(ctx, ms...)
	if err == nil && p.r.w.chance(200) {
		err = errors.New("the answer was cut off")
	}
	return errors.Join(err, p.r.at())
}

// mortalSource is a source whose deliveries a killed process no longer settles.
type mortalSource struct {
	transport.Source
	r *replica
}

// Fetch hands out mortal deliveries.
func (s mortalSource) Fetch(ctx context.Context, limit int) ([]transport.Delivery, error) {
	if s.r.dead.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ds, err := s.Source.Fetch(ctx, limit)
	for i, d := range ds {
		ds[i] = mortalDelivery{d, s.r}
	}
	return ds, err
}

// Extend keeps nothing alive for a killed process.
func (s mortalSource) Extend(ctx context.Context, ds []transport.Delivery) error {
	if err := s.r.at(); err != nil {
		return err
	}
	inner := make([]transport.Delivery, len(ds))
	for i, d := range ds {
		inner[i] = d.(mortalDelivery).Delivery
	}
	return s.Source.Extend(ctx, inner)
}

// Close leaves the group of a living process; what a killed one had is found out by its leases.
func (s mortalSource) Close(ctx context.Context) error {
	if s.r.dead.Load() {
		return nil
	}
	return s.Source.Close(ctx)
}

type mortalDelivery struct {
	transport.Delivery
	r *replica
}

func (d mortalDelivery) Ack() {
	if d.r.at() == nil {
		d.Delivery.Ack()
	}
}

func (d mortalDelivery) Dead(reason string) {
	if d.r.at() == nil {
		d.Delivery.Dead(reason)
	}
}

func (d mortalDelivery) Release() {
	if !d.r.dead.Load() {
		d.Delivery.Release()
	}
}

func (d mortalDelivery) Retry(ctx context.Context, after time.Duration, m *transport.Message) error {
	if err := d.r.at(); err != nil {
		return err
	}
	return errors.Join(d.Delivery.Retry(ctx, after, m), d.r.at())
}

// guest throws dice, takes up to twice a lease, and fails now and then.
type guest struct {
	r    *replica
	pure bool
}

// Pure says what the guest was granted.
func (g guest) Pure() bool { return g.pure }

// Run notes who runs a job that holds capabilities at the same time.
func (g guest) Run(ctx context.Context, j *job.Job) (*job.Result, error) {
	w := g.r.w
	if g.r.dead.Load() {
		return nil, job.Errorf(job.KindUnavailable, "%w", errKilled)
	}
	w.mu.Lock()
	w.runs++
	throw := w.runs
	if other := w.running[j.ID]; other != nil && !g.pure {
		w.twice = append(w.twice, j.ID)
	}
	w.running[j.ID] = g.r
	takes := time.Duration(w.rnd.Int64N(int64(time.Second)))
	if w.rnd.IntN(20) == 0 {
		takes *= 60
	}
	fails := w.rnd.IntN(10) == 0
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		if w.running[j.ID] == g.r {
			delete(w.running, j.ID)
		}
		w.mu.Unlock()
	}()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, job.Errorf(job.KindUnavailable, "%w", context.Cause(ctx))
	}
	if fails {
		return nil, job.Errorf(job.KindTrap, "throw %d", throw)
	}
	return &job.Result{Body: fmt.Appendf(nil, "throw %d", throw)}, nil
}

// start begins a life: a window, a chain and claims over the world's broker and store.
func (w *world) start() *replica {
	ctx, stop := context.WithCancel(context.Background())
	r := &replica{w: w, stop: stop, gone: make(chan struct{})}
	tr := w.broker.Open()
	claims, err := middleware.NewClaims(mortalStore{w.store, r}, middleware.ClaimsConfig{
		Route: "jobs", Partition: "jobs", Scope: "simulated", Lease: 30 * time.Second, Log: w.log,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := middleware.Chain(middleware.Config{
		Route: "jobs", To: "results", DeadLetter: "dead", Publisher: mortalPublisher{tr.Publisher(), r}, Claims: claims, Log: w.log, Sink: event.Discard,
		Runner: func(j *job.Job) (job.Runner, error) { return guest{r, j.Module == "pure"}, nil },
		Retry:  middleware.RetryPolicy{MaxAttempts: 4, MaxCrashes: 50, Backoff: time.Second, MaxBackoff: 20 * time.Second},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	dec := &transport.Decoder{Route: "jobs", MaxAttempts: 4}
	rt, err := router.New(w.log, []router.Route{{
		Open: func(ctx context.Context) (transport.Source, error) {
			s, err := tr.Source(ctx, transport.SourceConfig{Route: "jobs", Subject: "jobs", Limit: 48, Lease: 30 * time.Second})
			return mortalSource{s, r}, err
		},
		Window: router.WindowConfig{Route: "jobs", Limit: 16, MaxOut: 48, DrainTimeout: 90 * time.Second, Decode: dec.Decode, Handle: h, Log: w.log},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(r.gone)
		if err := rt.Run(ctx); err != nil && !r.dead.Load() {
			w.t.Errorf("router: %v", err)
		}
		claims.Close()
	}()
	return r
}

// TestSimulation runs several replicas that die at random places, are cut off for longer than a lease and are stopped in order, beside a store that goes away and answers that get
// lost, in simulated time: no job is lost or stuck, none has two results, and no job that holds capabilities runs twice at once.
// WASMSIDECAR_SIMULATIONS says how many worlds are tried, WASMSIDECAR_SEED which is the first.
func TestSimulation(t *testing.T) {
	t.Parallel()
	worlds, seed := 3, rand.Uint64N(1<<32)
	if n, err := strconv.Atoi(os.Getenv("WASMSIDECAR_SIMULATIONS")); err == nil {
		worlds = n
	}
	if n, err := strconv.ParseUint(os.Getenv("WASMSIDECAR_SEED"), 10, 64); err == nil {
		seed = n
	}
	for i := range uint64(worlds) {
		t.Run(fmt.Sprintf("seed=%d", seed+i), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, seed+i) })
		})
	}
}

func simulate(t *testing.T, seed uint64) {
	const jobs, replicas = 1500, 3
	broker, err := inmem.NewBroker(inmem.Config{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := memkv.Open(memkv.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), broker: broker, store: st, log: slog.New(slog.DiscardHandler), running: map[string]*replica{}}
	observer := broker.Open()
	if err := observer.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs"}, Sinks: []string{"results", "dead"}}); err != nil {
		t.Fatal(err)
	}
	results, err := observer.Tail(t.Context(), "results", true)
	if err != nil {
		t.Fatal(err)
	}
	defer results.Close()

	// The killer: replicas die at random times and places, some are stopped in order, and others take their place.
	end, killerGone := make(chan struct{}), make(chan struct{})
	var lives []*replica
	go func() {
		defer close(killerGone)
		rs := make([]*replica, replicas)
		for {
			for i, r := range rs {
				if r == nil || r.dead.Load() {
					rs[i] = w.start()
					lives = append(lives, rs[i])
				}
			}
			select {
			case <-end:
				for _, r := range lives {
					r.stop()
					<-r.gone
				}
				return
			case <-time.After(w.between(time.Second, 10*time.Second)):
			}
			switch i := int(w.between(0, replicas)); {
			case w.chance(3):
				rs[i].stop()
				<-rs[i].gone
				rs[i] = nil
			case w.chance(3):
				rs[i].kill()
			case w.chance(3) && !rs[i].cut.Load():
				rs[i].sever()
			}
		}
	}()
	// The store goes away now and then, for less than what is left of a lease when it should be renewed.
	awayGone := make(chan struct{})
	go func() {
		defer close(awayGone)
		for {
			select {
			case <-end:
				return
			case <-time.After(w.between(time.Minute, 3*time.Minute)):
			}
			w.setAway(true)
			time.Sleep(w.between(time.Second, 15*time.Second))
			w.setAway(false)
		}
	}()

	for i := range jobs {
		h := job.Header{{Name: transport.HeaderJobID, Value: strconv.Itoa(i)}, {Name: transport.HeaderModule, Value: []string{"pure", "granted"}[i%2]}}
		for more := true; more; more = w.chance(5) { // producers send twice, too
			if err := observer.Publisher().Publish(t.Context(), &transport.Message{Subject: "jobs", Header: h, Body: []byte("throw")}); err != nil {
				t.Fatal(err)
			}
		}
		if i%20 == 0 {
			time.Sleep(w.between(0, 10*time.Second))
		}
	}
	got := map[string]string{}
	repeats, differing := 0, 0
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Hour)
	defer cancel()
	take := func(m *transport.Message) {
		id, body := m.Header.Get(transport.HeaderResultOf), string(m.Body)
		if old, seen := got[id]; !seen {
			got[id] = body
		} else if repeats++; old != body {
			differing++
			t.Errorf("job %s has two results: %s and %s", id, old, body)
		}
	}
	for len(got) < jobs || broker.Held("jobs") > 0 {
		step, done := context.WithTimeout(ctx, time.Minute)
		if m, err := results.Next(step); err == nil {
			take(m)
		}
		done()
		if ctx.Err() != nil {
			t.Errorf("%d of %d jobs have a result, %d messages are held", len(got), jobs, broker.Held("jobs"))
			break
		}
	}
	close(end)
	<-killerGone
	<-awayGone
	for { // what else was written meanwhile
		step, done := context.WithTimeout(t.Context(), time.Second)
		m, err := results.Next(step)
		done()
		if err != nil {
			break
		}
		take(m)
	}
	if len(w.twice) > 0 {
		t.Errorf("jobs that hold capabilities ran twice at once: %v", w.twice)
	}
	t.Logf("%d jobs, %d lives, %d runs, %d equal repeats, %d differing", jobs, len(lives), w.runs, repeats, differing)
	if err := observer.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func (w *world) setAway(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
}
