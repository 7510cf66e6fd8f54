package runtime

import (
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// Usual returns a function that runs one job as is usual with wazero, with or without a deadline that stops loops.
func Usual(b testing.TB, wasm []byte, deadline bool) func(j *job.Job) []byte {
	b.Helper()
	e, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = e.Close(b.Context()) })
	m, err := e.Load(b.Context(), ModuleConfig{Name: "usual", Wasm: wasm})
	if err != nil {
		b.Fatal(err)
	}
	u, err := newUsual(b.Context(), m, wasm, deadline)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = u.close() })
	return func(j *job.Job) []byte {
		out, err := u.run(b.Context(), j)
		if err != nil {
			b.Fatal(err)
		}
		return out
	}
}

// Bare returns a function that runs one job after another in one instance as the module is, without limits and without anything
// between the jobs.
func Bare(b testing.TB, wasm []byte) func(j *job.Job) []byte {
	b.Helper()
	e, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = e.Close(b.Context()) })
	m, err := e.Load(b.Context(), ModuleConfig{Name: "bare", Wasm: wasm})
	if err != nil {
		b.Fatal(err)
	}
	u, err := newUsual(b.Context(), m, wasm, false)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = u.close() })
	var in *instance
	return func(j *job.Job) []byte {
		call := host.NewCall(m.own.grants, j)
		ctx := host.WithCall(b.Context(), call)
		if in == nil {
			module, err := u.rt.InstantiateModule(ctx, u.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions().WithSysWalltime().WithSysNanotime())
			if err != nil {
				b.Fatal(err)
			}
			in = unmanagedInstance(module)
			call.Lender = in
			if err := m.driver.initialize(ctx, in); err != nil {
				b.Fatal(err)
			}
		}
		call.Begin()
		if err := m.driver.run(ctx, in, call); err != nil {
			b.Fatal(err)
		}
		return call.Output()
	}
}
