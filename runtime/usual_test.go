package runtime

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// Usual returns a function that runs one job as is usual with wazero, for comparison: compiled once, its own WASI, an instance
// for each job, with or without a deadline that stops loops.
func Usual(b testing.TB, wasm []byte, deadline bool) func(j *job.Job) []byte {
	b.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithMemoryLimitPages(1024).WithCloseOnContextDone(deadline))
	b.Cleanup(func() { _ = rt.Close(ctx) })
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	for _, name := range host.Names() {
		if err := host.Instantiate(ctx, rt, name); err != nil {
			b.Fatal(err)
		}
	}
	compiled, err := rt.CompileModule(ctx, wasm)
	if err != nil {
		b.Fatal(err)
	}
	var names []string
	for name := range compiled.ExportedFunctions() {
		names = append(names, name)
	}
	handle, initialize := slices.Contains(names, abi.Handle), slices.Contains(names, abi.Initialize)
	grants := &host.Grants{Output: 1 << 20, Logger: slog.New(slog.DiscardHandler)}
	return func(j *job.Job) []byte {
		call := host.NewCall(grants, j)
		call.Begin()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		ctx = host.WithCall(ctx, call)
		cfg := wazero.NewModuleConfig().WithName("").WithStartFunctions().WithSysWalltime().WithSysNanotime().WithStdin(bytes.NewReader(j.Body)).WithStdout(writerOf(call))
		m, err := rt.InstantiateModule(ctx, compiled, cfg)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = m.Close(ctx) }()
		if initialize {
			if _, err := m.ExportedFunction(abi.Initialize).Call(ctx); err != nil {
				b.Fatal(err)
			}
		}
		name := abi.Start
		if handle {
			name = abi.Handle
		}
		var exit *sys.ExitError
		if _, err := m.ExportedFunction(name).Call(ctx); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 0) {
			b.Fatal(err)
		}
		return call.Output()
	}
}
