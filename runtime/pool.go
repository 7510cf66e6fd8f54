package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/runtime/wasi"
)

// Isolation is what separates the jobs of a module from one another.
type Isolation string

// The levels of isolation.
const (
	// IsolationReset: instances are used again, and after each job memory and globals are put back to what they were before
	// the first. A guest cannot tell it from IsolationFresh, except that what _initialize drew (random seeds, the time) is drawn
	// once; a module that cannot be reset runs fresh. The empty Isolation means the same.
	IsolationReset Isolation = "reset"
	// IsolationFrozen is IsolationReset for programs that cost much to start: they go on from their first read of stdin in each
	// job even if they have looked at the clock or drawn random numbers by then (as Go programs do when they start), so that
	// seeds of theirs are the same for many jobs. Random numbers that they draw thereafter are not.
	IsolationFrozen Isolation = "frozen"
	// IsolationFresh: each job has an instance that is made for it.
	IsolationFresh Isolation = "fresh"
	// IsolationReuse: instances are used again as the last job left them, unless it crashed, or they have more than half of
	// their memory by then and still take more. For guests that are trusted to keep jobs apart themselves.
	IsolationReuse Isolation = "reuse"
)

// When an instance is not used again, whatever it looks like.
const (
	maxJobs    = 100_000
	maxCrashes = 64
	maxBytes   = 64 << 30    // that its jobs read, wrote and took as memory, all together
	maxIdle    = 64          // that wait already
	idleFor    = time.Minute // for which it was not needed
)

// pool keeps instances for further jobs. It makes the first by running the guest's initialization and takes an image of what
// that leaves; later ones begin with the image.
type pool struct {
	code   *code
	driver driver
	means  means
	reuse  bool // do not put anything back
	freeze bool // programs go on from their first read of stdin, unless thawed
	draws  bool // what they have drawn by then does not matter
	log    *slog.Logger
	module string
	budget *budget

	snap  atomic.Pointer[snapshot] // set under mu, once
	seats seats

	mu      sync.Mutex
	thawed  error     // why they cannot
	halted  *snapshot // of the first program that was frozen
	refused bool      // there can be no image: instances are for one job each
	idle    []idler
}

// idler is an instance that waits for a job; the last to come is the first to go.
type idler struct {
	in    *instance
	since time.Time
}

// snapshot is everything that an initialized guest is.
type snapshot struct {
	image   *image
	globals []uint64
	state   wasi.State
}

func (p *pool) get(ctx context.Context, r *run) (*instance, error) {
	in, snap := r.seat.leave(), p.snap.Load()
	if in == nil {
		in = p.take()
	}
	if in != nil && (p.reuse || in.frozen != nil) && int64(in.size()) > r.limits.Memory {
		in.close() // it took more for another job, or before it was frozen, than this one may
		in = nil
	}
	if in != nil {
		r.call.Lender = in
	} else {
		var err error
		if in, err = p.code.instantiate(ctx, &r.meter, p.means.memories); err != nil {
			return nil, err
		}
		r.call.Lender = in
		in.shrinks = p.means.shrinks
		if snap == nil || p.reuse {
			snap, err = p.first(ctx, in, r)
		} else {
			err = in.become(snap)
		}
		if err != nil {
			in.close()
			return nil, err
		}
	}
	in.jobs++
	in.allow(r.limits.Memory)
	r.meter.start(in)
	p.prepare(in, r)
	switch {
	case p.reuse:
		r.process.SetState(in.begun)
	case in.frozen == nil && snap != nil:
		r.process.SetState(snap.state)
		if in.function(abi.Reseed) != nil {
			if _, err := in.call(ctx, abi.Reseed); err != nil {
				p.put(r.seat, in, err)
				return nil, fmt.Errorf("reseed guest: %w", err)
			}
		}
	}
	r.call.Begin()
	return in, nil
}

