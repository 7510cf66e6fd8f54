package runtime

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// Module is a compiled module with its grants and limits. It is a job.Runner that any number of goroutines may use.
type Module struct {
	engine    *Engine
	code      *code
	name      string
	abi       ABI
	why       string
	own       terms
	driver    driver
	instances instances
	around    surroundings
	pure      bool

	mu     sync.Mutex
	closed bool
	runs   sync.WaitGroup // grows only under mu while not closed
}

var _ job.Runner = (*Module)(nil)

// terms are what a job of a module may use.
type terms struct {
	limits Limits
	grants *host.Grants
}

// Bounded runs jobs of a module within limits of its own. It may be used as long as the module.
type Bounded struct {
	m *Module
	t terms
}

// Within returns a Runner of m's jobs that holds them to l as well: of each limit the smaller one counts, so that m's own are
// never widened. What a guest does before its first job has m's own.
func (m *Module) Within(l Limits) *Bounded {
	l = m.own.limits.Within(l)
	if l.Memory = int64(l.pages()) * pageSize; l == m.own.limits {
		return &Bounded{m, m.own}
	}
	return &Bounded{m, terms{l, l.grants(*m.own.grants)}}
}

// Run is Module.Run.
func (b *Bounded) Run(ctx context.Context, j *job.Job) (*job.Result, error) {
	return b.m.runWithin(ctx, j, b.t)
}

// Admit is Module.Admit.
func (b *Bounded) Admit(ctx context.Context, j *job.Job) (context.Context, func(), error) {
	return b.m.admitFor(ctx, j, b.t)
}

// Name is the module's name in the configuration.
func (m *Module) Name() string { return m.name }

// Digest is the SHA-256 of the module's bytes, in lower-case hex.
func (m *Module) Digest() string { return m.code.digest }

// ABI is how the guest is called, and why it was taken for that.
func (m *Module) ABI() (ABI, string) { return m.abi, m.why }

// Limits are the module's limits.
func (m *Module) Limits() Limits { return m.own.limits }

// Imports are the functions that the module asks for; the modules they come from name capabilities.
func (m *Module) Imports() []Func { return m.code.imports }

// Run runs one job in an instance of its own and waits until it is over. Errors are *job.Error:
//
//   - KindFailed, KindRetry: the guest's own verdict.
//   - KindTrap: the guest crashed, or ended with a number that is no verdict.
//   - KindTimeout: the time limit, the job's own timeout or the deadline of ctx passed.
//   - KindLimit: fuel, memory, depth, host calls, output or headers over the limit.
//   - KindDenied, KindUpstream, KindLimit: the guest crashed right after a capability was refused or failed.
//   - KindUnavailable: ctx was cancelled, or the module was closed; it wraps the reason, and no attempt is to be counted.
//   - KindInternal: a fault of the sidecar.
//
// Run never panics.
func (m *Module) Run(ctx context.Context, j *job.Job) (*job.Result, error) {
	return m.runWithin(ctx, j, m.own)
}

func (m *Module) runWithin(ctx context.Context, j *job.Job, t terms) (res *job.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			m.engine.cfg.Log.Error("host panicked while it ran a guest", "module", m.name, "panic", p, "stack", string(debug.Stack()))
			res, err = nil, m.failed(job.Errorf(job.KindInternal, "host panicked: %s", job.CleanText(fmt.Sprint(p))))
		}
	}()
	seat, own, err := m.admit(ctx, j, t)
	if err != nil {
		return nil, err
	}
	if own {
		defer seat.release()
	}

	start := time.Now()
	limit := t.limits.Time
	if j.Timeout > 0 {
		limit = min(limit, j.Timeout)
	}
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, max(d.Sub(start), 0))
	}
	r := m.newRun(ctx, j, t, start.Add(limit), seat)
	defer r.close()
	call := &r.call
	e := ended{code: m.code, parent: ctx, ctx: &r.bounded, limit: limit, most: t.limits.Memory, call: call}
	m.run(&e, r)
	call.End()
	over := time.Now()
	seat.used.Store(over.UnixNano())
	if err := e.verdict(); err != nil {
		return nil, m.failed(err)
	}
	return &job.Result{
		Body:     call.Output(),
		Header:   call.Header(),
		TypeName: call.TypeName,
		Module:   m.name,
		Digest:   m.code.digest,
		Fuel:     e.fuel,
		Duration: over.Sub(start),
	}, nil
}

