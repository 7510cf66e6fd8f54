package runtime

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// patience is how long a job waits for memory before it is handed back, for others to run or to wait for it again.
const patience = 5 * time.Minute

// MemoryUse is how the memory of all guests together stands, in bytes.
type MemoryUse struct {
	Budget  int64  // Config.MemoryBudget
	Running int64  // what running jobs may take
	Idle    int64  // what instances have that wait for a job
	Waiting int    // jobs that wait for memory now
	Waits   uint64 // jobs that have waited
}

// MemoryUse returns how things stand now. It is quick and may be called by many goroutines.
func (e *Engine) MemoryUse() MemoryUse {
	b := e.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	u := MemoryUse{b.limit, b.running.Load(), b.idle.Load(), len(b.queue), b.waits}
	for p := range b.pools {
		reserved, idle := p.seats.kept()
		u.Running -= reserved
		u.Idle += idle
	}
	return u
}

// budget shares the memory of all guests out among jobs. A job begins when all that it may take fits, and never waits once it
// has begun, so no job waits for one that waits. First come is first served, so that a large one is not passed by small ones
// for ever. Instances that wait for a job take what is left; the longest idle are given up when a job needs it.
type budget struct {
	limit   int64 // 0: unbounded
	idle    atomic.Int64
	wanted  atomic.Int32 // jobs for which kept seats are to be given back
	running atomic.Int64 // written under mu
	swept   atomic.Int64 // when seats were last looked through, in nanoseconds since 1970

	mu    sync.Mutex
	queue []*waiter
	pools map[*pool]struct{}
	waits uint64
}

// waiter is a job that waits for n bytes. granted is closed when it has them.
type waiter struct {
	n       int64
	granted chan struct{}
}

// reserve takes n bytes for a job, which has an instance of own to use if one is idle, and waits for them until a time. The error
// is why ctx ended, or that the time has come. release gives them back.
func (b *budget) reserve(ctx context.Context, n int64, own *pool, until time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !time.Now().Before(until) {
		return context.DeadlineExceeded
	}
	b.mu.Lock()
	if b.full(n) {
		b.mu.Unlock()
		b.wanted.Add(1)
		defer b.wanted.Add(-1)
		b.clear(time.Time{})
		b.mu.Lock()
	}
	if b.full(n) {
		w := &waiter{n, make(chan struct{})}
		b.queue = append(b.queue, w)
		b.waits++
		b.mu.Unlock()
		wait, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		select {
		case <-w.granted:
		case <-wait.Done():
			b.leave(w)
			return wait.Err()
		}
		b.makeRoom(own)
		return nil
	}
	crowded := b.running.Add(n)+b.idle.Load() > b.limit && b.limit > 0
	b.mu.Unlock()
	if crowded {
		b.makeRoom(own)
	}
	return nil
}

// clear has all pools give back the seats that they keep and that were last used before a time; the zero Time: all.
func (b *budget) clear(before time.Time) {
	b.mu.Lock()
	pools := slices.Collect(maps.Keys(b.pools))
	b.mu.Unlock()
	for _, p := range pools {
		p.seats.clear(p, before)
	}
}

// tight says whether so much is reserved that what is not in use should be given back at once. Modules that nobody uses any more
// are not to be why.
func (b *budget) tight(now time.Time) bool {
	if b.limit == 0 || b.running.Load() <= b.limit/2 {
		return false
	}
	if last := b.swept.Load(); now.UnixNano()-last > int64(time.Second) && b.swept.CompareAndSwap(last, now.UnixNano()) {
		b.clear(now.Add(-idleFor))
	}
	return true
}

// full says whether a job that wants n bytes must wait. The caller holds mu.
func (b *budget) full(n int64) bool {
	return b.limit > 0 && (len(b.queue) > 0 || b.running.Load()+n > b.limit)
}

func (b *budget) release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running.Add(-n)
	b.grant()
}

// leave takes w out of the queue, or gives back what it was granted just then.
func (b *budget) leave(w *waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.queue, w); i >= 0 {
		b.queue = slices.Delete(b.queue, i, i+1)
	} else {
		b.running.Add(-w.n)
	}
	b.grant()
}

// grant lets those begin who are first in the queue and fit. The caller holds mu.
func (b *budget) grant() {
	for len(b.queue) > 0 && b.running.Load()+b.queue[0].n <= b.limit {
		w := b.queue[0]
		b.queue = slices.Delete(b.queue, 0, 1)
		b.running.Add(w.n)
		close(w.granted)
	}
}

