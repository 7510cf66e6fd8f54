package runtime

import (
	"context"
	"errors"
	"fmt"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
	"github.com/wasmsidecar/wasmsidecar/runtime/wasi"
)

// run is what one job brings to its instance. All that it has is allocated at once.
type run struct {
	bounded // what stops the guest
	call    host.Call
	process wasi.Process
	vars    []string // what the process's environment is without the job's own
	limits  Limits
	seat    *seat // of its job; may be nil

	inner wasi.Context
	outer host.Context
}

// context returns a context that carries the run to host functions.
func (r *run) context() context.Context {
	r.inner = wasi.Context{Context: &r.bounded, Process: &r.process}
	r.outer = host.Context{Context: &r.inner, Call: &r.call}
	return &r.outer
}

// close ends the run.
func (r *run) close() {
	r.process.Close()
	r.End()
}

// instance is a guest that is ready for one job. It belongs to one goroutine.
type instance struct {
	module  api.Module
	memory  memory // nil: it has none
	fuel    api.MutableGlobal
	depth   api.MutableGlobal
	refused api.MutableGlobal   // not zero: see rewrite.Module
	globals []api.MutableGlobal // the guest's own
	exports map[string]api.Function
	values  [8]uint64
	running bool // in a call

	frozen  *frozen // where a program goes on in each job; nil: it begins
	freezes bool    // it is to be frozen in this run
	thawing bool    // it is about to go on
	rebase  bool    // its memory is mapped from an older image

	begun wasi.State // as its initialization left it; where nothing is put back

	most    int64 // depth
	bound   int64 // bytes of memory, what the host keeps for the guest included
	lent    int64 // of them, what the host keeps
	shrinks bool  // the memory can be made smaller
	jobs    int   // begun
	crashes int   // of them
	bytes   int64 // that they read, wrote and took as memory
	grew    bool  // the last of them took memory
	spent   bool  // not to be used again
}

// errNoExport is what becomes of a call to what is not there.
func errNoExport(name string) error {
	return &host.Fault{Kind: job.KindTrap, Text: "export " + name + " is missing"}
}

// call calls an export. What it returns is good until the next call. A host function may call while the guest waits for it;
// the depth that is left is then what the two share.
func (in *instance) call(ctx context.Context, name string, args ...uint64) ([]uint64, error) {
	f := in.function(name)
	if f == nil {
		return nil, errNoExport(name)
	}
	d := f.Definition()
	results := len(d.ResultTypes())
	if params := len(d.ParamTypes()); params != len(args) || results > len(in.values) {
		return nil, &host.Fault{Kind: job.KindTrap, Text: fmt.Sprintf("export %s takes %d parameters and returns %d results; it is called with %d",
			name, params, results, len(args))}
	}
	if in.running {
		left, values := in.depth.Get(), make([]uint64, max(results, len(args)))
		copy(values, args)
		err := f.CallWithStack(ctx, values)
		in.depth.Set(left)
		return values[:results], err
	}
	in.running = true
	defer func() { in.running = false }()
	in.depth.Set(uint64(in.most))
	if in.thawing {
		in.depth.Set(0) // the function asks at once what to do, being too deep
	}
	copy(in.values[:], args)
	err := f.CallWithStack(ctx, in.values[:])
	return in.values[:results], err
}

// function returns an export, nil when there is none. Looking one up costs more than calling it, so they are kept.
func (in *instance) function(name string) api.Function {
	f, ok := in.exports[name]
	if !ok {
		f = in.module.ExportedFunction(name)
		in.exports[name] = f
	}
	return f
}

// Lend implements host.Lender: what the host keeps for the guest and the guest's own memory stay below one bound.
func (in *instance) Lend(n int64) bool {
	if in.memory == nil || n > in.bound-int64(in.module.Memory().Size()) {
		return false
	}
	in.memory.restrict(uint64(in.bound - n))
	in.lent = n
	return true
}

// allow makes limit the most bytes of memory that the guest can have from now on, with what the host keeps for it.
func (in *instance) allow(limit int64) {
	in.bound = limit
	in.refused.Set(0)
	if in.memory != nil {
		in.memory.restrict(uint64(limit))
	}
}

// size is how many bytes of memory the guest has.
func (in *instance) size() uint32 {
	if in.memory == nil {
		return 0
	}
	return in.module.Memory().Size()
}

