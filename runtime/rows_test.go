package runtime_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// Each way for a guest to end is told from the others, and whatever it was, the instance is used again or not as it should be
// and the next job finds nothing of it.
func TestEachEnd(t *testing.T) {
	t.Parallel()
	const kept, lost = true, false
	ends := []struct {
		name, guest string
		in          byte
		kind        job.Kind
		text        string // in the error
		is          error
		kept        bool // the instance, where it is reset
	}{
		{"unreachable", "traps", 1, job.KindTrap, "unreachable", nil, kept},
		{"out of bounds", "traps", 2, job.KindTrap, "out of bounds memory access", nil, kept},
		{"division by zero", "traps", 3, job.KindTrap, "integer divide by zero", nil, kept},
		{"division overflow", "traps", 4, job.KindTrap, "integer overflow", nil, kept},
		{"not a number", "traps", 5, job.KindTrap, "invalid conversion to integer", nil, kept},
		{"call beyond the table", "traps", 6, job.KindTrap, "invalid table access", nil, kept},
		{"call of nothing", "traps", 7, job.KindTrap, "invalid table access", nil, kept},
		{"call of another type", "traps", 8, job.KindTrap, "indirect call type mismatch", nil, kept},
		{"recursion with a stack in memory", "traps", 9, job.KindTrap, "out of bounds memory access", nil, kept},
		{"recursion", "traps", 10, job.KindLimit, "stack overflow", runtime.ErrDepth, lost},
		{"proc_exit", "traps", 11, job.KindTrap, "exit code 3", nil, kept},
		{"growth refused", "traps", 12, job.KindLimit, "(limits.memory); not handled by the guest: unreachable", runtime.ErrMemory, kept},
		{"growth refused, not minded", "traps", 13, job.KindOK, "", nil, kept},
		{"growth refused and had after all", "traps", 14, job.KindTrap, "unreachable", nil, kept},
		{"growth refused, and an exit", "traps", 15, job.KindLimit, "(limits.memory); not handled by the guest: exit code 2", runtime.ErrMemory, kept},
		{"rust panic", "panics", 0, job.KindTrap, "unreachable", nil, kept},
		{"host calls", "nag", 0, job.KindLimit, "the limit is 1000 (limits.host_calls)", runtime.ErrHostCalls, kept},
	}
	onEachLevel(t, func(e *runtime.Engine, level runtime.Isolation, interpreter bool) {
		for _, end := range ends {
			t.Run(fmt.Sprintf("%s, %s, interpreter %t", end.name, level, interpreter), func(t *testing.T) {
				t.Parallel()
				m := load(t, e, end.guest, func(c *runtime.ModuleConfig) {
					c.Isolation, c.Interpreter, c.Limits.Memory, c.Limits.HostCalls = level, interpreter, 1<<20, 1000
				})
				in := ""
				if end.in > 0 {
					in = string([]byte{end.in})
				}
				_, err := m.Run(t.Context(), newJob(in))
				wantKind(t, err, end.kind, end.text)
				if end.is != nil && !errors.Is(err, end.is) {
					t.Errorf("error %v is not %v", err, end.is)
				}
				var want []int
				switch {
				case level == runtime.IsolationFresh:
				case level == runtime.IsolationReset && end.kept, level == runtime.IsolationReuse && (end.kind == job.KindOK || end.name == "proc_exit"):
					want = []int{1}
				case level == runtime.IsolationReuse && end.in == 15: // an exit is no crash
					want = []int{1}
				default:
					want = []int{}
				}
				if idle := runtime.Idle(m); !slices.Equal(idle, want) {
					t.Errorf("instances %v, want %v", idle, want)
				}
				good := map[string]string{"traps": "\x00", "panics": "x", "nag": "\x05\x00\x00\x00"}[end.guest]
				if _, err := m.Run(t.Context(), newJob(good)); err != nil {
					t.Errorf("the next job: %v", err)
				}
			})
		}
	})
}

// A module that wants more memory to begin with than it may have is not loaded.
func TestMinimumAboveLimit(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	limits := runtime.DefaultLimits()
	limits.Memory = 64 << 10
	_, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "traps", Wasm: guests.Bytes("traps"), Limits: limits})
	wantKind(t, err, job.KindInvalid, "it needs 128 KiB of memory to begin with; its limit is 64 KiB: raise limits.memory")
}

