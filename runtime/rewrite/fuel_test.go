package rewrite_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

func testdata(tb testing.TB, name string) []byte {
	tb.Helper()
	wasm, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return wasm
}

// The same module and input burn the same fuel in every run and on every engine.
func TestFuelIsDeterministic(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		file, function string
		arg            uint64
		fuel           int64
	}{
		{"fib.wasm", "fib", 12, 4181},
		{"mix.wasm", "sha", 0, 589841},
		{"mix.wasm", "scan", 0, 1844378},
	} {
		for engine, cfg := range engines() {
			t.Run(tc.function+"/"+engine, func(t *testing.T) {
				t.Parallel()
				runs := 1000
				switch {
				case engine == "interpreter" && tc.fuel > 10_000 && raceEnabled:
					runs = 2 // a thousand times as slow
				case engine == "interpreter" && tc.fuel > 10_000:
					runs = 20 // 30 times as slow
				case engine == "interpreter" && raceEnabled:
					runs = 100
				}
				h := newHost(t, cfg, &rewrite.Options{})
				wasm := testdata(t, tc.file)
				for i := range max(runs/10, 2) {
					// A new instance now and then, in slices of any size; the smallest only where there are not too many.
					m, err := h.instantiate(wasm, "")
					if err != nil {
						t.Fatal(err)
					}
					h.slice = max(int64(1+i*i*37), tc.fuel/4181)
					for range min(runs/2, 10) {
						before := h.burnt()
						if _, err := h.call(m, tc.function, tc.arg); err != nil {
							t.Fatal(err)
						}
						if got := h.burnt() - before; got != tc.fuel {
							t.Fatalf("burnt %d, want %d", got, tc.fuel)
						}
					}
					h.spent = 0
					delete(h.mods, m)
					if err := m.Close(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// wide calls itself with many values that are needed afterwards: what takes the most stack for its depth.
func wide(params int) []byte {
	typ := append([]byte{0x60}, binary.AppendUvarint(nil, uint64(params))...)
	var code []byte
	for range params {
		typ = append(typ, 0x7e)
	}
	typ = append(typ, 1, 0x7e)
	for i := range params {
		code = binary.AppendUvarint(append(code, 0x20), uint64(i))
	}
	code = append(code, 0x10, 0)
	for i := range params {
		code = append(binary.AppendUvarint(append(code, 0x20), uint64(i)), 0x7c)
	}
	code = append(append([]byte{0}, code...), 0x0b)
	return build(section(1, typ), section(3, []byte{0}), section(7, name("f", 0, 0)),
		section(10, append(binary.AppendUvarint(nil, uint64(len(code))), code...)))
}

// Recursion stops before it takes much of the host's memory, however large its frames are: 16 MB at a depth of 32768.
func TestRecursionTakesLittleMemory(t *testing.T) {
	const depth, most = 32768, 16 << 20
	ctx := context.Background()
	for _, params := range []int{0, 1, 8, 64, 500} {
		rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler())
		out := mustRewrite(t, wide(params), rewrite.Options{})
		var heap uint64
		_, err := rt.NewHostModuleBuilder(out.RefuelModule).NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, m api.Module, _ []uint64) {
			if int64(counter(m, out.Depth).Get()) < 0 {
				var s goruntime.MemStats
				goruntime.ReadMemStats(&s)
				heap = s.HeapAlloc
				panic(errDepth)
			}
			counter(m, out.Fuel).Set(1 << 40)
		}), nil, nil).Export(out.RefuelName).Instantiate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m, err := rt.Instantiate(ctx, out.Wasm)
		if err != nil {
			t.Fatal(err)
		}
		counter(m, out.Depth).Set(depth)
		goruntime.GC()
		var before goruntime.MemStats
		goruntime.ReadMemStats(&before)
		_, err = m.ExportedFunction("f").Call(ctx, make([]uint64, params)...)
		if err == nil || heap == 0 {
			t.Fatalf("%d parameters: %v", params, err)
		}
		if grown := int64(heap) - int64(before.HeapAlloc); grown > most {
			t.Errorf("%d parameters: %d MB of heap", params, grown>>20)
		} else {
			t.Logf("%d parameters: %d KB of heap", params, grown>>10)
		}
		_ = rt.Close(ctx)
	}
}

// reactor builds the Go guest.
func reactor(tb testing.TB) []byte {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "reactor.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", file, "./testdata/reactor")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build the Go guest: %v\n%s", err, out)
	}
	wasm, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	return wasm
}

