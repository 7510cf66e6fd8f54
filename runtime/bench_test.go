package runtime_test

import (
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// BenchmarkInstance is one job of 1 KB in an instance of its own, by guest.
func BenchmarkInstance(b *testing.B) {
	for _, guest := range []string{"echo", "upper", "upper-as", "upper-c", "echo-drasm"} {
		b.Run(guest, func(b *testing.B) {
			e, err := runtime.New(runtime.Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer end(b, e)
			m := load(b, e, guest)
			j := newJob(strings.Repeat("x", 1024))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.Run(b.Context(), j); err != nil {
					b.Fatal(err)
				}
			}
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
