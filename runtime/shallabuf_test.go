package runtime_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// P-09: a core module of Shallabuf's kind is known by its exports; a string goes in, another comes out, and _start is not called.
func TestShallabuf(t *testing.T) {
	t.Parallel()
	onLevels(t, func(t *testing.T, e *runtime.Engine, level func(*runtime.ModuleConfig)) {
		m := load(t, e, "upper-shallabuf", level)
		if got, why := m.ABI(); got != runtime.ABIShallabuf || why == "" {
			t.Errorf("abi %q because %q", got, why)
		}
		long := strings.Repeat("long ", 30_000)
		tests := []struct{ in, out string }{
			{`{"text": "hello"}`, `{"result":"HELLO"}`},
			{`{"text":"` + long + `"}`, `{"result":"` + strings.ToUpper(long) + `"}`},
			{"#e", "#e"},
			{"#e" + strings.Repeat("x", 65470), "#e" + strings.Repeat("x", 65470)}, // with what is behind it a page
			{"#e" + strings.Repeat("x", 65471), "#e" + strings.Repeat("x", 65471)}, // and one byte more
			{"#a" + long, "#a" + long}, // an old allocator is asked for as much while the input is read
		}
		for range 2 {
			for _, tt := range tests {
				r, err := m.Run(t.Context(), newJob(tt.in))
				if err != nil {
					t.Fatalf("%.40q: %v", tt.in, err)
				}
				if string(r.Body) != tt.out {
					t.Fatalf("%.40q: result of %d bytes %.40q, want %d bytes %.40q", tt.in, len(r.Body), r.Body, len(tt.out), tt.out)
				}
			}
		}
	})
}

// P-09, P-07: whatever a module does, its job ends, and the next finds it as it was.
func TestShallabufVerdicts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in string
		kind     job.Kind
		text     string
	}{
		{"nothing", "", job.KindFailed, "no text in the input"},
		{"no json", "#0", job.KindFailed, "no text in the input"},
		{"a NUL", "{\"text\":\"\x00\"}", job.KindInvalid, "byte 9 of the body is a NUL"},
		{"a trap", "#t", job.KindTrap, "unreachable"},
		{"result out of bounds", "#o", job.KindTrap, "result out of bounds"},
		{"result at the end", "#m", job.KindTrap, "result out of bounds"},
		{"result without an end", "#n", job.KindTrap, "result out of bounds"},
		{"long result", "#l", job.KindLimit, "limits.output"},
		{"long input", strings.Repeat("x", 8<<20), job.KindLimit, "no room for a body of 8388608 bytes"},
	}
	e, _ := open(t)
	m := load(t, e, "upper-shallabuf", func(c *runtime.ModuleConfig) { c.Limits.Memory = 8 << 20 })
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := m.Run(t.Context(), newJob(tt.in))
			wantKind(t, err, tt.kind, tt.text)
			if r, err := m.Run(t.Context(), newJob("#c")); err != nil || string(r.Body) != "1" {
				t.Errorf("the next job is number %v, %v", r, err)
			}
		})
	}
	_, err := m.Run(t.Context(), newJob("#l"))
	if !errors.Is(err, runtime.ErrOutput) {
		t.Errorf("error %v is not ErrOutput", err)
	}
	m = load(t, e, "upper-shallabuf", func(c *runtime.ModuleConfig) { c.Isolation = runtime.IsolationReuse })
	for _, want := range []string{"1", "2"} {
		if r, err := m.Run(t.Context(), newJob("#c")); err != nil || string(r.Body) != want {
			t.Errorf("reused: number %v, %v; want %s", r, err, want)
		}
	}
}

// FuzzShallabuf passes any body to a module that looks for strings in it.
func FuzzShallabuf(f *testing.F) {
	for _, s := range []string{"", "#", "#t", "#o", "#m", "#n", "#l", "#e", `{"text":"x"}`, `{"text":"`, "\x00", `"text"`} {
		f.Add([]byte(s))
	}
	e, _ := open(f)
	m := load(f, e, "upper-shallabuf", func(c *runtime.ModuleConfig) { c.Limits = small() })
	f.Fuzz(func(t *testing.T, in []byte) {
		_, err := m.Run(t.Context(), newJob(string(in)))
		if job.KindOf(err) != job.KindInvalid {
			checkGuestsFault(t, err)
		}
	})
}
