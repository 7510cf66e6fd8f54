package runtime_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// A program that was frozen answers each job as one that was begun for it does, burns the same fuel, and is none the worse for
// jobs that failed.
func TestFrozen(t *testing.T) {
	t.Parallel()
	for _, portable := range []bool{false, true} {
		t.Run(fmt.Sprintf("portable %t", portable), func(t *testing.T) {
			t.Parallel()
			e, _ := open(t, func(c *runtime.Config) { c.Portable = portable })
			m := load(t, e, "frost")
			begun := load(t, e, "frost", func(c *runtime.ModuleConfig) { c.Isolation = runtime.IsolationFresh })
			interpreted := load(t, e, "frost", func(c *runtime.ModuleConfig) { c.Interpreter = true })
			inputs := []string{
				"hello", "", "x", strings.Repeat("long ", 5000), "!trap", "after", "!exit65", "after", "!exit0", "!deep", "after", "!grow", "after",
				"!loop", "after", strings.Repeat("y", 100_000),
			}
			for round := range 5 {
				for _, in := range inputs {
					j := newJob(in)
					if in == "!loop" {
						j.Timeout = 50 * time.Millisecond
					}
					want, wantErr := begun.Run(t.Context(), j)
					for _, m := range []*runtime.Module{m, interpreted} {
						got, err := m.Run(t.Context(), j)
						switch {
						case job.KindOf(err) != job.KindOf(wantErr):
							t.Fatalf("round %d, %.20q: %v, want %v", round, in, err, wantErr)
						case err == nil && (string(got.Body) != string(want.Body) || got.Fuel != want.Fuel):
							t.Fatalf("round %d, %.20q: %.60q for %d, want %.60q for %d", round, in, got.Body, got.Fuel, want.Body, want.Fuel)
						}
					}
				}
			}
			if n := runtime.Frozen(m); n != 1 {
				t.Errorf("%d instances are frozen, want 1", n)
			}
			if n := runtime.Frozen(interpreted); n != 0 {
				t.Errorf("%d interpreted instances are frozen", n)
			}
		})
	}
}

// Many at once, each with its own input, some of them broken off in the middle.
func TestFrozenConcurrent(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := load(t, e, "frost")
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 50 {
				in := fmt.Sprintf("job %d of %d", i, g)
				if i%10 == 9 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					_, _ = m.Run(ctx, newJob("!loop"))
					cancel()
				}
				if r, err := m.Run(t.Context(), newJob(in)); err != nil || !strings.HasSuffix(string(r.Body), " "+in) || r.Body[0] != '1' {
					t.Errorf("%q: %v, %v", in, r, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := runtime.Frozen(m); n == 0 || n != len(runtime.Idle(m)) {
		t.Errorf("%d of %d instances are frozen", n, len(runtime.Idle(m)))
	}
}

// Where it is asked for, a program is frozen that has drawn random numbers or looked at the clock.
func TestFrozenThatDrew(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	frozen := func(args ...string) func(*runtime.ModuleConfig) {
		return func(c *runtime.ModuleConfig) { c.Isolation, c.Args = runtime.IsolationFrozen, args }
	}
	for _, what := range []string{"random", "clock"} {
		m := load(t, e, "frost", frozen(what))
		for _, in := range []string{"one", "!trap", "two", "!exit0", "three"} {
			r, err := m.Run(t.Context(), newJob(in))
			if in[0] != '!' && (err != nil || string(r.Body) != "1 "+in) {
				t.Errorf("%s: %v, %v; want 1 %s", what, r, err, in)
			}
		}
		if n := runtime.Frozen(m); n != 1 {
			t.Errorf("%s: %d instances are frozen, want 1", what, n)
		}
	}
	if s := l.String(); strings.Contains(s, "from its beginning") {
		t.Errorf("log: %s", s)
	}
	load(t, e, "frost", frozen("print"))
	for name, change := range map[string]func(*runtime.ModuleConfig){
		"it is interpreted": func(c *runtime.ModuleConfig) { c.Interpreter = true },
		"env.headers":       func(c *runtime.ModuleConfig) { c.Env.Headers = true },
	} {
		m := load(t, e, "frost", frozen(), change)
		if r, err := m.Run(t.Context(), newJob("x")); err != nil || string(r.Body) != "1 x" {
			t.Errorf("%s: %v, %v", name, r, err)
		}
		if !strings.Contains(l.String(), name) {
			t.Errorf("the log does not say %q: %s", name, l)
		}
	}
	_, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "echo", Wasm: guests.Bytes("echo"), Isolation: runtime.IsolationFrozen})
	wantKind(t, err, job.KindInvalid, "only programs can be frozen")
}

