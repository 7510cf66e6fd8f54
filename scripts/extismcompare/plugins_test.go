package main

import (
	"bytes"
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	extism "github.com/extism/go-sdk"
	"github.com/tetratelabs/wazero"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

func plugin(t testing.TB, name string) []byte {
	t.Helper()
	b, err := sdkPlugin(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// outcome is what became of one job.
type outcome struct {
	ok   bool
	body string // the output, or what the plug-in said of its failure
}

// theirs runs a job as Extism's SDK does.
func theirs(t *testing.T, wasm []byte, function, in string, config map[string]string, hosts []string) outcome {
	t.Helper()
	p, err := extism.NewPlugin(t.Context(), extism.Manifest{Wasm: []extism.Wasm{extism.WasmData{Data: wasm}}, Config: config, AllowedHosts: hosts},
		extism.PluginConfig{EnableWasi: true, EnableHttpResponseHeaders: true, ModuleConfig: wazero.NewModuleConfig().WithSysWalltime().WithSysNanotime().WithSysNanosleep()}, nil)
	if err != nil {
		t.Fatalf("extism: %v", err)
	}
	defer func() { _ = p.Close(t.Context()) }()
	code, out, err := p.Call(function, []byte(in))
	switch {
	case err != nil:
		return outcome{body: err.Error()}
	case code != 0:
		return outcome{body: fmt.Sprintf("exit code %d", code)}
	}
	return outcome{ok: true, body: string(out)}
}

type tryout struct {
	name, function, in string
	abi                runtime.ABI
	config             map[string]string
	said               string // of a failure, what both say
	logged             string // by ours
}

// The plug-ins that come with Extism's SDK, in Rust, Go, TinyGo, Haskell and C, run here as they are, with the same outcome as
// under the SDK, on each level of isolation and again with what the job before left.
func TestPlugins(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		w.Header().Set("Content-Type", "text/x-test")
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
	}))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	for _, tt := range []tryout{
		{name: "alloc"},
		{name: "config", config: map[string]string{"thing": "hello"}},
		{name: "config"},
		{name: "count_vowels", in: "hello world"},
		{name: "count_vowels", in: strings.Repeat("aeiouy ", 1000)},
		{name: "count_vowels_std", in: "hello world"},
		{name: "exit", config: map[string]string{"code": "2"}, said: "2"},
		{name: "exit", config: map[string]string{"code": "0"}},
		{name: "fail", said: "Some error message"},
		{name: "fs", said: "exit code 1"},
		{name: "fs_std", said: "exit code 1"},
		{name: "lib"},
		{name: "read_write", function: "try_read", said: "Path not found in config"},
		{name: "hello"},
		{name: "hello_haskell", in: "name"},
		{name: "http_headers", in: fmt.Sprintf(`{"url":"%s/a","method":"GET","headers":{}}`, s.URL)},
		{name: "input_offset", in: "hello"},
		{name: "log", logged: "this is a warning log"},
		{name: "noop", abi: runtime.ABIExtism},
		{name: "println", in: "hello"},
		{name: "replace", in: "hello world"},
		{name: "sleep", config: map[string]string{"duration": "0"}},
		{name: "std_command", in: "hello"},
		{name: "var", in: "hello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wasm := plugin(t, tt.name)
			var buf syncBuffer
			e, err := runtime.New(runtime.Config{Log: slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug}))})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = e.Close(t.Context()) })
			i, err := e.Inspect(t.Context(), wasm)
			if err != nil {
				t.Fatal(err)
			}
			want := theirs(t, wasm, cmp.Or(tt.function, functionOf(i)), tt.in, tt.config, []string{"127.0.0.1"})
			if want.ok != (tt.said == "") || !strings.Contains(want.body, tt.said) {
				t.Fatalf("extism: %+v, want %q", want, tt.said)
			}
			for _, level := range []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFresh} {
				m, err := e.Load(t.Context(), runtime.ModuleConfig{Name: tt.name, Wasm: wasm, ABI: tt.abi, Function: tt.function, Config: maps.Clone(tt.config), Isolation: level, Allow: runtime.Allow{HTTP: []string{host}}})
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					r, err := m.Run(t.Context(), &job.Job{ID: "j", Route: "r", Attempt: 1, Body: []byte(tt.in)})
					got := outcome{ok: err == nil}
					if err != nil {
						got.body = err.Error()
					} else {
						got.body = string(r.Body)
					}
					if got.ok != want.ok || want.ok && got.body != want.body || !strings.Contains(got.body, tt.said) {
						t.Errorf("%s: %+v, extism: %+v", level, got, want)
					}
				}
			}
			if !strings.Contains(buf.String(), tt.logged) {
				t.Errorf("log %s", buf.String())
			}
		})
	}
}

// functionOf is the function that is called where there is one to choose from.
func functionOf(i *runtime.Inspection) string {
	only := ""
	for _, f := range i.Exports {
		if (f.Type == "() -> i32" || f.Type == "() -> ()") && !strings.HasPrefix(f.Name, "_") && !strings.HasPrefix(f.Name, "asyncify_") {
			only = f.Name
		}
	}
	return cmp.Or(only, "_start")
}

// Why the others cannot be loaded.
func TestPluginsRefused(t *testing.T) {
	t.Parallel()
	e, err := runtime.New(runtime.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close(t.Context()) })
	for name, why := range map[string]string{
		"host":           "a function of the plug-in's own host",
		"host_memory":    "host.to_upper",
		"host_multiple":  "exports several functions: name one of",
		"read_write":     "exports several functions: name one of try_read, try_write as function",
		"main":           "lib.capitalize",
		"nested.c.instr": "dylibso_observe",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := e.Load(t.Context(), runtime.ModuleConfig{Name: name, Wasm: plugin(t, name)})
			if err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("error %v, want %q", err, why)
			}
		})
	}
}

// A request to a host that is not granted is denied under both.
func TestPluginDenied(t *testing.T) {
	t.Parallel()
	e, err := runtime.New(runtime.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close(t.Context()) })
	wasm := plugin(t, "http")
	if got := theirs(t, wasm, "run_test", "", nil, nil); got.ok || !strings.Contains(got.body, "is not allowed") {
		t.Errorf("extism: %+v", got)
	}
	m, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "http", Wasm: wasm})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(t.Context(), &job.Job{ID: "j", Attempt: 1}); job.KindOf(err) != job.KindDenied {
		t.Errorf("error %v", err)
	}
}

// A plug-in that sleeps is woken by its deadline under both.
func TestPluginDeadline(t *testing.T) {
	t.Parallel()
	e, err := runtime.New(runtime.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close(t.Context()) })
	m, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "sleep", Wasm: plugin(t, "sleep"), Config: map[string]string{"duration": "60"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(t.Context(), &job.Job{ID: "j", Attempt: 1, Timeout: 50 * time.Millisecond}); job.KindOf(err) != job.KindTimeout {
		t.Errorf("error %v", err)
	}
}

// syncBuffer is a buffer that goroutines may share.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
