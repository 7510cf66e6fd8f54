package runtime_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// Far more jobs than there is memory for all come to their end, never more at once than fit, whatever their modules.
func TestBudgetHolds(t *testing.T) {
	t.Parallel()
	const budget = 10 << 20
	e, _ := open(t, func(c *runtime.Config) { c.MemoryBudget = budget })
	modules := []*runtime.Module{
		load(t, e, "stains", func(c *runtime.ModuleConfig) { c.Limits.Memory = 4 << 20 }),
		load(t, e, "echo", func(c *runtime.ModuleConfig) { c.Limits.Memory = 1 << 20 }),
		load(t, e, "upper-c", func(c *runtime.ModuleConfig) { c.Limits.Memory = 3 << 20 }),
		load(t, e, "upper", func(c *runtime.ModuleConfig) { c.Limits.Memory, c.Isolation = 10<<20, runtime.IsolationFresh }),
		load(t, e, "upper-as", func(c *runtime.ModuleConfig) { c.Limits.Memory, c.Isolation = 5<<20, runtime.IsolationReuse }),
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for k := range 5 {
				if _, err := modules[(i+k)%len(modules)].Run(t.Context(), newJob("\x00")); err != nil {
					t.Error(err)
				}
				if u := e.MemoryUse(); u.Running > budget || u.Running < 0 {
					t.Errorf("running jobs may take %d bytes", u.Running)
				}
			}
		})
	}
	wg.Wait()
	if _, err := modules[1].Run(t.Context(), newJob("x")); err != nil {
		t.Error(err)
	}
	u := e.MemoryUse()
	if u.Running != 0 || u.Waiting != 0 || u.Idle > budget || u.Idle <= 0 {
		t.Errorf("in the end: %+v", u)
	}
	for _, m := range modules {
		end(t, m)
	}
	if u = e.MemoryUse(); u.Idle != 0 {
		t.Errorf("%d bytes are idle of modules that are closed", u.Idle)
	}
}

// A large job is not passed for ever by small ones that come after it.
func TestBudgetIsFair(t *testing.T) {
	t.Parallel()
	e, l := open(t, func(c *runtime.Config) { c.MemoryBudget = 8 << 20 })
	small := func(c *runtime.ModuleConfig) { c.Limits.Memory, c.Limits.Time = 4<<20, time.Minute }
	loop, echo := load(t, e, "loop", small), load(t, e, "echo", small)
	large := load(t, e, "upper", func(c *runtime.ModuleConfig) { c.Limits.Memory, c.Isolation = 8<<20, runtime.IsolationFresh })
	if m := large; m.Limits().Memory != 8<<20 {
		t.Fatal(m.Limits())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = loop.Run(ctx, newJob("")) })
	await(t, func() bool { return strings.Contains(l.String(), "looping") })
	var mu sync.Mutex
	var order []string
	run := func(m *runtime.Module, waiting int) {
		wg.Go(func() {
			if _, err := m.Run(t.Context(), newJob("x")); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			order = append(order, m.Name())
		})
		await(t, func() bool { return e.MemoryUse().Waiting == waiting })
	}
	run(large, 1)
	for i := range 3 {
		run(echo, i+2) // there is room for one, behind the large one
	}
	cancel()
	wg.Wait()
	if order[0] != "upper" {
		t.Errorf("the jobs ended in the order %v", order)
	}
}

// A job that waits too long is handed back or has expired, and those behind it move up.
func TestBudgetWait(t *testing.T) {
	t.Parallel()
	e, l := open(t, func(c *runtime.Config) { c.MemoryBudget = 6 << 20 })
	loop := load(t, e, "loop", func(c *runtime.ModuleConfig) { c.Limits.Memory, c.Limits.Time = 4<<20, time.Minute })
	large := load(t, e, "upper", func(c *runtime.ModuleConfig) { c.Limits.Memory, c.Isolation = 6<<20, runtime.IsolationFresh })
	echo := load(t, e, "echo", func(c *runtime.ModuleConfig) { c.Limits.Memory = 1 << 20 })
	ctx, cancel := context.WithCancel(t.Context())
	looped := make(chan error, 1)
	go func() {
		_, err := loop.Run(ctx, newJob(""))
		looped <- err
	}()
	await(t, func() bool { return strings.Contains(l.String(), "looping") })
	j := newJob("x")
	j.ExpiresAt = time.Now().Add(30 * time.Millisecond)
	_, _, err := large.Admit(t.Context(), j)
	wantKind(t, err, job.KindExpired, "memory_budget")

	short, stop := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := large.Run(short, newJob("x"))
		left <- err
	}()
	await(t, func() bool { return e.MemoryUse().Waiting == 1 })
	behind := make(chan error, 1)
	go func() {
		_, err := echo.Run(t.Context(), newJob("x"))
		behind <- err
	}()
	await(t, func() bool { return e.MemoryUse().Waiting == 2 })
	stop()
	wantKind(t, <-left, job.KindUnavailable, "wait for memory")
	if err := <-behind; err != nil {
		t.Errorf("the job behind: %v", err)
	}
	cancel()
	wantKind(t, <-looped, job.KindUnavailable)

	// Once admitted a job does not wait again.
	running, release, err := large.Admit(t.Context(), newJob("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := large.Run(running, newJob("x")); err != nil {
		t.Error(err)
	}
	if u := e.MemoryUse(); u.Running != 6<<20 {
		t.Errorf("%d bytes are taken", u.Running)
	}
	release()
	if u := e.MemoryUse(); u.Running != 0 {
		t.Errorf("%d bytes are taken in the end", u.Running)
	}
}

