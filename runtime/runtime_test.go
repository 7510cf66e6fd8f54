package runtime_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// logs collects what an engine logs.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// open returns an engine that logs to the second result. It is closed with the test.
func open(t testing.TB, change ...func(*runtime.Config)) (*runtime.Engine, *logs) {
	t.Helper()
	l := &logs{}
	cfg := runtime.Config{Log: slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range change {
		f(&cfg)
	}
	e, err := runtime.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		if err := e.Close(ctx); err != nil {
			t.Errorf("close engine: %v", err)
		}
	})
	return e, l
}

// end closes an engine or a module.
func end(t testing.TB, c interface{ Close(context.Context) error }) {
	t.Helper()
	if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// load loads a committed guest.
func load(t testing.TB, e *runtime.Engine, name string, change ...func(*runtime.ModuleConfig)) *runtime.Module {
	t.Helper()
	return loadBytes(t, e, name, guests.Bytes(name), change...)
}

func loadBytes(t testing.TB, e *runtime.Engine, name string, wasm []byte, change ...func(*runtime.ModuleConfig)) *runtime.Module {
	t.Helper()
	cfg := runtime.ModuleConfig{Name: name, Wasm: wasm, Limits: runtime.DefaultLimits()}
	for _, f := range change {
		f(&cfg)
	}
	m, err := e.Load(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newJob(body string, header ...job.Field) *job.Job {
	return &job.Job{ID: "j-1", Route: "jobs", Subject: "jobs.test", Attempt: 1, CorrelationID: "c-1", Header: header, Body: []byte(body)}
}

// wantKind checks how a run ended and that its error says all of the texts.
func wantKind(t *testing.T, err error, want job.Kind, texts ...string) {
	t.Helper()
	if got := job.KindOf(err); got != want {
		t.Fatalf("kind %q, want %q; error: %v", got, want, err)
	}
	for _, s := range texts {
		if s != "" && (err == nil || !strings.Contains(err.Error(), s)) {
			t.Fatalf("error %q does not say %q", err, s)
		}
	}
}

func TestGuests(t *testing.T) {
	t.Parallel()
	tests := []struct {
		guest, in string
		abi       runtime.ABI
		out       string
		typeName  string
		config    map[string]string
	}{
		{guest: "echo", abi: runtime.ABIPull, in: "hello", out: "hello"},
		{guest: "echo", abi: runtime.ABIPull, in: "", out: ""},
		{guest: "echo", abi: runtime.ABIPull, in: strings.Repeat("x", 300_000), out: strings.Repeat("x", 300_000)},
		{guest: "echo", abi: runtime.ABIPull, in: "world", out: "hello world", config: map[string]string{"greeting": "hello"}},
		{guest: "upper", abi: runtime.ABIPull, in: "hello", out: "HELLO"},
		{guest: "upper", abi: runtime.ABIPull, in: strings.Repeat("a", 10_000), out: strings.Repeat("A", 10_000)},
		{guest: "upper-as", abi: runtime.ABIPull, in: "hello", out: "HELLO"},
		{guest: "upper-c", abi: runtime.ABICommand, in: "hello", out: "HELLO"},
		{guest: "echo-drasm", abi: runtime.ABIDRASM, in: "hello \x00\xff", out: "hello \x00\xff", typeName: "Echo"},         // D-03
		{guest: "adder", abi: runtime.ABIDRASM, in: `{"a": 40, "b": 2}`, out: `{"sum":42}`, typeName: "Sum"},                // D-03
		{guest: "adder", abi: runtime.ABIDRASM, in: `{"b":-50,"a":9000000000}`, out: `{"sum":8999999950}`, typeName: "Sum"}, // D-03
	}
	e, _ := open(t)
	for _, tt := range tests {
		t.Run(tt.guest, func(t *testing.T) {
			t.Parallel()
			m := load(t, e, tt.guest, func(c *runtime.ModuleConfig) { c.Config = tt.config })
			if got, why := m.ABI(); got != tt.abi || why == "" {
				t.Errorf("abi %q because %q, want %q", got, why, tt.abi)
			}
			r, err := m.Run(t.Context(), newJob(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if string(r.Body) != tt.out || r.TypeName != tt.typeName {
				t.Errorf("result %.100q of type %q, want %.100q of type %q", r.Body, r.TypeName, tt.out, tt.typeName)
			}
			if r.Module != tt.guest || r.Digest != m.Digest() || len(r.Digest) != 64 || r.Duration <= 0 {
				t.Errorf("result says module %q, digest %q, duration %s", r.Module, r.Digest, r.Duration)
			}
		})
	}
}
