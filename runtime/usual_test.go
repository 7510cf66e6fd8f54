package runtime

import (
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
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