// A Go program that is frozen goes on with its goroutines and its heap as they were, and with the memory it takes meanwhile.
func TestFrozenGo(t *testing.T) {
	t.Parallel()
	if runtime.RaceEnabled {
		return // the race detector makes the compiler take a minute, and what is compiled is not checked by it
	}
	e, _ := open(t)
	m := loadBytes(t, e, "upper-go", guests.BuildGo(t, "upper-go"), func(c *runtime.ModuleConfig) { c.Isolation = runtime.IsolationFrozen })
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				in := strings.Repeat(fmt.Sprintf("job %d of %d ", i, g), 1+i%50*100)
				if r, err := m.Run(t.Context(), newJob(in)); err != nil || string(r.Body) != strings.ToUpper(in) {
					t.Errorf("job %d of %d: %v", i, g, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := runtime.Frozen(m); (n == 0 || n != len(runtime.Idle(m))) && !runtime.Copies(e) {
		t.Errorf("%d of %d instances are frozen", n, len(runtime.Idle(m)))
	}
}

// A program that does anything before its first read which one job would see and the next would not, begins for each.
func TestNotFrozen(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	tests := []struct {
		name   string
		wasm   []byte
		change func(*runtime.ModuleConfig)
		why    string
	}{
		{"frost-early", guests.Bytes("frost"), func(c *runtime.ModuleConfig) { c.Args = []string{"print"} }, "does something before"},
		{"frost-random", guests.Bytes("frost"), func(c *runtime.ModuleConfig) { c.Args = []string{"random"} }, "draws random numbers before"},
		{"frost-clock", guests.Bytes("frost"), func(c *runtime.ModuleConfig) { c.Args = []string{"clock"} }, "reads the clock"},
		{"frost-headers", guests.Bytes("frost"), func(c *runtime.ModuleConfig) { c.Env.Headers = true }, ""},
		{"exit3", guests.Bytes("exit3"), nil, ""},
	}
	for _, tt := range tests {
		m := loadBytes(t, e, tt.name, tt.wasm, func(c *runtime.ModuleConfig) {
			if tt.change != nil {
				tt.change(c)
			}
		})
		for _, in := range []string{"one", "two"} {
			if r, err := m.Run(t.Context(), newJob(in)); tt.name != "exit3" && (err != nil || !strings.HasSuffix(string(r.Body), " "+in)) {
				t.Errorf("%s: %v, %v", tt.name, r, err)
			}
		}
		if n := runtime.Frozen(m); n != 0 && tt.name != "exit3" {
			t.Errorf("%s is frozen", tt.name)
		}
		if tt.why != "" && !strings.Contains(l.String(), tt.why) {
			t.Errorf("%s: the log does not say why: %s", tt.name, l)
		}
	}
}

// What a program finds out about the memory that one route leaves it is not what jobs of another begin with.
func TestFrozenWithin(t *testing.T) {
	t.Parallel()
	// Asks for 100 pages, reads stdin, and writes B where it got them, S where not.
	const guest = "\x00asm\x01\x00\x00\x00\x01\x0c\x02`\x04\x7f\x7f\x7f\x7f\x01\x7f`\x00\x00\x02D\x02\x16wasi_snapshot_preview1\x07" +
		"fd_read\x00\x00\x16wasi_snapshot_preview1\x08fd_write\x00\x00\x03\x02\x01\x01\x05\x03\x01\x00\x01\x07\x13\x02\x06" +
		"memory\x02\x00\x06_start\x00\x02\x0a-\x01+\x00A\xe4\x00@\x00A\x7fF\x04@A A\xd3\x00:\x00\x00\x0bA\x00A\x00A\x01A" +
		"\x0c\x10\x00\x1aA\x01A\x10A\x01A\x0c\x10\x01\x1a\x0b\x0b!\x03\x00A\x00\x0b\x08@\x00\x00\x00@\x00\x00\x00\x00A\x10" +
		"\x0b\x08 \x00\x00\x00\x01\x00\x00\x00\x00A \x0b\x01B"
	for _, first := range []string{"S", "B"} {
		e, _ := open(t)
		m := loadBytes(t, e, "small", []byte(guest))
		tight := m.Limits()
		tight.Memory = 1 << 20
		runs := map[string]interface {
			Run(context.Context, *job.Job) (*job.Result, error)
		}{"S": m.Within(tight), "B": m}
		for _, want := range []string{first, "S", "B", "S", "B"} {
			r, err := runs[want].Run(t.Context(), newJob("x"))
			if err != nil || string(r.Body) != want {
				t.Fatalf("%s first: result %+v, error %v; want %s", first, r, err, want)
			}
		}
	}
}

// A program that was frozen may call as deeply as one that was begun for the job.
func TestFrozenDepth(t *testing.T) {
	t.Parallel()
	// Reads a byte and calls ten times as deeply as it says.
	const guest = "\x00asm\x01\x00\x00\x00\x01\x10\x03`\x04\x7f\x7f\x7f\x7f\x01\x7f`\x01\x7f\x00`\x00\x00\x02\x22\x01\x16" +
		"wasi_snapshot_preview1\x07fd_read\x00\x00\x03\x03\x02\x01\x02\x05\x03\x01\x00\x01\x07\x13\x02\x06memo" +
		"ry\x02\x00\x06_start\x00\x02\x0a)\x02\x0e\x00 \x00\x04@ \x00A\x01k\x10\x01\x0b\x0b\x18\x00A\x00A\x08A" +
		"\x01A\x00\x10\x00\x1aA\x0aA\xc0\x00-\x00\x00l\x10\x01\x0b\x0b\x0e\x01\x00A\x08\x0b\x08@\x00\x00\x00\x01" +
		"\x00\x00\x00"
	e, _ := open(t)
	for _, level := range []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFresh} {
		m := loadBytes(t, e, "deep", []byte(guest), func(c *runtime.ModuleConfig) { c.Isolation, c.Limits.Depth = level, 1000 })
		for range 2 {
			for range 3 { // the first of which freezes it
				if _, err := m.Run(t.Context(), newJob("\x5a")); err != nil {
					t.Errorf("%s: %v", level, err)
				}
			}
			if level == runtime.IsolationReset && runtime.Frozen(m) != 1 {
				t.Error("the program is not frozen")
			}
			_, err := m.Run(t.Context(), newJob("\x6e"))
			wantKind(t, err, job.KindLimit, "limits.depth")
		}
	}
}
