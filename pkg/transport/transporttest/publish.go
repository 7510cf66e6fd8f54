package transporttest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func (s *suite) publishConcurrently(t *testing.T) {
	tr, subject := s.jobs(t)
	const writers, each = 20, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				m := &transport.Message{Subject: subject, Body: fmt.Appendf(nil, "%d/%d", w, i)}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				if err := tr.Publisher().Publish(ctx, m); err != nil {
					t.Errorf("publish: %v", err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	src := s.source(t, tr, subject)
	var got []transport.Delivery
	for len(got) < writers*each {
		ds := fetch(t, src, min(50, writers*each-len(got)))
		ackAll(ds)
		got = append(got, ds...)
	}
	if b := bodies(got); len(b) != writers*each {
		t.Errorf("%d different messages came, want %d", len(b), writers*each)
	}
}

// What one publisher writes with one key is read in that order, by calls in a row and within one call.
func (s *suite) orderWithinKey(t *testing.T) {
	tr, subject := s.jobs(t)
	const keys, each = 4, 50
	var wg sync.WaitGroup
	for k := range keys {
		wg.Go(func() {
			for i := 0; i < each; i += 5 {
				ms := make([]*transport.Message, 5)
				for n := range ms {
					ms[n] = &transport.Message{Subject: subject, Key: fmt.Append(nil, k), Body: fmt.Appendf(nil, "%d/%d", k, i+n)}
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				if err := tr.Publisher().Publish(ctx, ms...); err != nil {
					t.Errorf("publish: %v", err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	next := map[int]int{}
	ds := fetch(t, s.source(t, tr, subject), keys*each)
	for _, d := range ds {
		var k, i int
		if _, err := fmt.Sscanf(string(d.Message().Body), "%d/%d", &k, &i); err != nil {
			t.Fatal(err)
		}
		if i != next[k] {
			t.Errorf("key %d: number %d came, want %d", k, i, next[k])
		}
		next[k] = i + 1
	}
	ackAll(ds)
}

// What is too large is refused by name, and what is just not is taken.
func (s *suite) tooLarge(t *testing.T) {
	tr, subject := s.jobs(t)
	limit := tr.Publisher().MaxBytes()
	if limit == 0 || limit > 64<<20 {
		return // no limit, or one that no test machine should fill
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	large := &transport.Message{Subject: subject, Body: make([]byte, limit+1)}
	if err := tr.Publisher().Publish(ctx, large); !errors.Is(err, transport.ErrTooLarge) {
		t.Errorf("%d bytes where %d are taken: %v, want ErrTooLarge", large.Size(), limit, err)
	}
	fits := &transport.Message{Subject: subject}
	for i := range 20 {
		fits.Header.Add(fmt.Sprintf("X-Header-%d", i), "value")
	}
	fits.Body = make([]byte, limit-fits.Size())
	publish(t, tr, fits)
	d := fetch(t, s.source(t, tr, subject), 1)[0]
	if got := len(d.Message().Body); got != len(fits.Body) {
		t.Errorf("a body of %d bytes came, want %d", got, len(fits.Body))
	}
	d.Ack()
}

func (s *suite) illegalSubject(t *testing.T) {
	tr := s.open(t)
	for _, subject := range []string{"", "two words", "line\r\nbreak"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := tr.Publisher().Publish(ctx, &transport.Message{Subject: subject, Body: []byte("x")})
		cancel()
		if !errors.Is(err, transport.ErrRejected) {
			t.Errorf("publish to %q: %v, want ErrRejected", subject, err)
		}
	}
}

func next(t testing.TB, tail transport.Tail) *transport.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := tail.Next(ctx)
	if err != nil {
		t.Fatalf("tail: %v", err)
	}
	return m
}

func (s *suite) tail(t testing.TB, tr transport.Transport, subject string, fromStart bool) transport.Tail {
	t.Helper()
	var tail transport.Tail
	persist(t, "tail "+subject, func(ctx context.Context) (err error) {
		tail, err = tr.Tail(ctx, subject, fromStart)
		return err
	})
	t.Cleanup(func() {
		if err := tail.Close(); err != nil {
			t.Errorf("close tail: %v", err)
		}
	})
	return tail
}

// An observer sees what was written before and what is written after, and so does a second one: it takes nothing away.
func (s *suite) tailFromStart(t *testing.T) {
	tr, subject := s.open(t), s.NewSubject(t)
	prepare(t, tr, transport.Subjects{Sinks: []string{subject}})
	ms := numbered(subject, 6)
	for _, m := range ms {
		m.Key = []byte("one partition")
		m.Header.Add("X-Own", "kept")
	}
	publish(t, tr, ms[:3]...)
	first, second := s.tail(t, tr, subject, true), s.tail(t, s.open(t), subject, true)
	publish(t, tr, ms[3:]...)
	for _, tail := range []transport.Tail{first, second} {
		for i, want := range ms {
			got := next(t, tail)
			if string(got.Body) != string(want.Body) || got.Subject != subject || got.Header.Get("X-Own") != "kept" {
				t.Errorf("message %d: got %q on %q with %v, want %q", i, got.Body, got.Subject, got.Header, want.Body)
			}
		}
	}
}

// An observer that begins now sees everything that is written once Tail has returned, and nothing from before.
func (s *suite) tailFromNow(t *testing.T) {
	tr, subject := s.open(t), s.NewSubject(t)
	prepare(t, tr, transport.Subjects{Sinks: []string{subject}})
	ms := numbered(subject, 4)
	publish(t, tr, ms[:2]...)
	tail := s.tail(t, tr, subject, false)
	publish(t, s.open(t), ms[2:]...)
	got := map[string]bool{}
	for range 2 {
		got[string(next(t, tail).Body)] = true
	}
	if !got["2"] || !got["3"] {
		t.Errorf("got %v, want 2 and 3", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if m, err := tail.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next when there is nothing: %v, %v; want the context's error", m, err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := tail.Next(context.Background())
		ended <- err
	}()
	if err := tail.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, transport.ErrClosed) {
			t.Errorf("Next after Close: %v, want ErrClosed", err)
		}
	case <-time.After(patience):
		t.Error("Next does not end with Close")
	}
}

func (s *suite) wildcards(t *testing.T) {
	tr := s.open(t)
	if !tr.Features().Wildcards {
		return
	}
	base := s.NewSubject(t)
	pattern := base + ".*.in"
	prepare(t, tr, transport.Subjects{Sources: []string{pattern}})
	src := s.source(t, tr, pattern)
	want := map[string]bool{base + ".a.in": true, base + ".b.in": true, base + ".c.in": true}
	for subject := range want {
		publish(t, tr, &transport.Message{Subject: subject, Body: []byte(subject)})
	}
	for _, d := range fetch(t, src, len(want)) {
		if m := d.Message(); !want[m.Subject] || string(m.Body) != m.Subject {
			t.Errorf("got %q on %q", m.Body, m.Subject)
		}
		d.Ack()
	}
}

// Whatever headers the broker took with a job, it takes a dead letter of it: as it is or, where it refuses that for good, without the
// original headers.
func (s *suite) letterOfManyHeaders(t *testing.T) {
	tr, subject := s.jobs(t)
	_, dead := s.jobs(t)
	for _, size := range []int{60 << 10, 64200, 64800, 65200} {
		m := &transport.Message{Subject: subject, Body: []byte("body")}
		for i := 0; m.Header.Size()+110 < size; i++ {
			m.Header.Add(fmt.Sprint("X-", i), strings.Repeat("v", 100))
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := tr.Publisher().Publish(ctx, m); err != nil {
			if !transport.Permanent(err) {
				t.Errorf("headers of %d bytes: %v", size, err)
			}
			continue
		}
		j := &job.Job{ID: fmt.Sprint("job", size), Route: "jobs", Source: "somewhere", Header: m.Header}
		o := &job.Outcome{Kind: job.KindFailed, Err: strings.Repeat("e", 1<<10), Attempts: 1}
		err := tr.Publisher().Publish(ctx, transport.DeadLetter(j, o, m, dead, tr.Publisher().MaxBytes()))
		if err != nil && transport.Permanent(err) {
			err = tr.Publisher().Publish(ctx, transport.BareDeadLetter(j, o, m, dead, tr.Publisher().MaxBytes()))
		}
		if err != nil {
			t.Errorf("headers of %d bytes: no dead letter: %v", size, err)
		}
	}
}
