package transporttest

import (
	"context"
	"fmt"
	"sync"
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

// gaps is how many messages a transport knows to be lost.
func gaps(tr transport.Transport) int64 {
	if c, ok := tr.(transport.LossCounter); ok {
		return c.Losses().Gaps
	}
	return 0
}

// What the broker drops before it was read is counted, once by all together, and what is left is delivered; nothing more is counted
// later.
func (s *suite) trimmedBeforeRead(t *testing.T) {
	subject := s.NewSubject(t)
	var all []transport.Transport
	open := func() transport.Transport {
		tr := s.Open(t)
		t.Cleanup(func() { closeAll(t, tr) })
		all = append(all, tr)
		return tr
	}
	counted := func() (n int64) {
		for _, tr := range all {
			n += gaps(tr)
		}
		return n
	}
	work := func(tr transport.Transport, n int) {
		src := s.source(t, tr, subject)
		ackAll(fetch(t, src, n))
		closeAll(t, src)
	}
	first := open()
	prepare(t, first, transport.Subjects{Sources: []string{subject}})
	publish(t, first, numbered(subject, 5)...)
	work(first, 5)
	total := int64(0)
	for _, lost := range []int{20, 1, 300} {
		publish(t, first, numbered(subject, lost+10)...)
		s.Trim(t, subject, 10)
		total += int64(lost)
		second := open()
		prepare(t, second, transport.Subjects{Sources: []string{subject}})
		a, b := s.source(t, first, subject), s.source(t, second, subject)
		var mu sync.Mutex
		left := map[string]int{}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		var wg sync.WaitGroup
		for _, src := range []transport.Source{a, b} {
			wg.Go(func() {
				for ctx.Err() == nil {
					ds, err := src.Fetch(ctx, 4)
					if err != nil {
						pause(ctx, 20*time.Millisecond)
					}
					ackAll(ds)
					mu.Lock()
					for _, d := range ds {
						left[string(d.Message().Body)]++
					}
					if len(left) == 10 && counted() >= total {
						cancel()
					}
					mu.Unlock()
				}
			})
		}
		await(t, fmt.Sprintf("10 are delivered and %d counted", total), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(left) == 10 && counted() >= total
		})
		cancel()
		wg.Wait()
		for i := range 10 {
			if left[fmt.Sprint(lost+i)] == 0 {
				t.Errorf("%d was not delivered", lost+i)
			}
		}
		closeAll(t, a, b)
	}
	work(first, 0)
	publish(t, first, numbered(subject, 10)...)
	work(open(), 10)
	if n := counted(); n != total {
		t.Errorf("%d are counted, want %d", n, total)
	}
}
