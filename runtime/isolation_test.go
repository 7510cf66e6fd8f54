package runtime_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// Ways for the guest stains to end a job.
const (
	endWell = iota
	endTrap
	endLoop
	endExit
	endExit65
	endRecursion
	endOutOfBounds
	endGrown
	endFull
	endOutput
)

var stainsKinds = map[byte]job.Kind{
	endTrap: job.KindTrap, endLoop: job.KindTimeout, endExit: job.KindOK, endExit65: job.KindFailed, endRecursion: job.KindLimit,
	endOutOfBounds: job.KindTrap, endGrown: job.KindOK, endFull: job.KindOK, endOutput: job.KindLimit,
}

// report is what the guest stains found when its job began.
func report(t testing.TB, m *runtime.Module) []uint32 {
	t.Helper()
	r, err := m.Run(t.Context(), newJob("\x00"))
	if err != nil {
		t.Fatal(err)
	}
	words := make([]uint32, len(r.Body)/4)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(r.Body[4*i:])
	}
	return words
}

var spotless = []uint32{0, 0, 0, 4, 0, 1}

// onEach runs a test on each way of keeping jobs apart.
func onEach(t *testing.T, test func(t *testing.T, e *runtime.Engine, change func(*runtime.ModuleConfig), used bool)) {
	for _, portable := range []bool{false, true} {
		for _, interpreter := range []bool{false, true} {
			for _, level := range []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFresh} {
				t.Run(fmt.Sprintf("%s, portable %t, interpreter %t", level, portable, interpreter), func(t *testing.T) {
					t.Parallel()
					e, _ := open(t, func(c *runtime.Config) { c.Portable = portable })
					test(t, e, func(c *runtime.ModuleConfig) { c.Isolation, c.Interpreter = level, interpreter }, level == runtime.IsolationReset)
				})
			}
		}
	}
}

// Nothing that a job leaves behind is found by the next, however it ends: not in memory, in globals or in pages that it grew.
func TestSpotless(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, e *runtime.Engine, change func(*runtime.ModuleConfig), used bool) {
		m := load(t, e, "stains", change, func(c *runtime.ModuleConfig) {
			c.Limits.Time, c.Limits.Memory = time.Minute, 4<<20
		})
		for round := range 3 {
			for mode := range byte(endOutput + 1) {
				if mode != endWell {
					j := newJob(string([]byte{mode}))
					if mode == endLoop {
						j.Timeout = 200 * time.Millisecond
					}
					_, err := m.Run(t.Context(), j)
					if got := job.KindOf(err); got != stainsKinds[mode] {
						t.Fatalf("end %d: kind %q, want %q: %v", mode, got, stainsKinds[mode], err)
					}
				}
				if mode == endLoop { // once more, for want of fuel
					l := m.Limits()
					l.Fuel = 100_000
					_, err := m.Within(l).Run(t.Context(), newJob(string([]byte{mode})))
					wantKind(t, err, job.KindLimit, "limits.fuel")
				}
				if got := report(t, m); !slices.Equal(got, spotless) {
					t.Fatalf("round %d: after end %d the guest finds %v, want %v", round, mode, got, spotless)
				}
			}
		}
		if idle := runtime.Idle(m); used && (len(idle) != 1 || idle[0] < 2) {
			t.Errorf("instances were not used again: %v", idle)
		}
	})
}

// What the guest of the other tests leaves behind is found where nobody cleans up.
func TestReuseKeepsStains(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := load(t, e, "stains", func(c *runtime.ModuleConfig) { c.Isolation = runtime.IsolationReuse })
	if got := report(t, m); !slices.Equal(got, spotless) {
		t.Errorf("the first job finds %v", got)
	}
	if _, err := m.Run(t.Context(), newJob("\x07")); err != nil {
		t.Fatal(err)
	}
	got := report(t, m)
	if !slices.Equal(got[:4], []uint32{2, 2, 2, 6}) || got[4] < 200 || got[5] != 0 {
		t.Errorf("the third job finds %v, want counts of 2, 6 pages, many secrets and no trace of the data segment", got)
	}
	// A crash ends it.
	_, err := m.Run(t.Context(), newJob("\x01"))
	wantKind(t, err, job.KindTrap)
	if got := report(t, m); !slices.Equal(got, spotless) {
		t.Errorf("after a crash the guest finds %v", got)
	}
	_, err = e.Load(t.Context(), runtime.ModuleConfig{Name: "upper-c", Wasm: guests.Bytes("upper-c"), Isolation: runtime.IsolationReuse})
	wantKind(t, err, job.KindInvalid, "isolation", "runs once")
	_, err = e.Load(t.Context(), runtime.ModuleConfig{Name: "echo", Wasm: guests.Bytes("echo"), Isolation: "some"})
	wantKind(t, err, job.KindInvalid, `unknown isolation "some"`)
}

