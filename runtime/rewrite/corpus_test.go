package rewrite_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

// stub instantiates what a module imports: functions that return zeroes. Other imports are left out, so that both sides fail.
func stub(t testing.TB, h *host, wasm []byte) {
	t.Helper()
	ctx := context.Background()
	c, err := h.rt.CompileModule(ctx, wasm)
	if err != nil {
		return
	}
	defer func() { _ = c.Close(ctx) }()
	builders := map[string]wazero.HostModuleBuilder{}
	seen := map[[2]string]bool{}
	for _, f := range c.ImportedFunctions() {
		module, name, _ := f.Import()
		if h.rt.Module(module) != nil || seen[[2]string{module, name}] {
			continue
		}
		seen[[2]string{module, name}] = true
		if builders[module] == nil {
			builders[module] = h.rt.NewHostModuleBuilder(module)
		}
		clear := api.GoModuleFunc(func(_ context.Context, _ api.Module, stack []uint64) {
			for i := range f.ResultTypes() {
				stack[i] = 0
			}
		})
		builders[module].NewFunctionBuilder().WithGoModuleFunction(clear, f.ParamTypes(), f.ResultTypes()).Export(name)
	}
	for _, b := range builders {
		_, _ = b.Instantiate(ctx)
	}
}

// guestCalls bounds how many exported functions of a module are called.
const guestCalls = 32

// behave instantiates a module, calls each exported function with a few arguments and writes down everything that can be seen:
// results, traps, memory and globals.
func behave(t testing.TB, h *host, wasm []byte) (out []string) {
	t.Helper()
	m, err := h.instantiate(wasm, "guest")
	if err != nil {
		line, _, _ := strings.Cut(err.Error(), "\n")
		if h.rw == nil && strings.HasPrefix(line, "start ") {
			_, line, _ = strings.Cut(line, " failed: ")
		}
		if strings.HasSuffix(line, "stack overflow") || strings.Contains(line, errDepth.Error()) {
			line = "too deep"
		}
		return []string{line}
	}
	defer func() {
		delete(h.mods, m)
		_ = m.Close(context.Background())
	}()
	var names []string
	for name := range m.ExportedFunctionDefinitions() {
		if !strings.HasPrefix(name, "__wasmsidecar_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names[:min(len(names), guestCalls)] {
		for _, arg := range []uint64{0, 1, 7} {
			var args []uint64
			for _, t := range m.ExportedFunction(name).Definition().ParamTypes() {
				switch {
				case byte(t) == byte(rewrite.V128):
					args = append(args, arg, arg<<32)
				case byte(t) == byte(rewrite.FuncRef) || t == api.ValueTypeExternref:
					args = append(args, 0)
				default:
					args = append(args, arg)
				}
			}
			res, err := h.call(m, name, args...)
			out = append(out, fmt.Sprintf("%q(%d): %s", name, arg, outcome(m, name, res, err)))
			if errors.Is(err, errFuel) {
				return out
			}
		}
	}
	globals := m.(experimental.InternalModule)
	n := globals.NumGlobal()
	if h.rw != nil {
		n -= 3 // what Rewrite adds
	}
	for i := range n {
		if g := globals.Global(i); byte(g.Type()) != byte(rewrite.FuncRef) {
			out = append(out, fmt.Sprintf("global %d %x", i, g.Get()))
		}
	}
	if mem := m.Memory(); !reflect.ValueOf(mem).IsNil() {
		b, _ := mem.Read(0, min(mem.Size(), 1<<20)) // to look at is to take it from the machine
		out = append(out, fmt.Sprintf("memory %d %x", mem.Size(), sum(b)))
	}
	if h.rw != nil {
		h.ended = h.burnt()
	}
	return out
}

// sum tells memories apart.
func sum(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for len(b) >= 8 {
		if !bytes.Equal(b[:8], make([]byte, 8)) {
			h = (h ^ uint64(len(b))) * 1099511628211
			for _, c := range b[:8] {
				h = (h ^ uint64(c)) * 1099511628211
			}
		}
		b = b[8:]
	}
	return h
}

// The modules on which wazero's fuzzers once found something behave the same plain and rewritten.
func TestFuzzCorpus(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(wazeroTests(t), "fuzzcases", "testdata", "*.wasm"))
	if err != nil || len(files) < 50 {
		t.Fatalf("%d modules: %v", len(files), err)
	}
	for _, file := range files {
		if raceEnabled && filepath.Base(file) == "733.wasm" {
			continue // fills 2 GB, to which the race detector adds 8
		}
		for name, cfg := range engines() {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".wasm")+"/"+name, func(t *testing.T) {
				wasm, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				compare(t, cfg, wasm)
			})
		}
	}
}

// compare runs a module plain and rewritten and wants to see no difference.
func compare(t testing.TB, cfg wazero.RuntimeConfig, wasm []byte) {
	t.Helper()
	ph := newHost(t, cfg, nil)
	stub(t, ph, wasm)
	plain := behave(t, ph, wasm)
	for _, opt := range []rewrite.Options{{}, {EmptyData: true}} {
		h := newHost(t, cfg, &opt)
		stub(t, h, wasm)
		got := behave(t, h, wasm)
		if slices.Equal(plain, got) || len(plain) == 1 && len(got) == 1 && !strings.Contains(plain[0]+got[0], "\"(") && isRefusal(plain[0]) {
			continue
		}
		t.Errorf("%+v:\nplain     %s\nrewritten %s", opt, strings.Join(plain, "\n          "), strings.Join(got, "\n          "))
	}
}

// isRefusal reports whether a module was not instantiated for a reason other than a trap of its own.
func isRefusal(line string) bool { return !strings.Contains(line, "wasm error") && line != "too deep" }
