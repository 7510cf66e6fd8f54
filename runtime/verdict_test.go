package runtime_test

import (
	"context"
	"errors"
	"log/slog"
	goruntime "runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// Each way for a guest to end badly has its kind and says what happened; the host and the module's next job are none the worse.
// D-05, D-11, D-12, R-06.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	small := func(c *runtime.ModuleConfig) { c.Limits.Memory = 1 << 20 }
	short := func(c *runtime.ModuleConfig) { c.Limits.Time = 100 * time.Millisecond }
	long := func(c *runtime.ModuleConfig) { c.Limits.Time = time.Minute }
	tests := []struct {
		name, guest, in string
		change          func(*runtime.ModuleConfig)
		kind            job.Kind
		texts           []string
	}{
		{name: "trap", guest: "trap", kind: job.KindTrap, texts: []string{`module "trap"`, "unreachable in handle"}},
		{name: "endless loop", guest: "loop", change: short, kind: job.KindTimeout, texts: []string{"100ms", "deadline exceeded"}},
		{name: "memory bomb", guest: "grow", change: small, kind: job.KindLimit, texts: []string{"out of memory", "had 1 MiB and asked for more than 1 MiB (limits.memory)", "unreachable"}},
		{name: "job before handle", guest: "early", kind: job.KindTrap, texts: []string{"guest called input_len while it initialized", "in _initialize"}},
		{name: "table bomb", guest: "tables", kind: job.KindTrap, texts: []string{"unreachable in handle"}},
		{name: "recursion", guest: "recurse", change: long, kind: job.KindLimit, texts: []string{"stack overflow"}},
		{name: "pointer out of bounds", guest: "oob", kind: job.KindTrap, texts: []string{"pointer to output out of bounds", "2147483647 bytes at 4294967280"}},
		{name: "exit 0", guest: "exit3", in: "0", kind: job.KindOK},
		{name: "exit 3", guest: "exit3", kind: job.KindTrap, texts: []string{"exit code 3: leaving"}},
		{name: "exit 65", guest: "exit3", in: "65", kind: job.KindFailed, texts: []string{"exit code 65: leaving"}},
		{name: "exit 75", guest: "exit3", in: "75", kind: job.KindRetry, texts: []string{"exit code 75: leaving"}},
		{name: "exit -1", guest: "exit3", in: "-1", kind: job.KindTrap, texts: []string{"exit code 4294967295"}},
		{name: "handle returns 65", guest: "probe", in: record(20, 65), kind: job.KindFailed, texts: []string{"exit code 65"}},
		{name: "handle returns 7", guest: "probe", in: record(20, 7), kind: job.KindTrap, texts: []string{"exit code 7"}},
		{name: "fail", guest: "fail", in: "no such account", kind: job.KindFailed, texts: []string{`module "fail": no such account`}},
		{name: "fail without words", guest: "fail", kind: job.KindFailed, texts: []string{"refused"}},
		{name: "fail with control characters", guest: "fail", in: "a\r\nb\x00\xffc", kind: job.KindFailed, texts: []string{"a  b \uFFFDc"}},
		{name: "retry", guest: "retry", kind: job.KindRetry, texts: []string{"not yet"}},
		{name: "fail, then an exit code", guest: "probe", in: record(5, 0, 0) + record(20, 75), kind: job.KindFailed, texts: []string{"guest failed the job"}},
		{name: "fail, then a trap", guest: "probe", in: record(5, 0, 0) + record(2, 1<<31, 1<<31), kind: job.KindFailed},
		{name: "fail, then retry", guest: "probe", in: record(5, 0, 0) + record(6, 0, 0, 0, 9), kind: job.KindRetry, texts: []string{"guest asked for a retry"}},
		{name: "drasm error", guest: "adder", in: `{"a": 1}`, kind: job.KindFailed, texts: []string{`bad payload: want {"a": number, "b": number}`}},
		{name: "too much output", guest: "spill", kind: job.KindLimit, texts: []string{"limit of 1048576 bytes (limits.output)"}},
		{name: "too much output at once", guest: "echo", in: strings.Repeat("x", 1<<20+1), kind: job.KindLimit, texts: []string{"limits.output"}},
		{name: "too many headers", guest: "probe", in: manyHeaders(), kind: job.KindLimit, texts: []string{"result headers"}},
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
			for range 2 { // the second job finds no trace of the first
				_, err := m.Run(t.Context(), newJob(tt.in))
				wantKind(t, err, tt.kind, tt.texts...)
			}
		})
	}
}

