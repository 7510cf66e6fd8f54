package transport_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func letterOf(t *testing.T, generation, maxBytes int) *transport.Message {
	t.Helper()
	orig := &transport.Message{Subject: "jobs.a", Key: []byte("k"), Body: []byte(strings.Repeat("body", 100)), Header: job.Header{
		{Name: "X-Own", Value: "one"}, {Name: "X-Own", Value: "two"}, {Name: "Nats-Msg-Id", Value: "foreign"}, {Name: "Wasm-Delay", Value: "1h"},
	}}
	j := &job.Job{ID: "id", Route: "jobs", Generation: generation, Attempt: 3, Source: "stream/7", Subject: orig.Subject}
	return transport.DeadLetter(j, &job.Outcome{Kind: job.KindTrap, Err: "it broke", Attempts: 3, FinishedAt: 1}, orig, "jobs_dlq", maxBytes)
}

// A redriven job is the same job in its next generation, with nothing on it that a broker would obey or that tells of its death.
func TestRedriven(t *testing.T) {
	t.Parallel()
	letter := letterOf(t, 1, 0)
	l, err := transport.ReadLetter(letter)
	want := &transport.Letter{
		ID: "id", Route: "jobs", Kind: "trap", Error: "it broke", At: "1970-01-01T00:00:00.001Z", Source: "stream/7", Attempts: 3, Generation: 1, Subject: "jobs.a",
	}
	if err != nil || !reflect.DeepEqual(l, want) {
		t.Errorf("read %+v, %v, want %+v", l, err, want)
	}
	m, err := transport.Redriven(letter, "jobs.a")
	if err != nil {
		t.Fatal(err)
	}
	again, err := transport.Redriven(letter, "jobs.a")
	if err != nil || !reflect.DeepEqual(m, again) {
		t.Errorf("the same letter gives another message: %v, %v", again, err)
	}
	for name, want := range map[string]string{
		"Wasm-Job-Id": "id", "Wasm-Moved": "2.0", "Wasm-Attempt": "0", "Nats-Msg-Id": "id/jobs/2.0/redrive", "X-Own": "one",
		"Wasm-Was-Nats-Msg-Id": "foreign", "Wasm-Delay": "", "Wasm-Dead-Kind": "", "Wasm-Dead-Generation": "", "reason_poisoned": "",
	} {
		if got := m.Header.Get(name); got != want {
			t.Errorf("header %s is %q, want %q", name, got, want)
		}
	}
	if m.Subject != "jobs.a" || string(m.Key) != "k" || len(m.Body) != 400 || len(m.Header.Values("X-Own")) != 2 {
		t.Errorf("sent is %+v", m)
	}
}

func TestNotRedriven(t *testing.T) {
	t.Parallel()
	if _, err := transport.Redriven(letterOf(t, 0, 700), "jobs"); err == nil || !strings.Contains(err.Error(), "was cut") {
		t.Errorf("a letter that was cut: %v", err)
	}
	for name, h := range map[string]job.Header{
		"foreign":           {{Name: "reason_poisoned", Value: "other tool"}},
		"no route":          {{Name: "Wasm-Job-Id", Value: "x"}, {Name: "Wasm-Dead-Kind", Value: "trap"}},
		"broken attempts":   {{Name: "Wasm-Job-Id", Value: "x"}, {Name: "Wasm-Dead-Route", Value: "r"}, {Name: "Wasm-Dead-Kind", Value: "trap"}, {Name: "Wasm-Dead-Attempts", Value: "many"}},
		"broken generation": {{Name: "Wasm-Job-Id", Value: "x"}, {Name: "Wasm-Dead-Route", Value: "r"}, {Name: "Wasm-Dead-Kind", Value: "trap"}, {Name: "Wasm-Dead-Generation", Value: "-1"}},
	} {
		if _, err := transport.Redriven(&transport.Message{Header: h}, "jobs"); !errors.Is(err, transport.ErrNotLetter) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Two generations of a job have results of their own ids.
func TestResultOfGeneration(t *testing.T) {
	t.Parallel()
	for generation, want := range []string{"id/jobs", "id/jobs/1"} {
		m := transport.Result(&job.Job{ID: "id", Route: "jobs", Generation: generation}, &job.Outcome{Kind: job.KindOK}, transport.EnvelopeNone, "results")
		if got := m.Header.Get(transport.HeaderMsgID); got != want {
			t.Errorf("generation %d: %q, want %q", generation, got, want)
		}
	}
}
