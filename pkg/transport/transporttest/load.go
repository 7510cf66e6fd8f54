package transporttest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A thousand messages that wait for another attempt do not keep the next from being delivered.
func (s *suite) manyDelayed(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 1100
	cfg := s.config(subject)
	cfg.Lease = 30 * time.Second
	src := s.sourceWith(t, tr, cfg)
	publish(t, tr, numbered(subject, n)...)
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, 128)
	for range n {
		d := fetch(t, src, 1)[0]
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			dec := transport.Decoder{Route: "route", Module: "module"}
			j := dec.Decode(d)
			j.Attempt = 1
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := d.Retry(ctx, 10*time.Minute, transport.Moved(d.Message(), j, transport.MoveRetry)); err != nil {
				t.Errorf("retry: %v", err)
			}
		})
	}
	wg.Wait()
	s.later(t, tr, src, subject)
}

// later checks that messages that are published now arrive.
func (s *suite) later(t *testing.T, tr transport.Transport, src transport.Source, subject string) {
	t.Helper()
	want := map[string]bool{}
	for i := range 50 {
		b := fmt.Sprintf("later %d", i)
		want[b] = true
		publish(t, tr, &transport.Message{Subject: subject, Body: []byte(b)})
	}
	start := time.Now()
	for len(want) > 0 {
		d := fetch(t, src, 1)[0]
		delete(want, string(d.Message().Body))
		d.Ack()
	}
	t.Logf("50 later messages came within %v", time.Since(start))
}

// A thousand messages that are worked on do not keep the next from being delivered.
func (s *suite) manyOut(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 1100
	cfg := s.config(subject)
	cfg.Limit, cfg.Lease = 1500, 120*time.Second
	src := s.sourceWith(t, tr, cfg)
	publish(t, tr, numbered(subject, n)...)
	out := fetch(t, src, n)
	s.later(t, tr, src, subject)
	ackAll(out)
}

// Who lost a message to another can do no harm to it any more. S-10
func (s *suite) staleOwner(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 4)...)
	a := s.source(t, tr, subject)
	if a.Lease() == 0 {
		return // an owner loses its messages with its partitions only
	}
	stale := fetch(t, a, 4)
	b := s.source(t, s.open(t), subject)
	held := fetch(t, b, 4)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.Extend(ctx, held); err != nil {
		t.Errorf("extend: %v", err)
	}
	if err := a.Extend(ctx, stale); err != nil {
		t.Errorf("extend what was taken by another: %v", err)
	}
	want := map[string]bool{}
	for i, d := range stale {
		if !d.Lost() {
			continue // the broker does not tell
		}
		body := string(d.Message().Body)
		switch i {
		case 0:
			d.Ack()
		case 1:
			d.Dead("stale")
		case 2:
			d.Release()
		case 3:
			j := decode(t, d)
			j.Attempt = 1
			if err := d.Retry(ctx, 0, transport.Moved(d.Message(), j, transport.MoveRetry)); err != nil {
				t.Errorf("retry of what is lost: %v", err)
			}
		}
		want[body] = true
	}
	closeAll(t, a)
	closeAll(t, b) // hands back all four
	if len(want) > 0 {
		for _, d := range held {
			want[string(d.Message().Body)] = true
		}
		s.comesBack(t, s.source(t, s.open(t), subject), want)
	}
}

// Text that looks like more headers stays text, or is refused for good.
func (s *suite) headerInjection(t *testing.T) {
	tr, subject := s.jobs(t)
	src := s.source(t, tr, subject)
	for _, h := range [][2]string{
		{"X-Value", "a\r\nX-Injected: 1\r\n\r\nbody"}, {"X-Name: 1\r\nX-Injected", "1"}, {"", "nameless"}, {"X-Bytes", "\x00\xff"},
	} {
		m := &transport.Message{Subject: subject, Body: []byte("body")}
		m.Header.Add(h[0], h[1])
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := tr.Publisher().Publish(ctx, m)
		cancel()
		if err != nil {
			if !transport.Permanent(err) {
				t.Errorf("header %q: %v, which is not permanent", h[0], err)
			}
			continue
		}
		d := fetch(t, src, 1)[0]
		if got := d.Message(); got.Header.Get("X-Injected") != "" || string(got.Body) != "body" {
			t.Errorf("header %q: %q came as %q with %v", h[0], h[1], got.Body, got.Header)
		}
		d.Ack()
	}
}

// Several sidecars start at once, and again.
func (s *suite) prepareTogether(t *testing.T) {
	subjects := transport.Subjects{Sources: []string{s.NewSubject(t)}, Sinks: []string{s.NewSubject(t), s.NewSubject(t)}}
	var wg sync.WaitGroup
	for range 3 {
		tr := s.open(t)
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for range 2 {
				if err := tr.Prepare(ctx, subjects); err != nil {
					t.Errorf("prepare: %v", err)
				}
			}
		})
	}
	wg.Wait()
	tr := s.open(t)
	publish(t, tr, numbered(subjects.Sources[0], 1)...)
	publish(t, tr, numbered(subjects.Sinks[0], 1)...)
	fetch(t, s.source(t, tr, subjects.Sources[0]), 1)[0].Ack()
}

// Close returns when its context ends, whatever is left undone.
func (s *suite) closeInTime(t *testing.T) {
	tr, subject := s.Open(t), s.NewSubject(t)
	prepare(t, tr, transport.Subjects{Sources: []string{subject}})
	publish(t, tr, numbered(subject, 2)...)
	src, err := tr.Source(t.Context(), s.config(subject))
	if err != nil {
		t.Fatal(err)
	}
	fetch(t, src, 2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	_ = src.Close(ctx) // may say that it could not do all
	_ = tr.Close(ctx)
	if took := time.Since(start); took > s.Slack {
		t.Errorf("close took %v although its context had ended", took)
	}
	if _, err := src.Fetch(t.Context(), 1); !errors.Is(err, transport.ErrClosed) {
		t.Errorf("fetch after Close: %v, want ErrClosed", err)
	}
	ds := fetch(t, s.source(t, s.open(t), subject), 2)
	ackAll(ds)
}

// One message of several that cannot be written is named, and the call does not hang.
func (s *suite) tooLargeAmongOthers(t *testing.T) {
	tr, subject := s.jobs(t)
	limit := tr.Publisher().MaxBytes()
	if limit == 0 || limit > 64<<20 {
		return
	}
	ms := numbered(subject, 3)
	ms[1].Body = make([]byte, limit+1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := tr.Publisher().Publish(ctx, ms...)
	if !errors.Is(err, transport.ErrTooLarge) || !strings.Contains(err.Error(), subject) {
		t.Errorf("publish: %v, want ErrTooLarge naming %s", err, subject)
	}
}
