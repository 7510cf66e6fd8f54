package runtime_test

import (
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// What is kept for the next job of one module is given back as soon as a job of another wants it.
func TestSeatsAreGivenBack(t *testing.T) {
	t.Parallel()
	e, _ := open(t, func(c *runtime.Config) { c.MemoryBudget = 8 << 20 })
	small := load(t, e, "echo", func(c *runtime.ModuleConfig) { c.Limits.Memory = 2 << 20 })
	large := loadBytes(t, e, "large", guests.Bytes("echo"), func(c *runtime.ModuleConfig) { c.Limits.Memory = 8 << 20 })
	for range 3 {
		for _, m := range []*runtime.Module{small, large} {
			if _, err := m.Run(t.Context(), newJob("x")); err != nil {
				t.Fatal(err)
			}
			if u := e.MemoryUse(); u.Running != 0 || u.Waiting != 0 || u.Idle <= 0 {
				t.Errorf("between jobs: %+v", u)
			}
		}
	}
	if u := e.MemoryUse(); u.Waits != 0 {
		t.Errorf("%d jobs have waited for memory that nobody used", u.Waits)
	}
}

// A job that waits for memory gets it from the next that ends, which keeps nothing.
func TestSeatsAreNotKeptFromThoseWhoWait(t *testing.T) {
	t.Parallel()
	e, _ := open(t, func(c *runtime.Config) { c.MemoryBudget = 8 << 20 })
	small := load(t, e, "echo", func(c *runtime.ModuleConfig) { c.Limits.Memory = 2 << 20 })
	large := loadBytes(t, e, "large", guests.Bytes("echo"), func(c *runtime.ModuleConfig) { c.Limits.Memory = 8 << 20 })
	running, release, err := small.Admit(t.Context(), newJob("x"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := large.Run(t.Context(), newJob("x"))
		done <- err
	}()
	await(t, func() bool { return e.MemoryUse().Waiting == 1 })
	if _, err := small.Run(running, newJob("x")); err != nil {
		t.Error(err)
	}
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A module is closed while many jobs come and go, and what was kept is gone then.
func TestSeatsOfClosedModules(t *testing.T) {
	t.Parallel()
	e, _ := open(t, func(c *runtime.Config) { c.MemoryBudget = 1 << 30 })
	for range 20 {
		m := load(t, e, "echo", func(c *runtime.ModuleConfig) { c.Limits.Memory = 1 << 20 })
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					if _, err := m.Run(t.Context(), newJob("x")); err != nil {
						return // it is closed
					}
				}
			})
		}
		time.AfterFunc(time.Millisecond, func() { end(t, m) })
		wg.Wait()
		end(t, m)
	}
	await(t, func() bool { u := e.MemoryUse(); return u.Running == 0 && u.Idle == 0 })
}

// Jobs that run at once for one admission, which nobody should do, have no instance in common.
func TestSeatHasOneJobAtATime(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := load(t, e, "stains")
	for range 20 {
		running, release, err := m.Admit(t.Context(), newJob("x"))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				r, err := m.Run(running, newJob("\x00"))
				if err != nil || r.Body[0]|r.Body[4]|r.Body[8]|r.Body[16] != 0 {
					t.Errorf("the guest finds %v, %v", r, err)
				}
			})
		}
		wg.Wait()
		release()
	}
}