// manyHeaders tells the guest probe to set 65 headers. It finds their names in its own memory, where input_read puts the
// end of the input.
func manyHeaders() string {
	const names = 1 << 15
	var b strings.Builder
	b.WriteString(record(1, names, 66*36, 72))
	for i := range uint32(65) {
		b.WriteString(record(4, names, 1+i, 0, 0))
	}
	return b.String() + strings.Repeat("n", 72)
}

// a guest says when it is to be tried again.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := load(t, e, "retry", func(c *runtime.ModuleConfig) { c.Config = map[string]string{"after": "1500"} })
	_, err := m.Run(t.Context(), newJob("2"))
	wantKind(t, err, job.KindRetry, "not yet")
	if got := job.RetryAfterOf(err); got != 1500*time.Millisecond {
		t.Errorf("retry after %s, want 1.5s", got)
	}
	j := newJob("2")
	j.Attempt = 2
	if r, err := m.Run(t.Context(), j); err != nil || string(r.Body) != "at last" {
		t.Errorf("second attempt: %v", err)
	}
}

// A job that is broken off from outside has not failed, and one whose own time is up has.
func TestStoppedFromOutside(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	for _, guest := range []string{"loop", "slow"} {
		t.Run(guest, func(t *testing.T) {
			t.Parallel()
			m := load(t, e, guest)
			t.Run("cancelled", func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(50*time.Millisecond, cancel)
				_, err := m.Run(ctx, newJob("5000"))
				wantKind(t, err, job.KindUnavailable, "broken off")
				if !errors.Is(err, context.Canceled) {
					t.Errorf("error %v does not wrap context.Canceled", err)
				}
			})
			t.Run("cancelled before", func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				_, err := m.Run(ctx, newJob("5000"))
				wantKind(t, err, job.KindUnavailable)
			})
			t.Run("deadline", func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_, err := m.Run(ctx, newJob("5000"))
				wantKind(t, err, job.KindTimeout)
			})
			t.Run("job timeout", func(t *testing.T) {
				t.Parallel()
				j := newJob("5000")
				j.Timeout = 50 * time.Millisecond
				_, err := m.Run(t.Context(), j)
				wantKind(t, err, job.KindTimeout, "50ms")
			})
		})
	}
}

// An export that is called by name and has another type than it should have is the guest's fault, and is not called.
func TestExportOfAnotherType(t *testing.T) {
	t.Parallel()
	const functions, exports = "\x03\x02\x00\x01", "\x07\x02\x06handle\x00\x00\x0b_initialize\x00\x01"
	nine := strings.Repeat("\x7f", 9)
	tests := []struct {
		name string
		wasm []byte
		text string
	}{
		{"parameter", moduleOf("\x01\x02\x60\x00\x00\x60\x01\x7f\x00", functions, exports, "\x0a\x02\x02\x00\x0b\x02\x00\x0b"), "takes 1 parameters"},
		{
			"results",
			moduleOf("\x01\x02\x60\x00\x00\x60\x00\x09"+nine, functions, exports, "\x0a\x02\x02\x00\x0b\x14\x00"+strings.Repeat("\x41\x00", 9)+"\x0b"),
			"returns 9 results",
		},
	}
	e, _ := open(t)
	for _, tt := range tests {
		m := loadBytes(t, e, tt.name, tt.wasm)
		_, err := m.Run(t.Context(), newJob(""))
		wantKind(t, err, job.KindTrap, "export _initialize", tt.text)
	}
}