// A panic in Go ends its instance's job only: the words are in the error, and the instance is reset.
func TestGoPanic(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := loadBytes(t, e, "panic-reactor", guests.BuildGo(t, "panic-reactor"), func(c *runtime.ModuleConfig) {
		c.Interpreter, c.Limits.Time = true, time.Minute
	})
	for i := range 2 {
		_, err := m.Run(t.Context(), newJob("five"))
		wantKind(t, err, job.KindTrap, "unreachable", "panic: given five")
		if r, err := m.Run(t.Context(), newJob("")); err != nil || string(r.Body) != "fine" {
			t.Errorf("the next job: %v", err)
		}
		if idle := runtime.Idle(m); !slices.Equal(idle, []int{2*i + 2}) && !runtime.Copies(e) {
			t.Errorf("instances %v, want one that was used for everything", idle)
		}
	}
}

// A Go program that runs out of memory says so, and it is told from other crashes.
func TestGoOutOfMemory(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := loadBytes(t, e, "upper-go", guests.BuildGo(t, "upper-go"), func(c *runtime.ModuleConfig) {
		c.Interpreter, c.Limits.Time, c.Limits.Memory = true, time.Minute, 4<<20
	})
	for range 2 {
		_, err := m.Run(t.Context(), newJob(strings.Repeat("x", 3<<20)))
		wantKind(t, err, job.KindLimit, "limits.memory", "out of memory")
		if !errors.Is(err, runtime.ErrMemory) {
			t.Errorf("error %v is not %v", err, runtime.ErrMemory)
		}
		if r, err := m.Run(t.Context(), newJob("x")); err != nil || string(r.Body) != "X" {
			t.Errorf("the next job: %v", err)
		}
	}
}

// Calls within calls that use no memory of the guest's use the host's, and not much of it, also where each keeps much.
func TestRecursionIsSmall(t *testing.T) { // alone: it looks at the process
	for _, wasm := range [][]byte{guests.Bytes("recurse"), recursion(1), recursion(40), recursion(150), recursion(900)} {
		for _, interpreter := range []bool{false, true} {
			e, _ := open(t)
			m := loadBytes(t, e, "recurse", wasm, func(c *runtime.ModuleConfig) { c.Interpreter = interpreter })
			var before, after goruntime.MemStats
			goruntime.ReadMemStats(&before)
			_, err := m.Run(t.Context(), newJob(""))
			goruntime.ReadMemStats(&after)
			wantKind(t, err, job.KindLimit, "stack overflow")
			// All that was ever taken, which is more than there was at once.
			taken := after.TotalAlloc - before.TotalAlloc
			t.Logf("interpreter %t: %d KiB", interpreter, taken>>10)
			if taken > 16<<20 {
				t.Errorf("interpreter %t: a recursion took %d MiB", interpreter, taken>>20)
			}
		}
	}
}

// recursion is a module whose handle calls a function of n parameters, which it keeps while it calls itself, for ever.
func recursion(n int) []byte {
	number := func(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) }
	own := append(number([]byte{0x60}, n), bytes.Repeat([]byte{0x7e}, n)...) // (i64, …) -> i64
	own = append(own, 1, 0x7e)
	all := append([]byte("\x02\x60\x00\x00"), own...)
	types := append(number([]byte{1}, len(all)), all...)
	self, start := []byte{0}, []byte{0} // no locals
	for i := range n {
		self, start = number(append(self, 0x20), i), append(start, 0x42, 0) // local.get i; i64.const 0
	}
	self, start = append(self, 0x10, 0), append(start, 0x10, 0, 0x1a, 0x0b) // call 0; drop
	for i := range n {
		self = append(number(append(self, 0x20), i), 0x7c) // i64.add
	}
	self = append(self, 0x0b)
	code := []byte{2}
	code = append(append(number(code, len(self)), self...), append(number(nil, len(start)), start...)...)
	wasm := append([]byte("\x00asm\x01\x00\x00\x00"), types...)
	wasm = append(wasm, "\x03\x03\x02\x01\x00\x07\x0a\x01\x06handle\x00\x01"...)
	return append(number(append(wasm, 10), len(code)), code...)
}
