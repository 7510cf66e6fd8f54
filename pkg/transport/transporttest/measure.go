package transporttest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// What the broker's own client relays arrives with its body and the id of what it answers; what is removed is gone, twice too.
func (s *suite) measured(t *testing.T) {
	tr, from, to := s.open(t), s.NewSubject(t), s.NewSubject(t)
	m, ok := tr.(transport.Measured)
	if !ok {
		t.Fatalf("%T offers nothing to measurements", tr)
	}
	subjects := transport.Subjects{Sources: []string{from}, Sinks: []string{to}}
	prepare(t, tr, subjects)
	const n = 150
	ms := numbered(from, n)
	for _, m := range ms {
		m.Header = job.Header{{Name: transport.HeaderJobID, Value: "id-" + string(m.Body)}}
	}
	publish(t, tr, ms...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tail, err := tr.Tail(ctx, to, true)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	took, err := m.Relay(ctx, from, to, n)
	if err != nil || took <= 0 {
		t.Fatalf("relay: took %v, %v", took, err)
	}
	seen := map[string]bool{}
	for len(seen) < n {
		out, err := tail.Next(ctx)
		if err != nil {
			t.Fatalf("%d of %d were relayed: %v", len(seen), n, err)
		}
		if id := out.Header.Get(transport.HeaderResultOf); id != "id-"+string(out.Body) {
			t.Errorf("%q came with the id %q", out.Body, id)
		}
		seen[string(out.Body)] = true
	}
	short, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if _, err := m.Relay(short, from, "", 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("relay without end: %v, want the end of its context", err)
	}
	for range 2 {
		if err := m.Remove(ctx, from, to); err != nil {
			t.Fatalf("remove: %v", err)
		}
	}
	prepare(t, tr, subjects)
	again, err := tr.Tail(ctx, to, true)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	short, stop = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if out, err := again.Next(short); err == nil {
		t.Errorf("%q is still there", out.Body)
	}
}