// A guest that frees nothing of a job, or that the host has to give memory for each, is replaced before a job fails for it; one
// that needs much memory from the beginning is not.
func TestReuseOfLeaks(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	for guest, in := range map[string]string{"upper-shallabuf": `{"text":"hello"}`, "echo-drasm": "hello", "upper-as": "hello"} {
		m := load(t, e, guest, func(c *runtime.ModuleConfig) { c.Isolation, c.Limits.Memory = runtime.IsolationReuse, 1<<20 })
		for i := range 1000 {
			if _, err := m.Run(t.Context(), newJob(in+strings.Repeat(" ", 2000))); err != nil {
				t.Errorf("%s, job %d: %v", guest, i, err)
				break
			}
		}
	}
	m := load(t, e, "stains", func(c *runtime.ModuleConfig) { c.Isolation, c.Limits.Memory = runtime.IsolationReuse, 448<<10 })
	for range 10 {
		if _, err := m.Run(t.Context(), newJob("\x00")); err != nil {
			t.Error(err)
		}
	}
	if idle := runtime.Idle(m); !slices.Equal(idle, []int{10}) {
		t.Errorf("instances %v, want one that had ten jobs", idle)
	}
}

// The same from many goroutines at once.
func TestSpotlessConcurrent(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, e *runtime.Engine, change func(*runtime.ModuleConfig), _ bool) {
		m := load(t, e, "stains", change)
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 20 {
					if mode := (g + i) % 8; mode != endLoop && mode != endWell {
						_, _ = m.Run(t.Context(), newJob(string([]byte{byte(mode)})))
					}
					if r, err := m.Run(t.Context(), newJob("\x00")); err != nil || r.Body[0]|r.Body[4]|r.Body[8]|r.Body[16] != 0 || r.Body[12] != 4 || r.Body[20] != 1 {
						t.Errorf("found %v: %v", r, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// A module that cannot be reset runs in an instance of its own, and the log says once why.
func TestUnfit(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	m := load(t, e, "stains-table")
	for range 3 {
		r, err := m.Run(t.Context(), newJob(""))
		if err != nil || binary.LittleEndian.Uint32(r.Body) != 0 {
			t.Errorf("found %v: %v", r, err)
		}
	}
	load(t, e, "env", func(c *runtime.ModuleConfig) { c.Env.Headers = true }) // a command, which reads it in each job
	if n := strings.Count(l.String(), "module cannot be reset"); n != 1 || !strings.Contains(l.String(), "module=stains-table") {
		t.Errorf("told %d times, want once: %s", n, l)
	}
	if runtime.Idle(m) != nil {
		t.Error("instances are kept")
	}
}

// An instance is not used for ever: not after many crashes, nor after a recursion, whose stack it would keep.
func TestWorn(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := load(t, e, "stains")
	for i := range runtime.MaxCrashes {
		report(t, m)
		_, err := m.Run(t.Context(), newJob("\x01"))
		wantKind(t, err, job.KindTrap)
		want := []int{2*i + 2}
		if i == runtime.MaxCrashes-1 {
			want = []int{}
		}
		if idle := runtime.Idle(m); !slices.Equal(idle, want) {
			t.Fatalf("after %d crashes: instances %v, want %v", i+1, idle, want)
		}
	}
	report(t, m)
	_, err := m.Run(t.Context(), newJob("\x05"))
	wantKind(t, err, job.KindLimit, "limits.depth")
	if idle := runtime.Idle(m); len(idle) != 0 {
		t.Errorf("instances %v are kept after a recursion", idle)
	}
}

// The same job burns the same fuel in every run, on both engines and however jobs are kept apart: in a thousand runs of three guests
// each way, in fewer of those that take long.
func TestFuelIsDeterministic(t *testing.T) {
	t.Parallel()
	tests := []struct {
		guest, in string
		runs      int // on each level and engine
		reuse     bool
	}{
		{"upper", "hello", 1000, true}, {"echo", "hello", 1000, true}, {"sum", "[1, 2, 30]", 1000, true},
		{"upper-as", strings.Repeat("ab", 500), 50, false}, {"adder", `{"a": 40, "b": 2}`, 125, false}, {"upper-c", "hello", 125, false},
		{"stains", "\x00", 50, false}, {"upper-extism", strings.Repeat("ab", 500), 50, true}, {"upper-shallabuf", `{"text":"hello"}`, 50, false},
	}
	for _, tt := range tests {
		t.Run(tt.guest, func(t *testing.T) {
			t.Parallel()
			var want uint64
			onEachLevel(t, func(e *runtime.Engine, level runtime.Isolation, interpreter bool) {
				if level == runtime.IsolationReuse && !tt.reuse {
					return // it does other work where it finds what it left, or cannot be used again
				}
				m := load(t, e, tt.guest, func(c *runtime.ModuleConfig) { c.Isolation, c.Interpreter = level, interpreter })
				for range tt.runs {
					r, err := m.Run(t.Context(), newJob(tt.in))
					if err != nil {
						t.Fatal(err)
					}
					if want == 0 {
						want = r.Fuel
					}
					if r.Fuel != want || want == 0 {
						t.Fatalf("isolation %s, interpreter %t: burnt %d, want %d", level, interpreter, r.Fuel, want)
					}
				}
			})
		})
	}
}

func onEachLevel(t *testing.T, f func(e *runtime.Engine, level runtime.Isolation, interpreter bool)) {
	e, _ := open(t)
	for _, interpreter := range []bool{false, true} {
		for _, level := range []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFresh, runtime.IsolationReuse} {
			f(e, level, interpreter)
		}
	}
}

// Each error that stops a guest can be told from the others.
func TestStopErrors(t *testing.T) {
	t.Parallel()
	all := map[string]error{
		"fuel": runtime.ErrFuel, "depth": runtime.ErrDepth, "deadline": runtime.ErrDeadline, "canceled": runtime.ErrCanceled,
		"memory": runtime.ErrMemory, "output": runtime.ErrOutput,
	}
	tests := []struct {
		name, guest, in string
		change          func(*runtime.ModuleConfig)
		kind            job.Kind
		text            string
	}{
		{"fuel", "loop", "", func(c *runtime.ModuleConfig) { c.Limits.Fuel = 5_000_000 }, job.KindLimit, "more than 5000000 (limits.fuel)"},
		{"depth", "recurse", "", func(c *runtime.ModuleConfig) { c.Limits.Depth = 100 }, job.KindLimit, "more than 100 deep (limits.depth)"},
		{"deadline", "loop", "", func(c *runtime.ModuleConfig) { c.Limits.Time = 50 * time.Millisecond }, job.KindTimeout, "50ms"},
		{"memory", "grow", "", func(c *runtime.ModuleConfig) { c.Limits.Memory = 1 << 20 }, job.KindLimit, "asked for more than 1 MiB (limits.memory)"},
		{"output", "spill", "", nil, job.KindLimit, "limits.output"},
	}
	e, _ := open(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := load(t, e, tt.guest, func(c *runtime.ModuleConfig) {
				if tt.change != nil {
					tt.change(c)
				}
			})
			for range 3 {
				_, err := m.Run(t.Context(), newJob(tt.in))
				wantKind(t, err, tt.kind, tt.text)
				for name, target := range all {
					if errors.Is(err, target) != (name == tt.name) {
						t.Errorf("error %v: is %s: %t", err, name, name != tt.name)
					}
				}
			}
		})
	}
}

// What _initialize drew is kept where instances are reset, unless the guest draws again in wasmsidecar_reseed.
func TestSeed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		level   runtime.Isolation
		config  map[string]string
		same    bool
		reseeds byte
	}{
		{runtime.IsolationReset, nil, true, 0},
		{runtime.IsolationReset, map[string]string{"reseed": "yes"}, false, 1},
		{runtime.IsolationFresh, nil, false, 0},
		{runtime.IsolationFresh, map[string]string{"reseed": "yes"}, false, 0},
	}
	e, _ := open(t)
	for _, tt := range tests {
		m := load(t, e, "seed", func(c *runtime.ModuleConfig) { c.Isolation, c.Config = tt.level, tt.config })
		seen := map[string]bool{}
		for range 10 {
			r, err := m.Run(t.Context(), newJob(""))
			if err != nil {
				t.Fatal(err)
			}
			if r.Body[8] != tt.reseeds {
				t.Errorf("%s: reseeded %d times, want %d", tt.level, r.Body[8], tt.reseeds)
			}
			seen[string(r.Body[:8])] = true
		}
		if same := len(seen) == 1; same != tt.same || !same && len(seen) != 10 {
			t.Errorf("%s, %v: %d seeds in 10 jobs", tt.level, tt.config, len(seen))
		}
	}
}

