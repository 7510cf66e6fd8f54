package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/crash"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// ErrDrainTimeout is the cause with which a job's context ends when draining took longer than the route allows. Such a job is
// not failed: its message is handed back.
var ErrDrainTimeout = errors.New("drain timeout")

// Window keeps at most Limit jobs of one source in flight. It is made by NewWindow and run once, by Run.
type Window struct {
	cfg WindowConfig
	src transport.Source

	base   context.Context // lives until the drain timeout; parent of every job's context
	cancel context.CancelCauseFunc
	drain  chan struct{} // closed when draining begins
	wake   chan struct{} // a slot or a place may have become free
	timer  *time.Timer   // fires when the first parked item is due

	tasks chan *item // to workers that wait

	mu       sync.Mutex
	running  int
	waiting  int      // workers that wait for a task and have not been sent one
	out      itemList // every delivery that is not settled, parked and waiting ones included
	bytes    int64    // of their messages
	typical  int64    // about how many the next message has
	ready    queue    // to be started as soon as a slot is free
	parked   parkedHeap
	keys     map[string]*queue // ordered keys that are busy, and who waits behind them
	draining bool
	trouble  error         // why consumption is paused; nil when it is not
	troubled int           // items whose last trip met trouble: they find out whether it is over
	fetching error         // why the source cannot be read; nil while it can
	idle     chan struct{} // closed when draining and nothing is out

	failed atomic.Int64 // reads of the source that failed
}

// WindowConfig is what a Window needs. Decode and Handle must be safe for concurrent use.
type WindowConfig struct {
	Route string
	// Limit is the most jobs in flight; at least 1.
	Limit int
	// MaxOut is the most deliveries out at once: those in flight, those left for later and those waiting behind a key.
	// 0 means Limit plus 1024.
	MaxOut int
	// Bytes bounds the size of the messages that are out, together with those of other windows; nil for no bound.
	Bytes *Bytes
	// ByKey runs jobs of one key one after another, in the order in which they came. Such jobs are never moved: their retries
	// wait here, without a slot, and their key waits behind them.
	ByKey bool
	// DrainTimeout is how long running jobs are waited for once draining has begun; 0 means 30 s.
	DrainTimeout time.Duration
	// Decode makes the job of a delivery. It never fails: what cannot be decoded is a job with Invalid set.
	Decode func(transport.Delivery) *job.Job
	// Handle is the chain.
	Handle job.Handler
	// Hold, which may be nil, says why no jobs should be taken although all that the chain needs is there; nil when they should.
	// With probe one may be taken, while none is out, to find out whether that is over. It is asked often and must be quick.
	Hold func() (probe bool, why error)
	Log  *slog.Logger
}

const (
	minPause = 50 * time.Millisecond // first pause of a window whose chain reports trouble; doubles
	maxPause = 5 * time.Second
	// shortHold is the longest wait for which a scheduled job keeps its delivery instead of being moved.
	shortHold = 20 * time.Millisecond
	// gather is how long a fetch is put off, while a backlog waits, for more slots to become free: many small fetches cost more
	// than the wait.
	gather = 200 * time.Microsecond
	// maxFault is the longest pause of a source that cannot be read until an operator has mended something.
	maxFault = 30 * time.Second
	// fetchQuiet is how long a read that failed before waits for messages until it counts as one that works. It is longer than any
	// source takes to find out that it does not.
	fetchQuiet = 10 * time.Second
	// holdPoll is how often Hold is asked while it holds.
	holdPoll = 250 * time.Millisecond
	// movePause is the wait after a first failed move; it doubles up to 64 times itself.
	movePause = time.Second
	// sweepEvery is how often parked deliveries are looked at where the source has no lease, which tells how often.
	sweepEvery = 5 * time.Second
	// cancelGrace is how long a job may take to end after its context was cancelled by the drain timeout.
	cancelGrace = 5 * time.Second
)

// NewWindow makes a window over src, which it does not close. It starts nothing.
func NewWindow(src transport.Source, cfg WindowConfig) (*Window, error) {
	switch {
	case src == nil || cfg.Decode == nil || cfg.Handle == nil || cfg.Log == nil:
		return nil, errors.New("window: source, decoder, handler and log are required")
	case cfg.Limit < 1:
		return nil, fmt.Errorf("window: limit %d: want at least 1", cfg.Limit)
	}
	if cfg.MaxOut < cfg.Limit {
		cfg.MaxOut = MaxOut(cfg.Limit)
	}
	if cfg.DrainTimeout <= 0 {
		cfg.DrainTimeout = 30 * time.Second
	}
	base, cancel := context.WithCancelCause(context.Background())
	return &Window{
		cfg: cfg, src: src, base: base, cancel: cancel,
		drain: make(chan struct{}), wake: make(chan struct{}, 1), idle: make(chan struct{}),
		tasks: make(chan *item, cfg.Limit), keys: map[string]*queue{}, typical: guess,
	}, nil
}

// MaxOut is the default bound on deliveries out at once for a window of limit jobs.
func MaxOut(limit int) int { return limit + 1024 }