// wasi is as much of WASI as a Go reactor needs to start.
func wasi(tb testing.TB, rt wazero.Runtime, wasm []byte) {
	tb.Helper()
	ctx := context.Background()
	c, err := rt.CompileModule(ctx, wasm)
	if err != nil {
		tb.Fatal(err)
	}
	b := rt.NewHostModuleBuilder("wasi_snapshot_preview1")
	for _, f := range c.ImportedFunctions() {
		module, name, _ := f.Import()
		if module != "wasi_snapshot_preview1" {
			continue
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, m api.Module, stack []uint64) {
			switch name {
			case "random_get":
				buf, _ := m.Memory().Read(uint32(stack[0]), uint32(stack[1]))
				_, _ = rand.Read(buf)
				stack[0] = 0
			case "clock_time_get":
				m.Memory().WriteUint64Le(uint32(stack[2]), uint64(time.Now().UnixNano()))
				stack[0] = 0
			case "fd_prestat_get", "fd_fdstat_get", "fd_read":
				stack[0] = 8 // no such descriptor
			default:
				if len(f.ResultTypes()) > 0 {
					stack[0] = 0
				}
			}
		}), f.ParamTypes(), f.ResultTypes()).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkCall shows what metering costs guests of several kinds.
func BenchmarkCall(b *testing.B) {
	for _, bc := range []struct {
		name, function string
		wasm           []byte
		arg            uint64
	}{
		{"fib", "fib", testdata(b, "fib.wasm"), 27},
		{"sha", "sha", testdata(b, "mix.wasm"), 16},
		{"scan", "scan", testdata(b, "mix.wasm"), 16},
		{"go", "handle", reactor(b), 1},
	} {
		for _, metered := range []bool{false, true} {
			name := bc.name + "/plain"
			var opt *rewrite.Options
			if metered {
				name = bc.name + "/metered"
				opt = &rewrite.Options{}
			}
			b.Run(name, func(b *testing.B) {
				h := newHost(b, wazero.NewRuntimeConfigCompiler(), opt)
				h.slice = 1_000_000
				if bc.name == "go" {
					wasi(b, h.rt, bc.wasm)
				}
				m, err := h.instantiate(bc.wasm, "")
				if err != nil {
					b.Fatal(err)
				}
				for m := range h.mods {
					counter(m, "__wasmsidecar_depth").Set(8192)
				}
				ctx := context.Background()
				if init := m.ExportedFunction("_initialize"); init != nil {
					if _, err := init.Call(ctx); err != nil {
						b.Fatal(err)
					}
				}
				f := m.ExportedFunction(bc.function)
				start := int64(0)
				if metered {
					start = h.burnt()
				}
				stack := make([]uint64, 1)
				for b.Loop() {
					stack[0] = bc.arg
					if err := f.CallWithStack(ctx, stack); err != nil {
						b.Fatal(err)
					}
				}
				if metered {
					b.ReportMetric(float64(h.burnt()-start)/float64(b.N), "fuel/op")
				}
			})
		}
	}
}

// BenchmarkCompile shows what the rewriting costs before the first call: its own time, the compiler's, and bytes.
func BenchmarkCompile(b *testing.B) {
	ctx := context.Background()
	wasm := reactor(b)
	out := mustRewrite(b, wasm, rewrite.Options{MaxPages: 1024, EmptyData: true})
	b.Run("rewrite", func(b *testing.B) {
		b.SetBytes(int64(len(wasm)))
		for b.Loop() {
			mustRewrite(b, wasm, rewrite.Options{MaxPages: 1024, EmptyData: true})
		}
		b.ReportMetric(float64(len(mustRewrite(b, wasm, rewrite.Options{}).Wasm))/float64(len(wasm)), "size/plain")
	})
	for name, wasm := range map[string][]byte{"plain": wasm, "metered": out.Wasm} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler())
				if _, err := rt.CompileModule(ctx, wasm); err != nil {
					b.Fatal(err)
				}
				_ = rt.Close(ctx)
			}
		})
	}
}
