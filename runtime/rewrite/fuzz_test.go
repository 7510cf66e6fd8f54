package rewrite_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite/rewritetest"
)

// fuzzFuel is what a generated module may burn, so that those that loop end.
const fuzzFuel = 200_000

// same runs a module metered on both engines and, as far as it ended by itself, plain; it wants to see no difference between
// them and, on both engines, the same fuel.
func same(t *testing.T, wasm []byte) {
	t.Helper()
	type run struct {
		lines []string
		burnt int64
	}
	var first *run
	for name, cfg := range engines() {
		for _, opt := range []rewrite.Options{{}, {EmptyData: true}} {
			h := newHost(t, cfg, &opt)
			h.limit = fuzzFuel
			stub(t, h, wasm)
			lines := behave(t, h, wasm)
			r := &run{lines, h.ended}
			if first == nil {
				first = r
			} else if !slices.Equal(first.lines, r.lines) || first.burnt != r.burnt {
				t.Fatalf("%s %+v differs: fuel %d and %d\n%s\n\n%s", name, opt, first.burnt, r.burnt, strings.Join(first.lines, "\n"), strings.Join(r.lines, "\n"))
			}
		}
	}
	if slices.ContainsFunc(first.lines, func(l string) bool { return strings.Contains(l, errFuel.Error()) || strings.Contains(l, "too deep") }) {
		return // plain might not end, or end elsewhere
	}
	for name, cfg := range engines() {
		h := newHost(t, cfg, nil)
		stub(t, h, wasm)
		plain := behave(t, h, wasm)
		if slices.Equal(plain, first.lines) || len(plain) == 1 && len(first.lines) == 1 && isRefusal(plain[0]) && isRefusal(first.lines[0]) {
			continue
		}
		t.Fatalf("%s differs:\nplain:\n%s\n\nrewritten:\n%s", name, strings.Join(plain, "\n"), strings.Join(first.lines, "\n"))
	}
}

// Modules made from the input behave the same plain and rewritten and burn the same fuel on both engines.
func FuzzSame(f *testing.F) {
	for i := range 40 {
		f.Add(rewritetest.Seed(i))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		wasm := rewritetest.Generate(in[:min(len(in), 2000)])
		c, err := newHost(t, wazero.NewRuntimeConfigInterpreter(), nil).rt.CompileModule(context.Background(), wasm)
		if err != nil {
			t.Fatalf("generated an invalid module: %v\n%x", err, wasm)
		}
		_ = c.Close(context.Background())
		same(t, wasm)
	})
}

// Rewriting bytes of any kind returns: an error, or a module that is valid when the original is, and only then.
func FuzzRewrite(f *testing.F) {
	for _, dir := range []string{"spectest/v2/testdata", "fuzzcases/testdata"} {
		files, err := filepath.Glob(filepath.Join(wazeroTests(f), dir, "*.wasm"))
		if err != nil {
			f.Fatal(err)
		}
		for i, file := range files {
			wasm, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			if i%13 == 0 && len(wasm) < 2000 || strings.HasPrefix(dir, "fuzz") && len(wasm) < 10_000 {
				f.Add(wasm)
			}
		}
	}
	f.Fuzz(func(t *testing.T, wasm []byte) {
		out, err := rewrite.Rewrite(wasm, rewrite.Options{})
		if err != nil {
			var e *rewrite.Error
			if !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(wasm) {
				t.Fatalf("got %#v", err)
			}
			return
		}
		if bytes.Contains(wasm, []byte("\x04name")) && !bytes.Contains(out.Wasm, []byte("\x04name")) {
			return // wazero sets aside as much memory as a malformed name section says that it has names
		}
		ctx := context.Background()
		rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
		defer func() { _ = rt.Close(ctx) }()
		_, plain := rt.CompileModule(ctx, wasm)
		_, rewritten := rt.CompileModule(ctx, out.Wasm)
		if plain != nil && rewritten == nil && strings.Contains(plain.Error(), "custom") {
			return // wazero refuses malformed name sections, which the specification would ignore, and empty ones at the end
		}
		if (plain == nil) != (rewritten == nil) {
			t.Fatalf("plain: %v, rewritten: %v", plain, rewritten)
		}
		if plain == nil && small(out) {
			same(t, wasm)
		}
	})
}

// small reports whether a module may be run without fear for the machine's memory.
func small(m *rewrite.Module) bool { return m.Memory == nil || m.Memory.Max <= 64 }
