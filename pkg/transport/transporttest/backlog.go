package transporttest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A subject's depth is what was published to it, whoever reads it, until it is discarded; one that does not exist has none.
func (s *suite) depth(t *testing.T) {
	tr, subject, other := s.open(t), s.NewSubject(t), s.NewSubject(t)
	c, ok := tr.(transport.Counter)
	if !ok {
		t.Fatalf("%T counts nothing", tr)
	}
	prepare(t, tr, transport.Subjects{Sinks: []string{subject, other}})
	count := func(subject string) (n int64) {
		t.Helper()
		persist(t, "count "+subject, func(ctx context.Context) (err error) {
			n, err = c.Depth(ctx, subject)
			return err
		})
		return n
	}
	if n := count(s.NewSubject(t)); n != 0 {
		t.Errorf("%d messages in a subject that does not exist", n)
	}
	for _, want := range []int64{0, 30, 60} {
		if n := count(subject); n != want {
			t.Errorf("%d messages, want %d", n, want)
		}
		if want < 60 {
			publish(t, tr, numbered(subject, 30)...)
			publish(t, tr, &transport.Message{Subject: other, Body: fmt.Append(nil, want)})
		}
	}
	var all []*transport.Stored
	for _, m := range browse(t, tr, other, time.Time{}) {
		all = append(all, m)
	}
	persist(t, "discard", func(ctx context.Context) error { return tr.Discard(ctx, other, all...) })
	if n := count(other); n != 0 && !s.Watermark {
		t.Errorf("%d messages after all were discarded", n)
	}
}
