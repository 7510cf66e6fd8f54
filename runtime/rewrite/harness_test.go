package rewrite_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

var (
	errDepth = errors.New("too deep")
	errFuel  = errors.New("out of fuel")
)

// depthLimit is below the interpreter's own limit of 2000 frames.
const depthLimit = 1500

// wazeroDir is where wazero's module lies, whose tests are run here too.
var wazeroDir = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	return filepath.Join(strings.TrimSpace(string(out)), "internal", "integration_test"), err
})

func wazeroTests(tb testing.TB) string {
	tb.Helper()
	dir, err := wazeroDir()
	if err != nil {
		tb.Fatalf("find wazero's module: %v", err)
	}
	return dir
}

// host runs modules, rewritten or plain, on one engine.
type host struct {
	rt    wazero.Runtime
	rw    *rewrite.Options // nil for plain
	slice int64            // fuel granted at a time
	limit int64            // fuel that may be granted in all, 0 for any
	spent int64            // granted so far, minus what was there before
	ended int64            // burnt when behave was done
	asked int64            // how often refuel was called
	mods  map[api.Module]*rewrite.Module
}

func newHost(tb testing.TB, cfg wazero.RuntimeConfig, opt *rewrite.Options) *host {
	tb.Helper()
	ctx := context.Background()
	h := &host{rt: wazero.NewRuntimeWithConfig(ctx, cfg), rw: opt, slice: 10_000, mods: map[api.Module]*rewrite.Module{}}
	tb.Cleanup(func() { _ = h.rt.Close(ctx) })
	_, err := h.rt.NewHostModuleBuilder("wasmsidecar_meter").NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(h.refuel), nil, nil).Export("refuel").Instantiate(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

func counter(m api.Module, name string) api.MutableGlobal {
	return m.ExportedGlobal(name).(api.MutableGlobal)
}

func (h *host) refuel(_ context.Context, m api.Module, _ []uint64) {
	fuel, depth := counter(m, "__wasmsidecar_fuel"), counter(m, "__wasmsidecar_depth")
	h.asked++
	if int64(depth.Get()) < 0 {
		panic(errDepth)
	}
	need := h.slice - int64(fuel.Get())
	if h.limit > 0 && h.spent+need > h.limit {
		panic(errFuel)
	}
	h.spent += need
	fuel.Set(uint64(h.slice))
}

// instantiate compiles, instantiates and starts a module.
func (h *host) instantiate(wasm []byte, name string) (api.Module, error) {
	ctx := context.Background()
	cfg := wazero.NewModuleConfig().WithName(name).WithStartFunctions()
	if h.rw == nil {
		return h.rt.InstantiateWithConfig(ctx, wasm, cfg)
	}
	out, err := rewrite.Rewrite(wasm, *h.rw)
	if err != nil {
		return nil, err
	}
	m, err := h.rt.InstantiateWithConfig(ctx, out.Wasm, cfg)
	if err != nil {
		return nil, err
	}
	h.mods[m] = out
	for _, d := range out.Data {
		if !m.Memory().Write(d.Offset, d.Bytes) {
			return nil, fmt.Errorf("segment at %d does not fit", d.Offset)
		}
	}
	if out.Start != "" {
		if _, err := h.call(m, out.Start); err != nil {
			_ = m.Close(ctx)
			return nil, err
		}
	}
	return m, nil
}

// call calls an exported function with full depth.
func (h *host) call(m api.Module, name string, args ...uint64) ([]uint64, error) {
	f := m.ExportedFunction(name)
	if f == nil {
		return nil, fmt.Errorf("no function %q", name)
	}
	for m := range h.mods {
		counter(m, "__wasmsidecar_depth").Set(depthLimit)
	}
	res, err := f.Call(context.Background(), args...)
	if err == nil {
		for m := range h.mods {
			if d := counter(m, "__wasmsidecar_depth").Get(); d != depthLimit {
				return nil, fmt.Errorf("depth is %d after the call, not %d", int64(d), depthLimit)
			}
		}
	}
	return res, err
}

// burnt returns what m and all others have burnt, as far as it was granted by refuel.
func (h *host) burnt() int64 {
	n := h.spent
	for m := range h.mods {
		n -= int64(counter(m, "__wasmsidecar_fuel").Get())
	}
	return n
}

// outcome writes down what a call returned so that it can be compared with the same call elsewhere.
func outcome(m api.Module, name string, res []uint64, err error) string {
	if err != nil {
		line, _, _ := strings.Cut(err.Error(), "\n")
		if errors.Is(err, errDepth) || strings.HasSuffix(line, "stack overflow") {
			line = "too deep" // wherever each of them ends it
		}
		return line
	}
	var b strings.Builder
	i := 0
	for _, t := range m.ExportedFunction(name).Definition().ResultTypes() {
		switch {
		case byte(t) == byte(rewrite.V128):
			fmt.Fprintf(&b, "%x:%x ", res[i], res[i+1])
			i += 2
			continue
		case byte(t) == byte(rewrite.FuncRef) && res[i] != 0:
			b.WriteString("func ") // an address
		case t == api.ValueTypeI32 || t == api.ValueTypeF32:
			fmt.Fprintf(&b, "%x ", uint32(res[i]))
		default:
			fmt.Fprintf(&b, "%x ", res[i])
		}
		i++
	}
	return b.String()
}

func engines() map[string]wazero.RuntimeConfig {
	return map[string]wazero.RuntimeConfig{
		"compiler":    wazero.NewRuntimeConfigCompiler(),
		"interpreter": wazero.NewRuntimeConfigInterpreter(),
	}
}
