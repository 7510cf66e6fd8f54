package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// task is one generation of a job, with what is promised of it.
type task struct {
	promise
	id         string
	generation int
	module     string
	delivered  [2]bool // its two messages
	token      uint64
	verified   promise // as the store was last seen to hold it
	result     string  // as it was published first
}

func (k *task) String() string { return fmt.Sprintf("%s.%d", k.id, k.generation) }

// world is a run of the model: processes over one store, jobs, and the promises that are held against what is seen.
type world struct {
	ctx      context.Context
	conns    []store.Store
	scope    string // keeps runs over one store apart
	clock    *warp
	lives    []*life
	operator *life
	slots    []*task // the newest generation of each job under way
	tasks    []*task
	trips    []*trip // whose guest was entered and has not ended
	step     int
	n        int // of lives, jobs and trips
	told     []string
}

func newWorld(ctx context.Context, conns []store.Store, scope string) (*world, error) {
	w := &world{ctx: ctx, conns: conns, scope: scope, clock: &warp{written: map[int64]time.Duration{}}, lives: make([]*life, 3)}
	for i := range w.lives {
		if err := w.start(i); err != nil {
			return nil, err
		}
	}
	var err error
	if w.operator, err = begin(conns[0], w.clock, 0, scope); err != nil {
		return nil, err
	}
	for i := range 4 {
		w.slots = append(w.slots, nil)
		w.replace(i, i)
	}
	return w, nil
}

func (w *world) start(i int) (err error) {
	w.n++
	w.lives[i], err = begin(w.conns[i%len(w.conns)], w.clock, w.n, w.scope)
	return err
}

// replace puts a new job into a slot.
func (w *world) replace(slot, by int) {
	w.n++
	k := &task{id: fmt.Sprint("j", w.n), module: []string{"granted", "pure"}[by%2]}
	if by/2%4 == 0 {
		k.limit = 1
	}
	w.slots[slot] = k
	w.tasks = append(w.tasks, k)
}

func (w *world) tell(format string, args ...any) {
	w.told = append(w.told, fmt.Sprintf(format, args...))
}

// close ends what is left of the processes.
func (w *world) close() {
	for _, l := range append(w.lives, w.operator) {
		if l != nil {
			_ = l.die()
			w.bury(l)
		}
	}
}

// run takes the moves and then sees every job to its end. The error is the first promise that was broken.
func (w *world) run(ms []move) error {
	for i, m := range ms {
		w.step = i
		if err := w.take(m); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	if err := w.settle(); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return nil
}

func (w *world) take(m move) error {
	for _, l := range w.lives {
		if l.cut && w.step-l.since > 12 { // what waits for the store waits longer and longer
			if err := w.heal(l); err != nil {
				return err
			}
		}
	}
	l, k := w.lives[m.who%len(w.lives)], w.slots[m.what%len(w.slots)]
	switch m.act {
	case finish:
		var able []*trip
		for _, t := range w.trips {
			if t.waits == nil {
				able = append(able, t)
			}
		}
		if len(able) > 0 {
			return w.finish(able[m.who%len(able)], m)
		}
	case beat:
		return w.beat(l, m)
	case pass:
		w.pass(time.Duration(1+m.by%11) * time.Hour)
		return nil
	case kill, lapse:
		w.tell("process %d is killed", l.n)
		_ = l.die()
		if m.act == lapse {
			defer w.pass(11 * time.Hour)
		}
		return w.reap(l, nil)
	case cutOff:
		w.cut(l)
		return nil
	case heal:
		return w.heal(l)
	case pause:
		for _, l := range w.lives {
			w.cut(l)
		}
		return nil
	case resume:
		for _, l := range w.lives {
			if err := w.heal(l); err != nil {
				return err
			}
		}
		return nil
	case cancel:
		return w.cancel(k, m)
	case wake:
		return w.wake(k, m)
	case redrive:
		if k.outcome != "" {
			next := &task{id: k.id, generation: k.generation + 1, module: k.module, promise: promise{limit: k.limit}}
			w.slots[m.what%len(w.slots)] = next
			w.tasks = append(w.tasks, next)
			w.tell("%s is redriven as %s", k, next)
			return nil
		}
	case renew:
		if k.outcome != "" {
			w.replace(m.what%len(w.slots), m.by)
			return nil
		}
	case drop:
		if strings.HasPrefix(k.outcome, "ok ") {
			w.tell("the body of %s is dropped", k)
			k.bare = true
			return w.operator.claims.Drop(w.ctx, w.conns[0], k.id, k.generation)
		}
	}
	return w.deliver(l, k, m)
}

func (w *world) now() time.Duration {
	w.clock.mu.Lock()
	defer w.clock.mu.Unlock()
	return w.clock.ahead
}

func (w *world) pass(d time.Duration) {
	w.clock.mu.Lock()
	defer w.clock.mu.Unlock()
	w.clock.ahead += d
	w.tell("%s go by, it is %s", d, w.clock.ahead)
}

// cut cuts a process off from the store.
func (w *world) cut(l *life) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut {
		l.cut, l.since = true, w.step
		w.tell("process %d is cut off", l.n)
	}
}