// Try makes an instance as a job would have one, which runs what a guest runs before its first job, and keeps it for jobs where
// that is possible. It shows that the module can run. It takes at most limits.Time, and its errors are those of Run.
func (m *Module) Try(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = m.failed(job.Errorf(job.KindInternal, "host panicked: %s", job.CleanText(fmt.Sprint(p))))
		}
	}()
	seat, own, err := m.admit(ctx, nil, m.own)
	if err != nil {
		return err
	}
	if own {
		defer seat.release()
	}
	r := m.newRun(ctx, &job.Job{ID: "try", Module: m.name, Attempt: 1}, m.own, time.Now().Add(m.own.limits.Time), seat)
	defer r.close()
	call := &r.call
	e := ended{code: m.code, parent: ctx, ctx: &r.bounded, limit: m.own.limits.Time, most: m.own.limits.Memory, call: call}
	in, err := m.instances.get(r.context(), r)
	if err == nil {
		m.instances.put(seat, in, nil)
	}
	seat.used.Store(time.Now().UnixNano())
	e.err = err
	call.End()
	if err := e.verdict(); err != nil {
		return m.failed(err)
	}
	return nil
}

// newRun returns the run of a job with terms, which ends with ctx, or at a time. It must be closed.
func (m *Module) newRun(ctx context.Context, j *job.Job, t terms, until time.Time, s *seat) *run {
	r := &run{bounded: bounded{meter: newMeter(t.limits)}, call: host.Call{Grants: t.grants, Job: j}, vars: m.around.vars, limits: t.limits, seat: s}
	r.bounded.Begin(ctx, until)
	r.process = m.around.process(&r.call, t.limits)
	return r
}

// run takes the job through an instance and fills in how it ended.
func (m *Module) run(e *ended, r *run) {
	limits, ctx := &r.limits, r.context()
	in, err := m.instances.get(ctx, r)
	if err != nil {
		e.err = err
		return
	}
	defer func() { m.instances.put(r.seat, in, e.err) }()
	before := in.size()
	if int64(before) > limits.Memory {
		e.err = &host.Fault{Kind: job.KindLimit, Err: ErrMemory, Text: fmt.Sprintf("%v: the guest has %s to begin with, and %s is allowed (limits.memory)",
			ErrMemory, size(int64(before)), size(limits.Memory))}
		return
	}
	e.err = errPanicked // stands unless the driver returns
	e.err = m.driver.run(ctx, in, e.call)
	e.fuel = r.meter.burnt()
	e.memory = in.size()
	// A guest that declares how much memory it wants at most, and takes more, is not limited by us.
	e.refused = in.wantsMore() && int64(m.code.rewritten.Memory.Max)*pageSize >= limits.Memory
	in.grew = e.memory > before
	in.bytes += int64(len(e.call.Job.Body)) + int64(len(e.call.Output())) + int64(e.memory-before)
}

// errPanicked is how a run ended of which a fault of the host made an end.
var errPanicked = errors.New("host panicked")

// unfit says why the module's instances cannot be reset; empty when they can.
func (m *Module) unfit() string {
	w := m.code.rewritten
	switch {
	case !w.Resettable:
		return w.Why
	case m.abi == ABICommand && w.Start != "":
		return "it is a program with a start function, which runs before the program does"
	case m.abi != ABICommand && m.around.headers && slices.ContainsFunc(m.code.imports, func(f Func) bool { return f.Name == "environ_get" }):
		return "its environment has the headers of each job (env.headers), and it may read them while it initializes"
	}
	return ""
}

// failed says which module an error is about and keeps its kind.
func (m *Module) failed(err error) error {
	return &job.Error{Kind: job.KindOf(err), Err: &job.Ran{Digest: m.Digest(), Err: fmt.Errorf("module %q: %w", m.name, err)}, RetryAfter: job.RetryAfterOf(err)}
}

func (m *Module) enter() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return m.failed(job.Errorf(job.KindUnavailable, "%w", ErrClosed))
	}
	m.runs.Add(1)
	return nil
}

// Close refuses further runs, waits for those under way or for ctx to end, and gives the module's memory back when the last
// of them is over. It may be called more than once.
func (m *Module) Close(ctx context.Context) error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.mu.Unlock()
	if p, ok := m.instances.(*pool); ok {
		p.end()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.runs.Wait()
		if first {
			if err := errors.Join(m.instances.close(), closeAll(m.around.preopens)); err != nil {
				m.engine.cfg.Log.Warn("memory of a module is not given back", "module", m.name, "err", err)
			}
			m.engine.forget(m)
		}
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close module %q: runs are still under way: %w", m.name, ctx.Err())
	}
}

// Pure implements job.Pure: a module that was granted nothing, and whose instances are clean for every job, leaves no trace of a
// job but its result.
func (m *Module) Pure() bool { return m.pure }