// leaks says whether the guest, as each job leaves it to the next, is going to be without memory soon: many never free what they
// were given for a job, and the host cannot.
func (in *instance) leaks() bool {
	return in.jobs > 1 && in.grew && int64(in.size()) > in.bound/2
}

// wantsMore says whether the last memory that the guest asked for was more than it may have.
func (in *instance) wantsMore() bool {
	return in.refused.Get() != 0 || in.memory != nil && in.memory.refused()
}

func (in *instance) close() {
	_ = in.module.Close(context.Background())
	if in.frozen != nil && in.frozen.own {
		_ = in.frozen.at.image.close()
	}
}

// instances hands out clean instances. What is behind it may make them anew or reset used ones; the drivers cannot tell.
type instances interface {
	// get returns an instance whose guest is initialized and has seen no job, and begins the run's call. ctx carries the run to
	// host functions and bounds it.
	get(ctx context.Context, r *run) (*instance, error)
	// put takes back what get returned for a job with a seat; err is how the job ended.
	put(s *seat, in *instance, err error)
	// close gives back what is kept. All instances have been put back.
	close() error
}

// fresh makes an instance for each job.
type fresh struct {
	code   *code
	driver driver
}

func (f *fresh) get(ctx context.Context, r *run) (*instance, error) {
	in, err := f.code.instantiate(ctx, &r.meter, portable{})
	if err != nil {
		return nil, err
	}
	r.call.Lender = in
	if err := f.code.begin(ctx, in, f.driver, &r.meter); err != nil {
		in.close()
		return nil, err
	}
	in.allow(r.limits.Memory)
	r.call.Begin()
	return in, nil
}

func (*fresh) put(_ *seat, in *instance, _ error) { in.close() }

func (*fresh) close() error { return nil }

// instantiate makes an instance in which nothing has run. Its memory is made by by.
func (c *code) instantiate(ctx context.Context, m *meter, by memories) (*instance, error) {
	in := &instance{most: m.depth, bound: int64(c.key.pages) * pageSize, exports: map[string]api.Function{}}
	var allocation error
	ctx = experimental.WithMemoryAllocator(ctx, experimental.MemoryAllocatorFunc(func(_, _ uint64) experimental.LinearMemory {
		if in.memory, allocation = by.allocate(uint64(c.rewritten.Memory.Declared) * pageSize); allocation != nil {
			in.memory = nil
			return noMemory{} // an allocator cannot say no
		}
		return in.memory
	}))
	// Instances are anonymous: there are many.
	var err error
	in.module, err = c.rt.InstantiateModule(ctx, c.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if allocation != nil || err != nil {
		if in.memory != nil {
			in.memory.Free() // a failed instantiation does not
		}
		if in.module != nil {
			in.close()
		}
		if allocation == nil { // a segment that does not fit
			return nil, &host.Fault{Kind: job.KindTrap, Text: "start guest: " + err.Error()}
		}
		return nil, fmt.Errorf("start guest: %w", errors.Join(allocation, err))
	}
	in.fuel = in.global(c.rewritten.Fuel)
	in.depth = in.global(c.rewritten.Depth)
	in.refused = in.global(c.rewritten.Refused)
	for _, g := range c.rewritten.Globals {
		in.globals = append(in.globals, in.global(g.Export))
	}
	return in, nil
}

// noMemory is the memory of an instance that is not going to be.
type noMemory struct{}

func (noMemory) Reallocate(size uint64) []byte { return make([]byte, size) }
func (noMemory) Free()                         {}

// global returns a mutable global that is exported.
func (in *instance) global(name string) api.MutableGlobal {
	return in.module.ExportedGlobal(name).(api.MutableGlobal)
}

// begin runs what comes before the first job, on a budget of its own, so that jobs burn the same whether it runs for each of
// them or not.
func (c *code) begin(ctx context.Context, in *instance, d driver, m *meter) error {
	m.start(in)
	if start := c.rewritten.Start; start != "" {
		if _, err := in.call(ctx, start); err != nil {
			return fmt.Errorf("start guest: %w", err)
		}
	}
	if err := d.initialize(ctx, in); err != nil {
		return fmt.Errorf("initialize guest: %w", err)
	}
	m.start(in)
	return nil
}
