package sidecar

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/module"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// Inspect tells what the module in a file is; of the configuration it uses the cache only. An error says why the file cannot
// be read or is no module.
func Inspect(ctx context.Context, cfg *config.Config, file string, log *slog.Logger) (i *runtime.Inspection, err error) {
	bin, err := fetchFile(ctx, file)
	if err != nil {
		return nil, err
	}
	e, err := newEngine(cfg, runtime.Config{Log: log})
	if err != nil {
		return nil, err
	}
	i, err = e.Inspect(ctx, bin.Wasm)
	if closing := e.Close(context.WithoutCancel(ctx)); err == nil {
		err = closing
	}
	return i, err
}

// fetchFile reads a module that no configuration names.
func fetchFile(ctx context.Context, file string) (*module.Binary, error) {
	if st, err := os.Stat(file); err == nil && st.IsDir() {
		return nil, fmt.Errorf("%s is a directory; name a .wasm file in it", file)
	}
	s, err := module.New(module.Config{})
	if err != nil {
		return nil, err
	}
	return s.Fetch(ctx, module.Ref{Name: filepath.Base(file), Source: file})
}

// Measure measures what a job of the module in m.Source costs, without a broker. What the configuration of m says holds, but for its
// isolation.
func Measure(ctx context.Context, name string, m *config.Module, want runtime.Measurement) (*runtime.Measured, error) {
	bin, err := fetchFile(ctx, m.Source)
	if err != nil {
		return nil, configError{err}
	}
	want.Module = runtime.ModuleConfig{
		Name: name, Wasm: bin.Wasm, Limits: limitsOf(m.Limits), Allow: runtime.Allow{HTTP: m.Allow.HTTP}, Config: m.Config,
		Env: runtime.Env{Headers: m.Env.Headers, Vars: m.Env.Vars}, Args: m.Args, ABI: runtime.ABI(m.ABI), Function: m.Function,
	}
	return runtime.Measure(ctx, want)
}
