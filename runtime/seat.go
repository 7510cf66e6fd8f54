package runtime

import (
	goruntime "runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// seat is what a job must have to run: the memory that it may take, reserved in the budget, and its module, which stays open
// meanwhile. The instance that the job used stays in it, and it is kept for the next job as it is: to reserve memory, enter a
// module and take an instance writes to what all processors share, which costs as much as a small job, and to take a kept seat
// does not. What is reserved by kept seats is given back as soon as somebody wants it.
type seat struct {
	m    *Module
	n    int64 // bytes reserved
	in   atomic.Pointer[instance]
	used atomic.Int64 // when its last job ended, in nanoseconds since 1970
	free atomic.Bool  // kept, for whoever makes it false
	size atomic.Int64 // of in while it is kept
	row  bool         // among the seats of its pool; under their mu
	_    [64]byte     // two seats share no cache line
}

// leave takes the instance from the seat; nil when it has none.
func (s *seat) leave() *instance {
	if s == nil {
		return nil
	}
	return s.in.Swap(nil)
}

// take puts an instance into the seat, and reports whether it had room.
func (s *seat) take(in *instance) bool {
	return s != nil && s.in.CompareAndSwap(nil, in)
}

// release ends the job.
func (s *seat) release() {
	p, ok := s.m.instances.(*pool)
	if ok && p.seats.keep(s, p) {
		return
	}
	s.give(p)
}

// give gives back what the seat holds. p is nil for a module without a pool.
func (s *seat) give(p *pool) {
	if in := s.leave(); in != nil {
		p.keep(in)
	}
	s.m.engine.budget.release(s.n)
	s.m.runs.Done()
}

// seats keeps the seats of a pool: as many as there are processors, so that the next job on each finds the instance whose
// memory is in its caches.
type seats struct {
	near   sync.Pool // seats that were kept, by processor; they may be taken or given back by now
	closed atomic.Bool
	swept  atomic.Int64 // when idle instances were last looked through, in nanoseconds since 1970

	mu  sync.Mutex
	row []*seat // free or taken
}

// get returns a seat for a job that may take n bytes, nil when none is kept.
func (k *seats) get(n int64) *seat {
	for range 4 {
		s, _ := k.near.Get().(*seat)
		if s == nil {
			break
		}
		if s.n == n && s.free.CompareAndSwap(true, false) {
			return s
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.row {
		if s.n == n && s.free.CompareAndSwap(true, false) {
			return s
		}
	}
	return nil
}

// keep keeps a seat whose job has ended, unless the memory or the module is wanted otherwise.
func (k *seats) keep(s *seat, p *pool) bool {
	in, now := s.in.Load(), time.Unix(0, s.used.Load())
	if in == nil || p.budget.tight(now) {
		k.part(s)
		return false
	}
	// Before there is need for room, which seats may take up that nobody wants any more: those of a route without jobs.
	if now.UnixNano()-k.swept.Load() > int64(idleFor) {
		k.swept.Store(now.UnixNano())
		p.sweep(now.Add(-idleFor))
	}
	if !s.row && !k.join(s) {
		return false
	}
	s.size.Store(int64(in.size()))
	s.free.Store(true)
	// Whoever wants seats back says so first and looks for free ones then, so one of the two sees the other.
	if k.closed.Load() || p.budget.wanted.Load() > 0 {
		if s.free.CompareAndSwap(true, false) {
			k.part(s)
			return false
		}
		return true
	}
	k.near.Put(s)
	return true
}

// join takes a seat into the row if there is room.
func (k *seats) join(s *seat) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.row) >= goruntime.GOMAXPROCS(0) {
		return false
	}
	s.row = true
	k.row = append(k.row, s)
	return true
}

func (k *seats) part(s *seat) {
	if !s.row {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.row = slices.DeleteFunc(k.row, func(o *seat) bool { return o == s })
	s.row = false
}

// clear gives back what kept seats hold that were last used before a time; the zero Time: all.
func (k *seats) clear(p *pool, before time.Time) {
	var gone []*seat
	k.mu.Lock()
	k.row = slices.DeleteFunc(k.row, func(s *seat) bool {
		// What is taken here is not put back: keep would think that a job has it.
		if !before.IsZero() && !time.Unix(0, s.used.Load()).Before(before) || !s.free.CompareAndSwap(true, false) {
			return false
		}
		s.row = false
		gone = append(gone, s)
		return true
	})
	k.mu.Unlock()
	for _, s := range gone {
		s.give(p)
	}
}

// kept is how many bytes free seats have reserved, and how many of them their instances have.
func (k *seats) kept() (reserved, idle int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.row {
		if s.free.Load() {
			reserved += s.n
			idle += s.size.Load()
		}
	}
	return reserved, idle
}
