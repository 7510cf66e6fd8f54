package runtime_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// slowEngine returns an engine whose compilations of the module slow end when done is closed, and the number of those that began.
func slowEngine(t *testing.T, within time.Duration) (e *runtime.Engine, begun *atomic.Int32, done chan struct{}) {
	t.Helper()
	done, begun = make(chan struct{}), &atomic.Int32{}
	e, err := runtime.New(runtime.Config{CompileTime: within, Compiled: func(c runtime.Compilation) {
		if c.Module == "slow" {
			begun.Add(1)
			<-done
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return e, begun, done
}

// A module that takes long to compile is given up, and holds up no other.
func TestCompileTime(t *testing.T) {
	t.Parallel()
	e, _, done := slowEngine(t, 50*time.Millisecond)
	slow := runtime.ModuleConfig{Name: "slow", Wasm: guests.Bytes("upper")}
	for range 2 { // the second comes to a build that was given up and has not ended
		_, err := e.Load(t.Context(), slow)
		if job.KindOf(err) != job.KindInvalid || !strings.Contains(err.Error(), `load module "slow": compile: it takes too long: more than 50ms (compile.timeout)`) {
			t.Fatalf("got %v", err)
		}
	}
	quick, err := runtime.New(runtime.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := quick.Load(t.Context(), slow); err != nil {
		t.Errorf("another engine: %v", err)
	}
	if err := quick.Close(t.Context()); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Close(ended); err == nil || !strings.Contains(err.Error(), "still being compiled") {
		t.Errorf("closed while a module is compiled: %v", err)
	}
	close(done)
	if err := e.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A caller that gives up gets away at once; who comes after it gets the module.
func TestCompileAbandoned(t *testing.T) {
	t.Parallel()
	e, begun, done := slowEngine(t, time.Hour)
	slow := runtime.ModuleConfig{Name: "slow", Wasm: guests.Bytes("upper")}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	load := func(ctx context.Context) {
		_, err := e.Load(ctx, slow)
		errs <- err
	}
	go load(ctx)
	for begun.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-errs; job.KindOf(err) != job.KindUnavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	go load(t.Context())
	select {
	case err := <-errs:
		t.Fatalf("got %v while the module was still being compiled", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(done)
	if err := <-errs; err != nil {
		t.Error(err)
	}
	if err := e.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