// The time limit holds before handle too.
func TestStartThatLoops(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	loop := "\x0a\x01\x07\x00\x03\x40\x0c\x00\x0b\x0b"
	m := loadBytes(t, e, "start", moduleOf(typeVoid, oneFunction, handleIs0, "\x08\x00", loop),
		func(c *runtime.ModuleConfig) { c.Limits.Time = 50 * time.Millisecond })
	_, err := m.Run(t.Context(), newJob(""))
	wantKind(t, err, job.KindTimeout)
}

// A guest in an endless loop does not keep the garbage collector, and so the process, waiting.
func TestLoopLetsTheHostBreathe(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	m := load(t, e, "loop", func(c *runtime.ModuleConfig) { c.Limits.Time = time.Minute })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := m.Run(ctx, newJob(""))
		done <- err
	}()
	await(t, func() bool { return strings.Contains(l.String(), "looping") })
	for range 3 {
		goruntime.GC()
	}
	select {
	case err := <-done:
		t.Errorf("the loop ended first: %v", err)
	default:
	}
	cancel()
	wantKind(t, <-done, job.KindUnavailable)
}

// A host that panics fails the job and nothing else.
func TestHostPanic(t *testing.T) {
	t.Parallel()
	e, err := runtime.New(runtime.Config{Log: slog.New(panicky{slog.DiscardHandler})})
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, e)
	m := load(t, e, "chatty") // panics inside of the guest's call
	for range 2 {
		_, err := m.Run(t.Context(), newJob(""))
		wantKind(t, err, job.KindInternal, "the log is broken")
	}
	m = load(t, e, "echo") // panics around it
	_, err = m.Run(t.Context(), nil)
	wantKind(t, err, job.KindInternal, "host panicked")
	if _, err := m.Run(t.Context(), newJob("x")); err != nil {
		t.Errorf("the next job: %v", err)
	}
}

// panicky is a log handler that panics on what guests write.
type panicky struct{ slog.Handler }

func (panicky) Enabled(context.Context, slog.Level) bool { return true }

func (panicky) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "guest" {
		panic("the log is broken")
	}
	return nil
}

// A job's own timeout never widens the module's limit.
func TestJobTimeoutOnlyTightens(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := load(t, e, "loop", func(c *runtime.ModuleConfig) { c.Limits.Time = 60 * time.Millisecond })
	j := newJob("")
	j.Timeout = time.Hour
	_, err := m.Run(t.Context(), j)
	wantKind(t, err, job.KindTimeout, "60ms")
}

// An hour of sleep passes at once under synctest, and a guest's sleep ends with its time limit.
func TestSleep(t *testing.T) {
	t.Parallel()
	wasm := guests.Bytes("slow")
	synctest.Test(t, func(t *testing.T) {
		e, err := runtime.New(runtime.Config{})
		if err != nil {
			t.Fatal(err)
		}
		limits := runtime.DefaultLimits()
		limits.Time = 2 * time.Hour
		m, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "slow", Wasm: wasm, Limits: limits})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		r, err := m.Run(t.Context(), newJob("3600000"))
		if err != nil || string(r.Body) != "3600000" || time.Since(start) < time.Hour {
			t.Errorf("slept %s: %v", time.Since(start), err)
		}
		start = time.Now()
		_, err = m.Run(t.Context(), newJob("36000000"))
		wantKind(t, err, job.KindTimeout, "2h")
		if d := time.Since(start); d < 2*time.Hour || d > 2*time.Hour+time.Minute {
			t.Errorf("stopped after %s, want 2h", d)
		}
		if err := e.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Errors say which bytes it was that failed.
func TestErrorsKnowTheModule(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	for _, guest := range []string{"trap", "fail", "exit3"} {
		m := load(t, e, guest)
		_, err := m.Run(t.Context(), newJob(""))
		var ran *job.Ran
		if !errors.As(err, &ran) || ran.Digest != m.Digest() || len(ran.Digest) != 64 {
			t.Errorf("%s: got %v", guest, err)
		}
	}
}
