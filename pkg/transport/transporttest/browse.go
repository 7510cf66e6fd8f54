package transporttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// browse reads all that a subject holds, by body.
func browse(t testing.TB, tr transport.Transport, subject string, since time.Time) map[string]*transport.Stored {
	t.Helper()
	out := map[string]*transport.Stored{}
	persist(t, "browse "+subject, func(ctx context.Context) error {
		b, err := tr.Browse(ctx, subject, since)
		if err != nil {
			return err
		}
		defer b.Close()
		clear(out)
		for {
			m, err := b.Next(ctx)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if out[string(m.Body)] != nil {
				t.Errorf("%q is shown twice", m.Body)
			}
			out[string(m.Body)] = m
		}
	})
	return out
}

// Browsing shows everything, headers and all, again and again; what is discarded, from the middle too, is shown no more, and the
// rest is.
func (s *suite) browseAndDiscard(t *testing.T) {
	tr, subject, other := s.open(t), s.NewSubject(t), s.NewSubject(t)
	prepare(t, tr, transport.Subjects{Sources: []string{other}, Sinks: []string{subject}})
	if got := browse(t, tr, subject, time.Time{}); len(got) != 0 {
		t.Fatalf("%d messages in an empty subject", len(got))
	}
	const n = 50
	ms := numbered(subject, n)
	for i, m := range ms {
		m.Header = job.Header{{Name: "X-Many", Value: "one"}, {Name: "X-Many", Value: fmt.Sprint(i)}}
		if i%2 == 0 {
			m.Key = fmt.Append(nil, "key ", i%4)
		}
	}
	ms[7].Body = []byte{0, 0xff, '\n', 0xfe}
	began := time.Now()
	publish(t, tr, ms...)
	for range 2 {
		got := browse(t, tr, subject, time.Time{})
		positions := map[string]bool{}
		for i, want := range ms {
			m := got[string(want.Body)]
			if m == nil {
				t.Fatalf("message %d is not shown; %d are", i, len(got))
			}
			if all := m.Header.Values("X-Many"); !slices.Equal(all, []string{"one", fmt.Sprint(i)}) || string(m.Key) != string(want.Key) {
				t.Errorf("message %d is shown with the headers %v and the key %q", i, all, m.Key)
			}
			if m.Subject != subject || m.Published.Before(began.Add(-time.Minute)) || m.Published.After(time.Now().Add(time.Minute)) {
				t.Errorf("message %d is shown at %q, published at %v", i, m.Subject, m.Published)
			}
			positions[m.Position] = true
		}
		if len(got) != n || len(positions) != n {
			t.Fatalf("%d messages at %d positions, want %d", len(got), len(positions), n)
		}
	}
	if got := browse(t, tr, subject, time.Now().Add(time.Hour)); len(got) != 0 {
		t.Errorf("%d messages from the future", len(got))
	}

	shown := browse(t, tr, subject, time.Time{})
	var gone []*transport.Stored
	for _, i := range []int{0, 7, 23, 24, n - 1} {
		gone = append(gone, shown[string(ms[i].Body)])
	}
	for range 2 { // what is gone already is no error
		persist(t, "discard", func(ctx context.Context) error { return tr.Discard(ctx, subject, gone...) })
	}
	left := browse(t, tr, subject, time.Time{})
	if len(left) != n-len(gone) {
		t.Errorf("%d messages are left of %d after %d were discarded", len(left), n, len(gone))
	}
	for _, m := range gone {
		if left[string(m.Body)] != nil {
			t.Errorf("%q was discarded and is shown", m.Body)
		}
	}
	publish(t, tr, &transport.Message{Subject: subject, Body: []byte("later")})
	if got := browse(t, tr, subject, time.Time{}); got["later"] == nil || len(got) != len(left)+1 {
		t.Errorf("%d messages after one more was published, want %d", len(got), len(left)+1)
	}
	if err := tr.Discard(t.Context(), subject, &transport.Stored{Position: "elsewhere/1"}); err == nil && s.OpenCuttable != nil {
		t.Error("a position of another subject was discarded")
	}
}
