package runtime_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"regexp"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// D-12: a guest that floods the log is cut off, once, and its job goes on.
func TestLogLimit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		change      func(*runtime.ModuleConfig)
		least, most int // guest lines
	}{
		{"bytes", func(c *runtime.ModuleConfig) { c.Limits.Log = 1000 }, 10, 20},
		{"lines", func(c *runtime.ModuleConfig) { c.Limits.LogLines = 7 }, 7, 7},
		{"none", func(c *runtime.ModuleConfig) { c.Limits.Log = 0 }, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, l := open(t)
			r, err := load(t, e, "chatty", tt.change).Run(t.Context(), newJob(""))
			if err != nil || string(r.Body) != "done" {
				t.Fatalf("result %v, %v", r, err)
			}
			out := l.String()
			if n := strings.Count(out, "quick brown fox"); n < tt.least || n > tt.most {
				t.Errorf("%d lines logged, want %d to %d", n, tt.least, tt.most)
			}
			if n := strings.Count(out, "guest log cut off"); n != 1 {
				t.Errorf("told %d times that the log is cut off, want once", n)
			}
			for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
				for _, attr := range []string{"source=guest", "module=chatty", "job_id=j-1", "route=jobs", "attempt=1", "correlation_id=c-1"} {
					if !strings.Contains(line, attr) {
						t.Fatalf("log line %q lacks %s", line, attr)
					}
				}
			}
		})
	}
}

// A program's stderr becomes log lines, the last unfinished one too; long lines are cut into several.
func TestStderr(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	_, err := load(t, e, "exit3").Run(t.Context(), newJob(""))
	wantKind(t, err, job.KindTrap)
	if out := l.String(); !strings.Contains(out, "level=WARN") || !strings.Contains(out, "text=leaving") {
		t.Errorf("log %q", out)
	}
}

// What a guest that is no program prints is logged too.
func TestStdoutOfReactor(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	const at = 1 << 15 // to where the probe copies the end of its input: an iovec, then what it points to
	iovec := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, at+8), 5)
	in := record(1, at, 2*36, 13) + record(14, 1, at, 1, at+100) + string(iovec) + "hello"
	r, err := load(t, e, "probe").Run(t.Context(), newJob(in))
	if err != nil || len(r.Body) != 0 {
		t.Fatalf("result %v, %v", r, err)
	}
	if out := l.String(); !strings.Contains(out, "level=INFO") || !strings.Contains(out, "text=hello") {
		t.Errorf("log %q", out)
	}
}

