package transporttest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// decode makes the job of a delivery, as the router does.
func decode(t testing.TB, d transport.Delivery) *job.Job {
	t.Helper()
	dec := transport.Decoder{Route: "route", Module: "module"}
	j := dec.Decode(d)
	if j.Invalid != nil {
		t.Fatalf("decode: %v", j.Invalid)
	}
	return j
}

// retry moves a delivery as the window does after an attempt.
func retry(t testing.TB, d transport.Delivery, after time.Duration) (j *job.Job, due time.Time) {
	t.Helper()
	j = decode(t, d)
	j.Attempt++
	moved := transport.Moved(d.Message(), j, transport.MoveRetry)
	persist(t, "retry", func(ctx context.Context) error {
		due = time.Now().Add(after) // each call begins the wait anew
		return d.Retry(ctx, after, moved)
	})
	return j, due
}

// arrives checks one moved message: there once, not too early, not too late, still the same job.
func (s *suite) arrives(t testing.TB, src transport.Source, j *job.Job, due time.Time) transport.Delivery {
	t.Helper()
	d := fetch(t, src, 1)[0]
	late := time.Since(due)
	t.Logf("came %v after it was due", late)
	if late < 0 {
		t.Errorf("came %v before it was due", -late)
	}
	if late > time.Second+s.Slack {
		t.Errorf("came %v after it was due", late)
	}
	got := decode(t, d)
	if got.ID != j.ID || got.Attempt != j.Attempt || !got.Moved || string(got.Body) != string(j.Body) {
		t.Errorf("came as job %q, attempt %d, moved %v, body %q; want job %q, attempt %d, moved, body %q",
			got.ID, got.Attempt, got.Moved, got.Body, j.ID, j.Attempt, j.Body)
	}
	return d
}

// A retry comes when it is due and replaces the message, which frees its slot and blocks nobody.
func (s *suite) retryWhenDue(t *testing.T) {
	for _, after := range []time.Duration{0, 300 * time.Millisecond, 1200 * time.Millisecond, 3 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			t.Parallel()
			tr, subject := s.jobs(t)
			m := numbered(subject, 1)[0]
			m.Key = []byte("key")
			m.Header.Add("X-Own", "kept")
			m.Header.Add(transport.HeaderBackoff, "2s")
			m.Header.Add(transport.HeaderMaxBackoff, "1h")
			publish(t, tr, m)
			src := s.source(t, tr, subject)
			j, due := retry(t, fetch(t, src, 1)[0], after)
			if after > time.Second {
				s.RawPublish(t, subject, []byte("behind"))
				d := fetch(t, src, 1)[0]
				if string(d.Message().Body) != "behind" {
					t.Errorf("%q came, want what stands behind the retry", d.Message().Body)
				}
				d.Ack()
			}
			d := s.arrives(t, src, j, due)
			if got := d.Message().Header.Get("X-Own"); got != "kept" {
				t.Errorf("header X-Own is %q", got)
			}
			got := decode(t, d)
			if got.Key != "key" {
				t.Errorf("key is %q", got.Key)
			}
			if got.Backoff != 2*time.Second || got.MaxBackoff != time.Hour {
				t.Errorf("its own backoff is %s, at most %s; want 2s, at most 1h", got.Backoff, got.MaxBackoff)
			}
			d.Ack()
			quiet(t, src, s.settled(), "moved and acknowledged")
			closeAll(t, src)
			quiet(t, s.source(t, tr, subject), s.settled(), "moved and acknowledged")
		})
	}
}

// A broker obeys what the producer wrote for it: written again, these headers would lose or refuse the message.
func (s *suite) retryForeignHeaders(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 1)...)
	src := s.source(t, tr, subject)
	d := fetch(t, src, 1)[0]
	orig := *d.Message()
	orig.Header = orig.Header.Clone(4)
	orig.Header.Add("Nats-Msg-Id", "producer-1")
	orig.Header.Add("Nats-Expected-Stream", "ANOTHER")
	orig.Header.Add("Nats-Expected-Last-Sequence", "99999")
	orig.Header.Add("Nats-Rollup", "all")
	j := decode(t, d)
	j.Attempt = 1
	moved := transport.Moved(&orig, j, transport.MoveRetry)
	var due time.Time
	persist(t, "retry", func(ctx context.Context) error {
		due = time.Now().Add(500 * time.Millisecond)
		return d.Retry(ctx, 500*time.Millisecond, moved)
	})
	got := s.arrives(t, src, j, due)
	if v := got.Message().Header.Get("Wasm-Was-Nats-Expected-Stream"); v != "ANOTHER" {
		t.Errorf("header Wasm-Was-Nats-Expected-Stream is %q", v)
	}
	got.Ack()
	quiet(t, src, s.settled(), "moved and acknowledged")
}