// Run consumes until ctx ends, then drains: nothing more is fetched, what has not begun is handed back at once, what runs is
// waited for until the drain timeout and cancelled after it. It returns when every delivery is settled or handed back. The
// error is nil after a drain, and says why when the source can give no more.
func (w *Window) Run(ctx context.Context) error {
	defer w.cancel(nil)
	w.timer = time.AfterFunc(time.Hour, w.unpark)
	defer w.timer.Stop()
	beat := make(chan struct{})
	stop := context.AfterFunc(ctx, w.beginDrain)
	defer stop()
	go func() {
		defer close(beat)
		w.heartbeat()
	}()
	err := w.fetch(ctx)
	w.beginDrain()
	w.awaitIdle()
	<-beat
	w.mu.Lock()
	close(w.tasks) // the workers go; nothing is ready any more
	w.mu.Unlock()
	return err
}

// Draining says that the window takes no more.
func (w *Window) Draining() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.draining
}

// InFlight returns the number of jobs running, and of deliveries out, those included.
func (w *Window) InFlight() (running, out int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running, w.out.n
}

// accept takes what was fetched. Without order by key, decoding is left to the goroutine that runs the job.
func (w *Window) accept(ds []transport.Delivery) {
	if len(ds) == 0 {
		return
	}
	now, size := time.Now(), int64(0)
	items := make([]item, len(ds))
	for i, d := range ds {
		items[i].d = d
		items[i].size = int64(d.Message().Size())
		size += items[i].size
		items[i].x.Received = now
		items[i].x.Draining = w.drain
		if w.cfg.ByKey {
			items[i].x.Job = w.decode(d)
			items[i].key = items[i].x.Job.Key
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.measure(len(ds), size)
	for i := range items {
		it := &items[i]
		w.out.add(it)
		switch {
		case w.draining:
			w.release(it)
		case it.key == "":
			w.ready.push(it)
		default:
			if q, busy := w.keys[it.key]; busy {
				q.push(it)
			} else {
				w.keys[it.key] = &queue{}
				it.holds = true
				w.ready.push(it)
			}
		}
	}
	w.pump()
}

// pump starts what is ready while slots are free. The caller holds mu.
func (w *Window) pump() {
	for w.running < w.cfg.Limit && w.ready.len() > 0 {
		w.running++
		if it := w.ready.pop(); w.waiting > 0 {
			w.waiting--
			w.tasks <- it // never blocks: there are no more of them than workers
		} else {
			go w.work(it)
		}
	}
}

// work runs an item, and then others until the window ends: a goroutine whose stack has grown is worth keeping. There are never
// more of them than jobs were in flight at once.
func (w *Window) work(it *item) {
	for more := true; more; it, more = <-w.tasks {
		for it != nil {
			it = w.settle(it, w.carry(it))
		}
	}
}

// carry takes one item through the chain and returns what becomes of it.
func (w *Window) carry(it *item) job.Settlement {
	x := &it.x
	if it.d.Lost() {
		return job.Settlement{Verb: lost}
	}
	if x.Job == nil {
		x.Job = w.decode(it.d)
	}
	if s, early := w.early(it); early {
		return s
	}
	decoded, j := x.Job, *x.Job // the chain may set the attempt; a second trip begins with what was decoded,
	decoded.Redelivered = true  // and the job may have run by then
	*x = job.Exchange{Job: &j, Delivery: it.d, Received: x.Received, Draining: w.drain}
	it.until, it.moves, it.scheduled = time.Time{}, 0, false
	err := w.cfg.Handle(w.base, x)
	s := x.Settlement
	if err != nil {
		s = job.Settlement{Verb: job.Leave, After: w.meetTrouble(it, err)}
	} else {
		w.endTrouble(it)
	}
	it.ran, x.Job = &j, decoded
	return s
}

func (w *Window) decode(d transport.Delivery) *job.Job {
	j := w.cfg.Decode(d)
	j.Raw = d.Message().Body
	return j
}

// lost marks a delivery that is no longer ours: there is nothing to settle.
const lost job.Verb = 255

// settle carries out the decision about an item, frees its slot and returns the next item to run in its place.
func (w *Window) settle(it *item, s job.Settlement) *item {
	gone, wait := true, s.After
	if s.Verb == job.Ack || s.Verb == job.Dead || s.Verb == job.Settled {
		crash.At(crash.BeforeSettle)
	}
	switch s.Verb {
	case job.Settled: // there is nothing left to do
	case job.Ack:
		it.d.Ack()
	case job.Dead:
		it.d.Dead(s.Reason)
	case job.Retry:
		gone, wait = w.move(it, s.After)
	case job.Leave:
		gone = false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	switch {
	case gone:
		w.remove(it)
	case w.draining:
		w.release(it)
	default:
		w.park(it, wait)
	}
	w.signal()
	if w.running < w.cfg.Limit && w.ready.len() > 0 {
		w.running++
		return w.ready.pop()
	}
	w.waiting++
	return nil
}

// remove forgets an item that is settled or handed back, and lets the next of its key go. The caller holds mu.
func (w *Window) remove(it *item) {
	w.out.remove(it)
	w.unmeasure(it.size)
	if it.holds {
		if q := w.keys[it.key]; q.len() == 0 {
			delete(w.keys, it.key)
		} else {
			next := q.pop()
			next.holds = true
			w.ready.push(next)
		}
	}
	if it.troubles > 0 {
		it.troubles = 0
		w.troubled--
	}
	if w.trouble != nil && w.troubled == 0 {
		w.resume() // nothing is left that would find out whether it is over
	}
	if w.draining && w.out.n == 0 && w.running == 0 {
		closeOnce(w.idle)
	}
}
