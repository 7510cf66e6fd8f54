package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// usual runs jobs as is usual with wazero, for comparison: the module as it is, compiled once, wazero's own WASI, and an instance
// for each job.
type usual struct {
	m        *Module // whose ABI and grants it has
	rt       wazero.Runtime
	compiled wazero.CompiledModule
}

// newUsual compiles wasm once more. deadline has wazero watch the context, without which nothing stops a loop.
func newUsual(ctx context.Context, m *Module, wasm []byte, deadline bool) (*usual, error) {
	u := &usual{m: m, rt: wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().
		WithMemoryLimitPages(m.own.limits.pages()).WithCloseOnContextDone(deadline))}
	_, err := wasi_snapshot_preview1.Instantiate(ctx, u.rt)
	for _, f := range m.code.imports {
		if err == nil && f.Module != abi.WASI && u.rt.Module(f.Module) == nil {
			err = host.Instantiate(ctx, u.rt, f.Module)
		}
	}
	if err == nil {
		u.compiled, err = u.rt.CompileModule(ctx, wasm)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare an instance for each job: %w", err), u.close())
	}
	return u, nil
}

func (u *usual) close() error { return u.rt.Close(context.Background()) }

// run runs one job.
func (u *usual) run(ctx context.Context, j *job.Job) ([]byte, error) {
	call := host.NewCall(u.m.own.grants, j)
	call.Begin()
	defer call.End()
	ctx, cancel := context.WithTimeout(ctx, u.m.own.limits.Time)
	defer cancel()
	ctx = host.WithCall(ctx, call)
	cfg := wazero.NewModuleConfig().WithName("").WithStartFunctions().WithSysWalltime().WithSysNanotime().WithArgs(u.m.around.args...).
		WithStderr(call.Stderr())
	if u.m.around.program {
		cfg = cfg.WithStdin(bytes.NewReader(j.Body)).WithStdout(writerOf(call))
	}
	module, err := u.rt.InstantiateModule(ctx, u.compiled, cfg)
	if err != nil {
		return nil, fmt.Errorf("instantiate: %w", err)
	}
	defer func() { _ = module.Close(ctx) }()
	in := unmanagedInstance(module)
	call.Lender = in
	if err = u.m.driver.initialize(ctx, in); err == nil {
		err = u.m.driver.run(ctx, in, call)
	}
	if exit := (*sys.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 0 {
		err = nil
	}
	return call.Output(), err
}

// unmanagedInstance is an instance of a module that was not rewritten, without limits.
func unmanagedInstance(module api.Module) *instance {
	return &instance{
		module: module, memory: unmanaged{}, bound: math.MaxInt64, most: math.MaxInt32, exports: map[string]api.Function{},
		fuel: &number{}, depth: &number{}, refused: &number{},
	}
}

// number stands in for a global that a module lacks which was not rewritten.
type number struct {
	api.MutableGlobal
	value uint64
}

func (n *number) Get() uint64  { return n.value }
func (n *number) Set(v uint64) { n.value = v }

// unmanaged stands in for a memory that is wazero's.
type unmanaged struct{ memory }

func (unmanaged) restrict(uint64) {}
func (unmanaged) refused() bool   { return false }
func (unmanaged) denied() bool    { return false }