// The id that a producer gave for the broker's deduplication does not swallow the retries of its job.
func (s *suite) retryMsgID(t *testing.T) {
	tr, subject := s.jobs(t)
	m := numbered(subject, 1)[0]
	m.Header.Add(transport.HeaderMsgID, subject+"-producer-1")
	publish(t, tr, m)
	src := s.source(t, tr, subject)
	d := fetch(t, src, 1)[0]
	if got := decode(t, d).ID; got != subject+"-producer-1" {
		t.Errorf("job id is %q", got)
	}
	for range 3 {
		j, due := retry(t, d, 100*time.Millisecond)
		d = s.arrives(t, src, j, due)
	}
	d.Ack()
	quiet(t, src, s.settled(), "moved and acknowledged")
}

// A crash between a move and the settlement repeats the move: one delivery too many at most, none too few.
func (s *suite) sameMoveTwice(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 1)...)
	src := s.source(t, tr, subject)
	d := fetch(t, src, 1)[0]
	j := decode(t, d)
	j.Attempt = 1
	moved := transport.Moved(d.Message(), j, transport.MoveRetry)
	publish(t, tr, moved)
	persist(t, "retry", func(ctx context.Context) error { return d.Retry(ctx, 200*time.Millisecond, moved) })
	ds := fetch(t, src, 1)
	ackAll(ds)
	ds = slices.Concat(ds, during(t, src, time.Second+s.settled()))
	if len(ds) > 2 {
		t.Errorf("the message came %d times after two moves", len(ds))
	}
	for _, d := range ds {
		if got := decode(t, d); got.ID != j.ID || got.Attempt != 1 {
			t.Errorf("came as job %q, attempt %d", got.ID, got.Attempt)
		}
	}
}

// A moved message that is not yet due is moved again, with the same attempt; the broker must not take that for a repeat.
func (s *suite) moveOfAMove(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 1)...)
	src := s.source(t, tr, subject)
	j, due := retry(t, fetch(t, src, 1)[0], 100*time.Millisecond)
	d := s.arrives(t, src, j, due)
	for range 2 {
		moved := transport.Moved(d.Message(), decode(t, d), transport.MoveRetry)
		persist(t, "retry", func(ctx context.Context) error {
			due = time.Now().Add(200 * time.Millisecond)
			return d.Retry(ctx, 200*time.Millisecond, moved)
		})
		d = s.arrives(t, src, j, due)
	}
	d.Ack()
}

// A move that cannot be written leaves the message as it is.
func (s *suite) retryFails(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 1)...)
	src := s.source(t, tr, subject)
	d := fetch(t, src, 1)[0]
	j := decode(t, d)
	j.Attempt = 1
	moved := transport.Moved(d.Message(), j, transport.MoveRetry)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Retry(ctx, time.Minute, moved); err == nil {
		t.Fatal("retry succeeded although its context had ended")
	}
	j2, due := retry(t, d, 100*time.Millisecond)
	s.arrives(t, src, j2, due).Ack()
}

// A message that is as large as the broker takes has no room for what a move adds. It is moved all the same, or kept.
func (s *suite) retryOfLargest(t *testing.T) {
	tr, subject := s.jobs(t)
	limit := tr.Publisher().MaxBytes()
	if limit == 0 || limit > 64<<20 {
		return
	}
	m := &transport.Message{Subject: subject}
	m.Body = make([]byte, limit-m.Size())
	publish(t, tr, m)
	src := s.source(t, tr, subject)
	d := fetch(t, src, 1)[0]
	j := decode(t, d)
	j.Attempt = 1
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := d.Retry(ctx, 1500*time.Millisecond, transport.Moved(d.Message(), j, transport.MoveRetry)); err == nil {
		d = fetch(t, src, 1)[0]
		if got := decode(t, d); got.ID != j.ID || len(got.Body) != len(m.Body) {
			t.Errorf("came as job %q with %d bytes, want %q with %d", got.ID, len(got.Body), j.ID, len(m.Body))
		}
	} else if !errors.Is(err, transport.ErrTooLarge) {
		t.Errorf("retry: %v, want ErrTooLarge", err)
	}
	d.Ack()
	quiet(t, src, s.settled(), "acknowledged")
}
