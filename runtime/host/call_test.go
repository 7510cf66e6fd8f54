package host

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

func newCall(j *job.Job) (*Call, *bytes.Buffer) {
	var b bytes.Buffer
	g := &Grants{Module: "m", Output: 10, Log: 1 << 20, LogLines: 100, Logger: slog.New(slog.NewTextHandler(&b, nil))}
	c := NewCall(g, j)
	c.Begin()
	return c, &b
}

func TestField(t *testing.T) {
	t.Parallel()
	j := &job.Job{ID: "the id", Route: "r", Attempt: 2, CorrelationID: "c", Header: job.Header{
		{Name: "wasm-job-id", Value: "forged"}, {Name: "Wasm-Key", Value: "of the message"}, {Name: "X-A", Value: "1"}, {Name: "x-a", Value: "2"},
	}}
	for _, tt := range []struct {
		name, want string
		ok         bool
	}{
		{"Wasm-Job-Id", "the id", true}, {"WASM-JOB-ID", "the id", true}, {"Wasm-Attempt", "2", true}, {"Wasm-Route", "r", true},
		{"correlation-id", "c", true}, {"Wasm-Key", "of the message", true}, {"Wasm-Subject", "", false}, {"x-a", "1", true}, {"none", "", false}, {"", "", false},
	} {
		if got, ok := Field(j, tt.name); got != tt.want || ok != tt.ok {
			t.Errorf("%q: %q, %t; want %q, %t", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

// However a program cuts its output into writes, the lines are the same, and none is longer than maxLine.
func TestLineWriter(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLine)
	text := "one\r\n\n  \ntwo\n" + long + "\n" + long + "y\nunfinished"
	want := []string{"one", "two", long, long, "y", "unfinished"}
	for _, step := range []int{1, 2, 7, 1000, len(text)} {
		c, b := newCall(&job.Job{ID: "j"})
		w := c.Stderr()
		for at := 0; at < len(text); at += step {
			if n, err := w.Write([]byte(text[at:min(at+step, len(text))])); err != nil || n == 0 {
				t.Fatal(n, err)
			}
		}
		c.End()
		var got []string
		for line := range strings.Lines(b.String()) {
			_, s, _ := strings.Cut(line, "text=")
			got = append(got, strings.TrimSpace(s))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("in steps of %d: %.200q, want %.200q", step, got, want)
		}
		if c.LastWords() != "unfinished" {
			t.Errorf("last words %q", c.LastWords())
		}
	}
}

func TestAppend(t *testing.T) {
	t.Parallel()
	c, _ := newCall(&job.Job{ID: "j"})
	if err := c.Append([]byte("0123456789")); err != nil {
		t.Error(err)
	}
	var f *Fault
	if err := c.Append([]byte("x")); !errors.As(err, &f) || f.Kind != job.KindLimit {
		t.Errorf("error %v", err)
	}
	if string(c.Output()) != "0123456789" {
		t.Errorf("output %q", c.Output())
	}
	defer func() {
		if f, ok := recover().(*Fault); !ok || f.Kind != job.KindLimit {
			t.Errorf("write over the limit panicked with %v", f)
		}
	}()
	_, _ = c.Write([]byte("x"))
}

func TestParseHeaders(t *testing.T) {
	t.Parallel()
	h, err := parseHeaders("A: 1\r\na:2\n\nHost: evil\nProxy-Authorization: x\nTransfer-Encoding: chunked\nEmpty:\nTab: a\tb")
	if err != nil || fmt.Sprint(h) != "map[A:[1 2] Empty:[] Tab:[a\tb]]" {
		t.Errorf("%v, %v", h, err)
	}
	for _, bad := range []string{"x", ": x", "a b: c", "a: \x01", "ü: x", "a\x00: x", strings.Repeat("a: b\n", 20_000)} {
		if _, err := parseHeaders(bad); err == nil {
			t.Errorf("%.20q was taken", bad)
		}
	}
}

func TestLastWords(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ stderr, want string }{
		{"", ""},
		{"first\n\nlast\n", "last"},
		{"starting\npanic: no customer\n\ngoroutine 1 [running]:\nmain.main()\n\t/main.go:4 +0x29\n", "panic: no customer"},
		{"fatal error: out of memory\nruntime stack:\n", "fatal error: out of memory"},
		{"thread 'main' panicked at 'no customer', up.rs:2:296\nnote: run with `RUST_BACKTRACE=1`\n", "thread 'main' panicked at 'no customer', up.rs:2:296"},
		{"thread 'main' panicked at src/main.rs:2:5:\nno customer\nnote: run with `RUST_BACKTRACE=1`\n", "thread 'main' panicked at src/main.rs:2:5: no customer"},
		{"thread 'main' panicked at src/main.rs:2:5:", "thread 'main' panicked at src/main.rs:2:5:"},
		{"do not panic: it works\nbye\n", "bye"},
	} {
		c := NewCall(&Grants{Log: 1 << 16, LogLines: 100, Logger: slog.New(slog.DiscardHandler)}, &job.Job{})
		if _, err := c.Stderr().Write([]byte(tt.stderr)); err != nil {
			t.Fatal(err)
		}
		c.End()
		if got := c.LastWords(); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.stderr, got, tt.want)
		}
	}
}
