package runtime_test

import (
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// BenchmarkIsolation is one job of 1 KB by guest and by what keeps it apart from others. "usual" is an instance for each job
// with wazero's own deadline, "unlimited" the same without one; the rest is ours, metered.
func BenchmarkIsolation(b *testing.B) {
	type guest struct {
		name string
		wasm func(b *testing.B) []byte
	}
	committed := func(name string) guest { return guest{name, func(*testing.B) []byte { return guests.Bytes(name) }} }
	built := func(name string) guest {
		return guest{name, func(b *testing.B) []byte { return guests.BuildGo(b, name) }}
	}
	for _, g := range []guest{
		committed("echo"), committed("upper"), committed("upper-as"), committed("upper-c"), built("upper-reactor"), built("upper-go"),
	} {
		b.Run(g.name, func(b *testing.B) {
			wasm := g.wasm(b)
			j := newJob(strings.Repeat("x", 1024))
			for _, deadline := range []bool{true, false} {
				name := "unlimited"
				if deadline {
					name = "usual"
				}
				b.Run(name, func(b *testing.B) {
					run := runtime.Usual(b, wasm, deadline)
					b.ReportAllocs()
					for b.Loop() {
						if len(run(j)) != 1024 {
							b.Fatal("another result")
						}
					}
				})
			}
			e, err := runtime.New(runtime.Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer end(b, e)
			for _, level := range []runtime.Isolation{runtime.IsolationFresh, runtime.IsolationReset, runtime.IsolationFrozen, runtime.IsolationReuse} {
				program := g.name == "upper-c" || g.name == "upper-go"
				// Programs run once; upper-as never frees what it allocates.
				if level == runtime.IsolationReuse && (program || g.name == "upper-as") || level == runtime.IsolationFrozen && !program {
					continue
				}
				b.Run(string(level), func(b *testing.B) {
					m := loadBytes(b, e, g.name, wasm, func(c *runtime.ModuleConfig) { c.Isolation = level })
					b.ReportAllocs()
					for b.Loop() {
						if r, err := m.Run(b.Context(), j); err != nil || len(r.Body) != 1024 {
							b.Fatal(r, err)
						}
					}
				})
			}
		})
	}
}

// BenchmarkParallel is the same by as many goroutines as there are processors, with reset.
func BenchmarkParallel(b *testing.B) {
	for _, guest := range []string{"echo", "upper", "upper-c"} {
		b.Run(guest, func(b *testing.B) {
			e, err := runtime.New(runtime.Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer end(b, e)
			m := load(b, e, guest)
			b.RunParallel(func(pb *testing.PB) {
				j := newJob(strings.Repeat("x", 1024))
				for pb.Next() {
					if _, err := m.Run(b.Context(), j); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkLoad is loading a module whose machine code is in the disk cache.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir() + "/cache"
	for b.Loop() {
		e, err := runtime.New(runtime.Config{CacheDir: dir})
		if err != nil {
			b.Fatal(err)
		}
		load(b, e, "adder")
		if err := e.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