// makeRoom gives idle instances up until they and what runs fit: those of other modules before own's, the longest idle first,
// and never the one that the job is about to use.
func (b *budget) makeRoom(own *pool) {
	if b.limit == 0 {
		return
	}
	for {
		b.mu.Lock()
		over := b.running.Load() + b.idle.Load() - b.limit
		if own != nil {
			over -= own.next()
		}
		var victim *pool
		if over > 0 {
			victim = b.victim(own)
		}
		b.mu.Unlock()
		if victim == nil {
			return
		}
		victim.drop(victim == own)
	}
}

// victim is the pool whose oldest idle instance goes next; nil when there is none to spare. The caller holds mu.
func (b *budget) victim(own *pool) *pool {
	var victim *pool
	var oldest time.Time
	for p := range b.pools {
		if since, n := p.oldest(); p != own && n > 0 && (victim == nil || since.Before(oldest)) {
			victim, oldest = p, since
		}
	}
	if victim == nil && own != nil {
		if _, n := own.oldest(); n > 1 {
			victim = own
		}
	}
	return victim
}

func (b *budget) join(p *pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pools[p] = struct{}{}
}

func (b *budget) part(p *pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.pools, p)
}

type seatKey struct{}

// Admit waits until there is memory for a job, so that whoever bounds the time of its run can begin to count after it. The
// context is for Run, one at a time, after which release must be called once; the module stays open for it until then. Where it
// returns an error the job has not begun: KindExpired when the job's time to begin has passed, else KindUnavailable, because ctx
// ended or too much time went by.
func (m *Module) Admit(ctx context.Context, j *job.Job) (running context.Context, release func(), err error) {
	return m.admitFor(ctx, j, m.own)
}

func (m *Module) admitFor(ctx context.Context, j *job.Job, t terms) (context.Context, func(), error) {
	s, own, err := m.admit(ctx, j, t)
	switch {
	case err != nil:
		return nil, nil, err
	case !own:
		return ctx, func() {}, nil
	}
	return context.WithValue(ctx, seatKey{}, s), s.release, nil
}

// Admitted returns the module that the job of a context was admitted to; nil when there is none.
func Admitted(ctx context.Context) *Module {
	if s, ok := ctx.Value(seatKey{}).(*seat); ok && s != nil {
		return s.m
	}
	return nil
}

// admit is Admit for a job with terms. The seat is the caller's own, to be released, unless the job is admitted already.
func (m *Module) admit(ctx context.Context, j *job.Job, t terms) (s *seat, own bool, err error) {
	if s, ok := ctx.Value(seatKey{}).(*seat); ok && s != nil && s.m == m {
		return s, false, nil
	}
	p, _ := m.instances.(*pool)
	n := m.need(t, p)
	expires := j != nil && !j.ExpiresAt.IsZero()
	if p != nil && ctx.Err() == nil && (!expires || time.Now().Before(j.ExpiresAt)) {
		if s := p.seats.get(n); s != nil {
			return s, true, nil
		}
	}
	if err := m.enter(); err != nil {
		return nil, false, err
	}
	until := time.Now().Add(patience)
	if expires && j.ExpiresAt.Before(until) {
		until = j.ExpiresAt
	}
	if err := m.engine.budget.reserve(ctx, n, p, until); err != nil {
		m.runs.Done()
		if ctx.Err() == nil && expires && !time.Now().Before(j.ExpiresAt) {
			return nil, false, m.failed(job.Errorf(job.KindExpired, "the job expired while it waited for memory (memory_budget)"))
		}
		return nil, false, m.failed(job.Errorf(job.KindUnavailable, "wait for memory (memory_budget): %w", err))
	}
	return &seat{m: m, n: n}, true, nil
}

// need is how much memory a job may take: what it is allowed, or less where the module wants less. A guest that is about to be
// initialized for many jobs has what the module is allowed.
func (m *Module) need(t terms, p *pool) int64 {
	n := t.limits.Memory
	if p != nil && !p.ready() {
		n = m.own.limits.Memory
	}
	if m.abi == ABIExtism { // what the host keeps for it counts
		return n
	}
	if m.code.rewritten.Memory == nil {
		return 0
	}
	return min(n, int64(m.code.rewritten.Memory.Max)*pageSize)
}

// fits says why a module cannot run within the budget.
func (b *budget) fits(limit int64) error {
	if b.limit > 0 && limit > b.limit {
		return fmt.Errorf("limits.memory of %s is more than all modules together may have, %s: lower it or raise memory_budget", size(limit), size(b.limit))
	}
	return nil
}