// A guest that may read a job's headers while it initializes has an instance for each job.
func TestHeadersAreNotKept(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	m := loadBytes(t, e, "upper-reactor", guests.BuildGo(t, "upper-reactor"), func(c *runtime.ModuleConfig) {
		c.Env.Headers, c.Interpreter, c.Limits.Time = true, true, time.Minute
	})
	if _, err := m.Run(t.Context(), newJob("x")); err != nil {
		t.Error(err)
	}
	if runtime.Idle(m) != nil || !strings.Contains(l.String(), "env.headers") {
		t.Errorf("instances %v are kept; log %s", runtime.Idle(m), l)
	}
}

// The same of a program that is frozen at its first read and goes on from there in each job.
func TestSpotlessProgram(t *testing.T) {
	t.Parallel()
	kinds := []job.Kind{job.KindOK, job.KindTrap, job.KindTimeout, job.KindOK, job.KindFailed, job.KindTrap, job.KindTrap, job.KindOK, job.KindOK}
	for _, level := range []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFrozen, runtime.IsolationFresh} {
		for _, portable := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, portable %t", level, portable), func(t *testing.T) {
				t.Parallel()
				e, _ := open(t, func(c *runtime.Config) { c.Portable = portable })
				m := load(t, e, "smear", func(c *runtime.ModuleConfig) {
					c.Isolation, c.Limits.Time, c.Limits.Memory = level, time.Minute, 4<<20
				})
				clean := report(t, m)
				if len(clean) != 4 || clean[0] != 0 || clean[1] != 0 || clean[3] != 0 {
					t.Fatalf("the first job finds %v", clean)
				}
				for round := range 2 {
					for mode, kind := range kinds {
						j := newJob(string([]byte{byte(mode)}))
						if kind == job.KindTimeout {
							j.Timeout = 200 * time.Millisecond
						}
						if _, err := m.Run(t.Context(), j); job.KindOf(err) != kind {
							t.Fatalf("end %d: %v, want %s", mode, err, kind)
						}
						if got := report(t, m); !slices.Equal(got, clean) {
							t.Fatalf("round %d: after end %d the program finds %v, the first found %v", round, mode, got, clean)
						}
					}
				}
			})
		}
	}
}