// heal lets a process reach the store again; what waited for it goes on.
func (w *world) heal(l *life) error {
	l.mu.Lock()
	was := l.cut
	l.cut = false
	l.mu.Unlock()
	if !was {
		return nil
	}
	w.tell("process %d reaches the store again", l.n)
	soon := false
	for _, t := range slices.Clone(w.trips) {
		if t.life == l && t.waits != nil {
			before, e := t.task.promise, *t.waits
			e.late, t.waits = true, nil
			if err := w.see(t, t.task.finish(w.now(), t.owner(), t.open, e), before, before); err != nil {
				return err
			}
			soon = soon || e.verb == trapsNow
		}
	}
	if soon {
		w.pass(time.Hour) // it is due in a moment
	}
	return nil
}

func (w *world) deliver(l *life, k *task, m move) error {
	message := m.by % len(k.delivered)
	w.n++
	t := &trip{n: w.n, task: k, life: l, message: message}
	a := asker{
		owner:  t.owner(),
		unseen: k.module == "pure" && !k.delivered[message] && k.generation == 0,
	}
	l.mu.Lock()
	a.mute, a.cut = l.mute, l.cut
	l.mu.Unlock()
	for o := range l.trips {
		a.busy = a.busy || o.task == k
		a.suspect = a.suspect || o.suspect
		a.others = true
	}
	fresh := !k.delivered[message]
	k.delivered[message] = true
	before := k.promise
	want := k.promise.deliver(w.now(), a)
	w.tell("message %d of %s to process %d (%s): %s", message, k, l.n, m.fault, want)
	half := before // where the answer to the claim is lost the job was granted, and nobody knows
	if mine := before.held && before.owner == (owner{l.n, message, 0}); k.promise != before && !mine {
		crashes := before.crashes
		if before.held {
			crashes++
		}
		half.grant(w.now(), owner{l.n, message, 0}, crashes)
	}
	t.open, t.suspect = want.open, want.enters && !want.open && k.suspect(k.crashes)
	l.trips[t] = true
	w.trips = append(w.trips, t)
	l.arm(m.fault, m.at, m.deaf)
	t.send(w.ctx, fresh, want.gated)
	return w.see(t, want, before, half)
}

// endings are what guests come to, with how often.
var endings = []endVerb{goesWell, goesWell, goesWell, goesWell, refuses, traps, traps, traps, trapsNow, parks, givesUp}

func (w *world) finish(t *trip, m move) error {
	e := ending{verb: endings[m.by%len(endings)], body: fmt.Sprint("throw ", w.step), late: t.suspect}
	l, k := t.life, t.task
	before, half := k.promise, k.promise
	var want sight
	if l.cut {
		want, t.waits = sight{blocks: true}, &e
	} else {
		late := e
		late.late = true
		half.finish(w.now(), t.owner(), t.open, late)
		want = k.finish(w.now(), t.owner(), t.open, e)
	}
	w.tell("%s in process %d %s with %q (%s): %s", k, l.n, e.verb, e.body, m.fault, want)
	l.arm(m.fault, m.at, m.deaf)
	t.how <- e
	if err := w.see(t, want, before, half); err != nil {
		return err
	}
	if e.late && e.verb == trapsNow {
		w.pass(time.Hour) // it is due in a moment
	}
	return nil
}