// Idle instances of other modules go first, and the one that a job is about to use stays.
func TestBudgetTakesIdleInstances(t *testing.T) {
	t.Parallel()
	e, _ := open(t, func(c *runtime.Config) { c.MemoryBudget = 4 << 20 })
	limit := func(c *runtime.ModuleConfig) { c.Limits.Memory = 4 << 20 }
	a, b := load(t, e, "stains", limit), loadBytes(t, e, "other", guests.Bytes("echo"), limit)
	run := func(m *runtime.Module) {
		if _, err := m.Run(t.Context(), newJob("\x00")); err != nil {
			t.Error(err)
		}
	}
	run(a)
	run(a)
	if idle := runtime.Idle(a); len(idle) != 1 || idle[0] != 2 {
		t.Errorf("instances %v, want one that was used twice", idle)
	}
	run(b) // may take all there is
	if idle := runtime.Idle(a); len(idle) != 0 {
		t.Errorf("instances %v are kept", idle)
	}
	if idle := runtime.Idle(b); len(idle) != 1 {
		t.Errorf("instances %v, want the one that was used", idle)
	}
}

// A module that could never run is not loaded.
func TestBudgetTooSmall(t *testing.T) {
	t.Parallel()
	e, _ := open(t, func(c *runtime.Config) { c.MemoryBudget = 32 << 20 })
	_, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "echo", Wasm: guests.Bytes("echo")})
	wantKind(t, err, job.KindInvalid, "limits.memory of 64 MiB is more than all modules together may have, 32 MiB")
}

// A route's limits hold beside the module's: of each the smaller one counts. Each is held by a guest that tries.
func TestWithin(t *testing.T) {
	t.Parallel()
	loose := runtime.DefaultLimits()
	loose.Memory, loose.Time, loose.Fuel, loose.Depth, loose.HostCalls = 4<<30, time.Hour, 0, 0, 0
	loose.Output, loose.Log, loose.LogLines, loose.HTTPCalls = 1<<30, 1<<30, 1000, 1000
	tests := []struct {
		name, guest, in string
		tight           func(*runtime.Limits)
		kind            job.Kind
		text            string
	}{
		{"memory", "grow", "", func(l *runtime.Limits) { l.Memory = 1 << 20 }, job.KindLimit, "limits.memory"},
		{"memory to begin with", "traps", "", func(l *runtime.Limits) { l.Memory = 64 << 10 }, job.KindLimit, "128 KiB to begin with, and 64 KiB is allowed"},
		{"time", "loop", "", func(l *runtime.Limits) { l.Time = 40 * time.Millisecond }, job.KindTimeout, "40ms"},
		{"fuel", "loop", "", func(l *runtime.Limits) { l.Fuel = 1_000_000 }, job.KindLimit, "limits.fuel"},
		{"depth", "recurse", "", func(l *runtime.Limits) { l.Depth = 100 }, job.KindLimit, "100 deep (limits.depth)"},
		{"host calls", "nag", "", func(l *runtime.Limits) { l.HostCalls = 50 }, job.KindLimit, "limits.host_calls"},
		{"output", "echo", "four", func(l *runtime.Limits) { l.Output = 3 }, job.KindLimit, "limits.output"},
		{"log lines", "chatty", "", func(l *runtime.Limits) { l.LogLines = 3 }, job.KindOK, ""},
		{"log bytes", "chatty", "", func(l *runtime.Limits) { l.Log = 200 }, job.KindOK, ""},
	}
	e, log := open(t)
	for _, tt := range tests {
		for _, level := range []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFresh} {
			t.Run(tt.name+", "+string(level), func(t *testing.T) {
				t.Parallel()
				name := strings.ReplaceAll(tt.name, " ", "-") + "-" + string(level)
				tight := loose
				tt.tight(&tight)
				for _, own := range []bool{false, true} { // the module's limits, or the route's
					m := loadBytes(t, e, name, guests.Bytes(tt.guest), func(c *runtime.ModuleConfig) {
						c.Isolation, c.Limits.LogLines = level, 50
						if own && tt.name != "memory to begin with" {
							c.Limits = c.Limits.Within(tight)
						}
					})
					var r job.Runner = m.Within(tight)
					if own && tt.name != "memory to begin with" {
						r = m.Within(loose)
					}
					for range 2 {
						_, err := r.Run(t.Context(), newJob(tt.in))
						wantKind(t, err, tt.kind, tt.text)
					}
				}
				if strings.HasPrefix(tt.name, "log") {
					if n := strings.Count(log.String(), "module="+name+" "); n > 4*6 {
						t.Errorf("%d lines were logged", n)
					}
				}
			})
		}
	}
}