// take returns an idle instance, nil when there is none.
func (p *pool) take() *instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	in := p.idle[n-1].in
	p.idle[n-1] = idler{}
	p.idle = p.idle[:n-1]
	p.budget.idle.Add(-int64(in.size()))
	return in
}

// ready says whether further instances need no initialization.
func (p *pool) ready() bool {
	return p.snap.Load() != nil
}

// next is how much memory the instance has that take would return, 0 when there is none.
func (p *pool) next() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		return int64(p.idle[n-1].in.size())
	}
	return 0
}

// oldest is since when the first of n instances is idle.
func (p *pool) oldest() (since time.Time, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) > 0 {
		since = p.idle[0].since
	}
	return since, len(p.idle)
}

// drop closes the instance that is idle for the longest time, unless it is the last and that one is to be spared.
func (p *pool) drop(spare bool) {
	p.mu.Lock()
	var old *instance
	if n := len(p.idle); n > 1 || n == 1 && !spare {
		old = p.shift()
	}
	p.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// shift takes the instance that is idle for the longest time. The caller holds mu, and there is one.
func (p *pool) shift() *instance {
	old := p.idle[0].in
	p.idle = append(p.idle[:0], p.idle[1:]...)
	p.budget.idle.Add(-int64(old.size()))
	return old
}

// first initializes an instance and, unless another one was faster, takes the snapshot for all that follow. It returns nil
// where there can be none.
func (p *pool) first(ctx context.Context, in *instance, r *run) (*snapshot, error) {
	stdin, env := r.process.Stdin, r.process.Env
	r.process.Stdin, r.process.Env = nil, r.vars // nothing of this job may get into the image
	if err := p.code.begin(ctx, in, p.driver, &r.meter); err != nil {
		return nil, err
	}
	r.process.Stdin, r.process.Env = stdin, env
	if p.reuse {
		in.begun = r.process.State()
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused {
		in.spent = true
		return nil, nil
	}
	if p.snap.Load() == nil {
		snap, err := in.snapshot(p.means.memories)
		if err == nil && !r.process.Pristine() {
			err = errors.Join(errors.New("it opens or closes files while it initializes"), snap.image.close())
		}
		if err != nil {
			p.refused, in.spent = true, true
			p.log.Warn("module cannot be reset; each job has an instance of its own", "module", p.module, "err", err)
			return nil, nil
		}
		snap.state = r.process.State()
		p.snap.Store(snap)
	}
	snap := p.snap.Load()
	return snap, in.become(snap)
}

func (p *pool) put(s *seat, in *instance, err error) {
	crash := crashed(err)
	if crash {
		in.crashes++
	}
	if in.spent || in.jobs >= maxJobs || in.crashes >= maxCrashes || in.bytes >= maxBytes || overflowed(err) || p.reuse && (crash || in.leaks()) {
		in.close()
		return
	}
	if in.lent > 0 {
		in.Lend(0)
	}
	if !p.reuse {
		snap := p.snap.Load()
		back := in.reset
		if in.frozen != nil {
			snap = in.frozen.at
		}
		if in.rebase {
			back, in.rebase = in.become, false
		}
		if err := back(snap); err != nil {
			p.log.Debug("instance is not used again", "module", p.module, "err", err)
			in.close()
			return
		}
	}
	if !s.take(in) {
		p.keep(in)
	}
}

// keep has an instance wait for any job.
func (p *pool) keep(in *instance) {
	now := time.Now()
	var old *instance
	p.mu.Lock()
	if len(p.idle) > 0 && (len(p.idle) >= maxIdle || now.Sub(p.idle[0].since) > idleFor) {
		old = p.shift()
	}
	p.idle = append(p.idle, idler{in, now})
	p.budget.idle.Add(int64(in.size()))
	p.mu.Unlock()
	if old != nil {
		old.close()
	}
}

// overflowed says whether a guest was stopped for its calls within calls: its stack, which never shrinks, is then at its largest.
func overflowed(err error) bool {
	if err == nil {
		return false
	}
	trap, ok := trapOf(firstLine(err.Error()))
	return errors.Is(err, ErrDepth) || ok && trap == overflow
}

// crashed says whether a run that ended with err ended in the middle.
func crashed(err error) bool {
	if err == nil {
		return false
	}
	var exit *sys.ExitError
	var code exitCode
	return !errors.As(err, &exit) && !errors.As(err, &code)
}

// sweep closes what was not used since a time.
func (p *pool) sweep(since time.Time) {
	p.seats.clear(p, since)
	var old []*instance
	p.mu.Lock()
	for len(p.idle) > 0 && p.idle[0].since.Before(since) {
		old = append(old, p.shift())
	}
	p.mu.Unlock()
	for _, in := range old {
		in.close()
	}
}

// end keeps no seat any more: the module is about to be closed.
func (p *pool) end() {
	p.seats.closed.Store(true)
	p.seats.clear(p, time.Time{})
}

func (p *pool) close() error {
	p.budget.part(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		p.shift().close()
	}
	var errs []error
	for _, snap := range []*snapshot{p.snap.Load(), p.halted} {
		if snap != nil {
			errs = append(errs, snap.image.close())
		}
	}
	p.snap.Store(nil)
	p.halted = nil
	return errors.Join(errs...)
}

// snapshot takes down what in is.
func (in *instance) snapshot(by memories) (*snapshot, error) {
	snap := &snapshot{globals: make([]uint64, len(in.globals))}
	for i, g := range in.globals {
		snap.globals[i] = g.Get()
	}
	var b []byte
	if in.memory != nil {
		mem := in.module.Memory()
		if pages, _ := mem.Grow(0); pages >= maxPages { // whose number of bytes is none
			return nil, errors.New("it has all the memory there can be")
		}
		b, _ = mem.Read(0, mem.Size())
		if len(b) > by.most() {
			return nil, fmt.Errorf("it has %s of memory; this system can put back %s", size(int64(len(b))), size(int64(by.most())))
		}
	}
	var err error
	snap.image, err = by.image(b)
	return snap, err
}

// become makes an instance that was just made, or initialized, equal to snap.
func (in *instance) become(snap *snapshot) error {
	if in.memory != nil {
		mem := in.module.Memory()
		if missing := (len(snap.image.bytes) - int(mem.Size())) / pageSize; missing > 0 {
			if _, ok := mem.Grow(uint32(missing)); !ok {
				return errSmaller
			}
		}
		if err := in.memory.adopt(snap.image); err != nil {
			return err
		}
		if err := in.cut(len(snap.image.bytes)); err != nil {
			return err
		}
	}
	in.restore(snap.globals)
	return nil
}

// reset puts everything back that a job may have changed.
func (in *instance) reset(snap *snapshot) error {
	if in.memory != nil {
		if err := in.memory.reset(snap.image); err != nil {
			return err
		}
		if err := in.cut(len(snap.image.bytes)); err != nil {
			return err
		}
	}
	in.restore(snap.globals)
	return nil
}

func (in *instance) restore(globals []uint64) {
	for i, g := range in.globals {
		g.Set(globals[i])
	}
}

// cut makes a memory that has grown n bytes large again.
func (in *instance) cut(n int) error {
	mem := in.module.Memory()
	if int64(mem.Size()) == int64(n) {
		return nil
	}
	if !in.shrinks {
		return errors.New("its memory has grown")
	}
	return cut(mem, in.memory, n)
}

// cut is what wazero has no word for: a growth for which the allocator returns less than before.
func cut(mem api.Memory, by memory, n int) error {
	by.shrink(n)
	if _, ok := mem.Grow(1); !ok {
		return errors.New("its memory is at the largest size there is and cannot be made smaller")
	}
	if int64(mem.Size()) != int64(n) {
		return errors.New("its memory does not become smaller")
	}
	return nil
}