// reap buries a dead process and puts another in its place. What each job that it had in hand came to is one of may, or as promised.
func (w *world) reap(l *life, t *trip, may ...promise) error {
	var had []*task
	for o := range l.trips {
		had = append(had, o.task)
	}
	w.bury(l)
	w.tell("process %d is dead", l.n)
	if t != nil {
		k := t.task
		had = append(had, k)
		if err := w.verify(k, append(may, k.promise)...); err != nil {
			return err
		}
		if _, err := w.published(t); err != nil {
			return err
		}
	}
	for _, k := range had {
		renewed := k.promise
		renewed.until = w.now() + modelLease
		if err := w.verify(k, k.promise, renewed); err != nil {
			return err
		}
	}
	return w.start(slices.Index(w.lives, l))
}

// bury waits until nothing of a dead process is left.
func (w *world) bury(l *life) {
	for t := range l.trips {
		t.cancel()
		for e := range t.told {
			if e.x != nil {
				break
			}
		}
		w.end(t)
	}
	_ = l.claims.Close()
}

func (w *world) beat(l *life, m move) error {
	w.tell("process %d renews its leases (%s)", l.n, m.fault)
	l.arm(m.fault, m.at, 0)
	l.claims.Beat()
	if fired, alive := l.disarm(); !alive {
		return w.reap(l, nil)
	} else if fired {
		l.claims.Beat() // what was not heard the first time
	}
	if l.cut {
		return nil
	}
	for _, t := range slices.Clone(w.trips) {
		if t.life != l || t.open {
			continue
		}
		var err error
		if t.task.beat(w.now(), t.owner()) {
			err = w.verify(t.task, t.task.promise)
		} else { // it finds out that it has lost the job, and is stopped
			err = w.see(t, sight{verb: job.Leave, most: time.Second}, t.task.promise, t.task.promise)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// operate is an operator's request, of which done says whether it was granted.
func (w *world) operate(k *task, m move, what string, granted bool, before promise, no error, ask func() error) error {
	f := m.fault
	if f > repeated {
		f = lostRequest + f - diesBefore // the operator's process does not die here
	}
	w.operator.arm(f, m.at%2, 0)
	err := ask()
	fired, _ := w.operator.disarm()
	w.tell("an operator has %s %s (%s): %v", what, k, f, err)
	switch {
	case fired && f != repeated && err != nil && !errors.Is(err, no):
		return w.verify(k, before, k.promise)
	case granted && err != nil, !granted && !errors.Is(err, no):
		return fmt.Errorf("%s is to be %s: %v; granted should be %t", k, what, err, granted)
	}
	return w.verify(k, k.promise)
}

func (w *world) cancel(k *task, m move) error {
	before, reason := k.promise, fmt.Sprint("reason ", w.step)
	return w.operate(k, m, "cancelled", k.cancel(reason), before, middleware.ErrDone, func() error {
		return w.operator.claims.Cancel(w.ctx, k.id, k.generation, reason)
	})
}

func (w *world) wake(k *task, m move) error {
	before := k.promise
	return w.operate(k, m, "woken", k.wake(w.now()), before, middleware.ErrNotWaiting, func() error {
		return w.operator.claims.Wake(w.ctx, k.id, k.generation)
	})
}

// settle sees every job to its end, as no job is ever stuck, and every outcome come again.
func (w *world) settle() error {
	for _, l := range w.lives {
		if err := w.heal(l); err != nil {
			return err
		}
	}
	for len(w.trips) > 0 {
		if err := w.finish(w.trips[0], move{}); err != nil {
			return err
		}
	}
	for _, k := range w.tasks {
		for round := 0; k.outcome == ""; round++ {
			if round > modelAttempts+modelCrashes {
				return fmt.Errorf("%s is stuck: %s", k, &k.promise)
			}
			w.pass(21 * time.Hour)
			if err := w.deliver(w.lives[0], k, move{}); err != nil {
				return err
			}
			if len(w.trips) > 0 {
				if err := w.finish(w.trips[0], move{}); err != nil {
					return err
				}
			}
		}
		k.delivered[1] = true
		if err := w.deliver(w.lives[1], k, move{by: 1}); err != nil {
			return err
		}
	}
	return nil
}