// What a guest did to its standard streams before its first job is so in each job, and what a job did to them is not.
func TestStreamsAreAsTheyWere(t *testing.T) {
	t.Parallel()
	// Closes stdout in _initialize; handle answers what closing it says, and what closing stderr does, from A for success.
	const reactor = "\x00asm\x01\x00\x00\x00\x01\x0e\x03`\x01\x7f\x01\x7f`\x02\x7f\x7f\x00`\x00\x00\x028\x02\x16wasi_snaps" +
		"hot_preview1\x08fd_close\x00\x00\x0bwasmsidecar\x06output\x00\x01\x03\x03\x02\x02\x02\x05\x03\x01\x00" +
		"\x01\x07!\x03\x06memory\x02\x00\x0b_initialize\x00\x02\x06handle\x00\x03\x0a,\x02\x07\x00A\x01\x10\x00" +
		"\x1a\x0b\x22\x00A\x00A\xc1\x00A\x01\x10\x00j:\x00\x00A\x01A\xc1\x00A\x02\x10\x00j:\x00\x00A\x00A\x02\x10" +
		"\x01\x0b"
	// Closes stderr, reads, and writes what closing it says then, and what closing stdin does.
	const program = "\x00asm\x01\x00\x00\x00\x01\x11\x03`\x01\x7f\x01\x7f`\x04\x7f\x7f\x7f\x7f\x01\x7f`\x00\x00\x02f\x03\x16" +
		"wasi_snapshot_preview1\x08fd_close\x00\x00\x16wasi_snapshot_preview1\x07fd_read\x00\x01\x16wasi_snaps" +
		"hot_preview1\x08fd_write\x00\x01\x03\x02\x01\x02\x05\x03\x01\x00\x01\x07\x13\x02\x06memory\x02\x00\x06" +
		"_start\x00\x03\x0a9\x017\x00A\x02\x10\x00\x1aA\x00A\x08A\x01A\x00\x10\x01\x1aA A\xc1\x00A\x02\x10\x00" +
		"j:\x00\x00A!A\xc1\x00A\x00\x10\x00j:\x00\x00A\x01A\x10A\x01A\x00\x10\x02\x1a\x0b\x0b\x16\x01\x00A\x08" +
		"\x0b\x10@\x00\x00\x00\x01\x00\x00\x00 \x00\x00\x00\x02\x00\x00\x00"
	for name, tt := range map[string]struct {
		wasm   string
		levels []runtime.Isolation
	}{
		"reactor": {reactor, []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFresh, runtime.IsolationReuse}},
		"program": {program, []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFrozen, runtime.IsolationFresh}},
	} {
		e, _ := open(t)
		for _, level := range tt.levels {
			m := loadBytes(t, e, name, []byte(tt.wasm), func(c *runtime.ModuleConfig) { c.Isolation = level })
			for i := range 3 {
				if r, err := m.Run(t.Context(), newJob("x")); err != nil || string(r.Body) != "IA" { // I: EBADF
					t.Errorf("%s, %s, job %d: %v, %v; want IA", name, level, i, r, err)
				}
			}
			if name == "program" && level != runtime.IsolationFresh && runtime.Frozen(m) != 1 {
				t.Errorf("%s: the program is not frozen", level)
			}
		}
	}
}