func TestResultHeaders(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	r, err := load(t, e, "echo").Run(t.Context(), newJob("x", job.Field{Name: "content-type", Value: "text/plain"}))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Header.Get("Content-Type"); got != "text/plain" {
		t.Errorf("content type %q", got)
	}
	// The probe takes names and values from its input, which it first copies to 32768.
	const at = 1 << 15
	set := func(name, value string) string {
		in := record(1, at, 2*36, uint32(len(name)+len(value))) + record(4, at, uint32(len(name)), at+uint32(len(name)), uint32(len(value)))
		return in + name + value
	}
	tests := []struct{ name, value, want string }{
		{"X-Ok", "fine", "fine"},
		{"X-Lines", "a\r\nWasm-Ok: true", "a  Wasm-Ok: true"},
		{"X-Bytes", "\xff\xfe", "\uFFFD"},
		{"Wasm-Ok", "true", ""},
		{"wasm-result-of", "other", ""},
		{"Nats-Msg-Id", "other", ""},
		{"NATS-Rollup", "all", ""},
		{"X: Y", "z", ""},
		{"", "z", ""},
	}
	m := load(t, e, "probe")
	for _, tt := range tests {
		r, err := m.Run(t.Context(), newJob(set(tt.name, tt.value)))
		if err != nil {
			t.Errorf("%q: %v", tt.name, err)
			continue
		}
		if got := r.Header.Get(tt.name); got != tt.want {
			t.Errorf("header %q is %q, want %q", tt.name, got, tt.want)
		}
	}
	if n := strings.Count(l.String(), "guest set a header that it may not set"); n != 6 {
		t.Errorf("warned of %d headers, want 6", n)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("WASMSIDECAR_SECRET", "of the host")
	e, _ := open(t)
	j := newJob("",
		job.Field{Name: "Content-Type", Value: "text/plain"}, job.Field{Name: "X-Many", Value: "1"}, job.Field{Name: "x-many", Value: "2"},
		job.Field{Name: "X_Many", Value: "hidden"}, job.Field{Name: "Wasm-Timeout", Value: "5s"}, job.Field{Name: "Bad", Value: "a\x00b"})
	run := func(change func(*runtime.ModuleConfig)) []string {
		t.Helper()
		r, err := load(t, e, "env", change).Run(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(r.Body), "\n"), "\n")
	}
	if got, want := run(func(*runtime.ModuleConfig) {}), []string{"env"}; !slices.Equal(got, want) {
		t.Errorf("a guest that was given nothing sees %q", got)
	}
	got := run(func(c *runtime.ModuleConfig) {
		c.Args = []string{"-v", "a b"}
		c.Config = map[string]string{"greeting": "hello", "log-level": "debug"}
		c.Env = runtime.Env{Headers: true, Vars: map[string]string{"TZ": "UTC", "CONFIG_LOG_LEVEL": "mine"}}
	})
	want := []string{"env", "-v", "a b", "CONFIG_GREETING=hello", "CONFIG_LOG_LEVEL=mine", "TZ=UTC",
		"WASM_JOB_ID=j-1", "WASM_ATTEMPT=1", "WASM_ROUTE=jobs", "WASM_SUBJECT=jobs.test", "HEADER_CORRELATION_ID=c-1",
		"HEADER_CONTENT_TYPE=text/plain", "HEADER_X_MANY=1, 2", "WASM_TIMEOUT=5s"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// 64 goroutines share a module; every job gets its own answer.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	for _, guest := range []string{"upper", "upper-c", "echo-drasm"} {
		m := load(t, e, guest)
		var wg sync.WaitGroup
		for g := range 64 {
			wg.Go(func() {
				for i := range 10 {
					in := fmt.Sprintf("job %d of %d", i, g)
					want := strings.ToUpper(in)
					if guest == "echo-drasm" {
						want = in
					}
					r, err := m.Run(t.Context(), newJob(in))
					if err != nil || string(r.Body) != want {
						t.Errorf("%s: got %v, %v; want %q", guest, r, err, want)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

// An instance is clean: nothing that one job wrote is seen by the next, and dice fall differently each time.
func TestDice(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	m := load(t, e, "dice")
	seen := map[string]bool{}
	for range 20 {
		r, err := m.Run(t.Context(), newJob(""))
		if err != nil {
			t.Fatal(err)
		}
		if s := string(r.Body); seen[s] || !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(s) {
			t.Fatalf("dice %q", s)
		}
		seen[string(r.Body)] = true
	}
}

// Jobs that do not fit into the memory budget wait; one whose context ends meanwhile is left for later.
func TestMemoryBudget(t *testing.T) {
	t.Parallel()
	e, l := open(t, func(c *runtime.Config) { c.MemoryBudget = 100 << 20 })
	m := load(t, e, "loop", func(c *runtime.ModuleConfig) { c.Limits.Time = time.Minute })
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := m.Run(ctx, newJob(""))
		first <- err
	}()
	await(t, func() bool { return strings.Contains(l.String(), "looping") })
	// The loop has 64 of 100 MiB; another 64 do not fit.
	echo := load(t, e, "echo")
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	_, err := echo.Run(short, newJob("x"))
	wantKind(t, err, job.KindUnavailable, "wait for memory")
	second := make(chan error, 1)
	go func() {
		_, err := echo.Run(t.Context(), newJob("x"))
		second <- err
	}()
	cancel()
	wantKind(t, <-first, job.KindUnavailable, "broken off")
	if err := <-second; err != nil {
		t.Errorf("the job that waited: %v", err)
	}
}

func TestClose(t *testing.T) {
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
	// An idle module closes at once; a busy one is waited for, and only for as long as the caller can.
	if err := load(t, e, "echo").Close(t.Context()); err != nil {
		t.Errorf("close of an idle module: %v", err)
	}
	short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if err := m.Close(short); err == nil || !strings.Contains(err.Error(), "still under way") {
		t.Errorf("close during a run: %v", err)
	}
	_, err := m.Run(t.Context(), newJob(""))
	wantKind(t, err, job.KindUnavailable, "closed")
	cancel()
	wantKind(t, <-done, job.KindUnavailable)
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := e.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	_, err = e.Load(t.Context(), runtime.ModuleConfig{Name: "echo", Wasm: guests.Bytes("echo")})
	wantKind(t, err, job.KindUnavailable, "the engine is closed")
}

// await waits until a condition holds.
func await(t *testing.T, cond func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("waited in vain")
		}
	}
}

// Guests in Go, built by plain go build, over both ABIs. They are interpreted because the race detector makes the compiler
// take a minute over them.
func TestGoGuests(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	slow := func(c *runtime.ModuleConfig) { c.Interpreter, c.Limits.Time = true, time.Minute }
	command := loadBytes(t, e, "upper-go", guests.BuildGo(t, "upper-go"), slow)
	r, err := command.Run(t.Context(), newJob("hello"))
	if err != nil || string(r.Body) != "HELLO" {
		t.Errorf("command: %v, %v", r, err)
	}
	reactor := loadBytes(t, e, "upper-reactor", guests.BuildGo(t, "upper-reactor"), slow)
	r, err = reactor.Run(t.Context(), newJob("hello", job.Field{Name: "Content-Type", Value: "text/plain"}))
	if err != nil || string(r.Body) != "HELLO" || r.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("reactor: %v, %v", r, err)
	}
	_, err = reactor.Run(t.Context(), newJob(""))
	wantKind(t, err, job.KindFailed, "nothing to do")
}

// A guest that gives all of its memory for a name does not have the host copy it.
func TestLongNames(t *testing.T) {
	// Calls header_get, header_set and config_get ten times with names and a value of 65 MB.
	const guest = "\x00asm\x01\x00\x00\x00\x01\x13\x03`\x04\x7f\x7f\x7f\x7f\x01\x7f`\x04\x7f\x7f\x7f\x7f\x00`\x00\x00\x02L\x03\x0b" +
		"wasmsidecar\x0aheader_get\x00\x00\x0bwasmsidecar\x0aheader_set\x00\x01\x0bwasmsidecar\x0aconfig_get\x00\x00\x03" +
		"\x02\x01\x02\x05\x04\x01\x00\xe8\x07\x07\x13\x02\x06memory\x02\x00\x06handle\x00\x03\x0aN\x01L\x01\x01\x7fA\x00" +
		"A\xc1\x00A\xc0\xa4\xff\x1e\xfc\x0b\x00\x03@A\x01A\xc0\xa4\xff\x1eA\x00A\x00\x10\x00\x1aA\x01A\xc0\xa4\xff\x1eA\x01" +
		"A\xc0\xa4\xff\x1e\x10\x01A\x01A\xc0\xa4\xff\x1eA\x00A\x00\x10\x02\x1a \x00A\x01j\x22\x00A\x0aI\x0d\x00\x0b\x0b"
	e, _ := open(t)
	m := loadBytes(t, e, "names", []byte(guest))
	var before, after goruntime.MemStats
	goruntime.ReadMemStats(&before)
	if _, err := m.Run(t.Context(), newJob("")); err != nil {
		t.Fatal(err)
	}
	goruntime.ReadMemStats(&after)
	if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 256 { // one memory, where it is in Go's heap
		t.Errorf("the host took %d MiB", took)
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
