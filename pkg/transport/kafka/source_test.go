package kafka

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// crash ends a source as kill -9 does: nothing more is written, no farewell to the group.
func crash(s *source) {
	s.closing.Store(true)
	s.cancel()
	s.wg.Wait()
	s.mu.Lock()
	for _, p := range s.parts {
		p.kill()
	}
	s.mu.Unlock()
	s.kill()
	s.cl.CloseAllowingRebalance()
	s.closeOnce.Do(func() {})
	s.t.forget(s)
}

// D-15: only what is settled without a gap is committed, whatever else is done.
func TestSettledOutOfOrderThenCrash(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	prepare(t, tr, topic)
	publish(t, tr, topic, numbered(10)...)
	s := openSource(t, tr, topic)
	ds := fetch(t, s, 10)
	for i, d := range ds {
		if body(d) != fmt.Sprint(i) {
			t.Fatalf("delivery %d is %q", i, body(d))
		}
		if d.Redelivered() {
			t.Errorf("delivery %d is marked as redelivered at first sight", i)
		}
		if i != 3 && i != 7 {
			d.Ack()
		}
	}
	await(t, "commit of the watermark", func() bool { o, _ := offset(t, tr, topic); return o == 3 })
	ds[7].Ack()
	crash(s)
	ds[3].Ack() // too late, and without effect
	if !ds[3].Lost() {
		t.Error("a delivery of a dead source is not lost")
	}

	s = openSource(t, tr, topic)
	for i, d := range fetch(t, s, 7) {
		if body(d) != fmt.Sprint(i+3) {
			t.Errorf("after the crash delivery %d is %q, want %d", i, body(d), i+3)
		}
		if !d.Redelivered() {
			t.Errorf("%s was handed out before and is not marked so", body(d))
		}
		d.Ack()
	}
	publish(t, tr, topic, "new")
	closeSource(t, s)
	if o, m := offset(t, tr, topic); o != 10 {
		t.Errorf("committed %d (%s) after close, want 10", o, m)
	}
}

// A clean restart leaves nothing that may have been delivered before.
func TestCleanRestartIsNoRedelivery(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	prepare(t, tr, topic)
	publish(t, tr, topic, numbered(5)...)
	s := openSource(t, tr, topic)
	for _, d := range fetch(t, s, 5) {
		d.Ack()
	}
	closeSource(t, s)
	publish(t, tr, topic, "after")
	s = openSource(t, tr, topic)
	d := fetch(t, s, 1)[0]
	if body(d) != "after" || d.Redelivered() {
		t.Errorf("after a clean restart: %q, redelivered %v", body(d), d.Redelivered())
	}
	d.Ack()
}

// D-15: one slow job does not delay those behind it on its partition.
func TestHeadOfLine(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	prepare(t, tr, topic)
	publish(t, tr, topic, numbered(101)...)
	s := openSource(t, tr, topic)
	slow := fetch(t, s, 1)[0]
	began := time.Now()
	for _, d := range fetch(t, s, 100) {
		d.Ack()
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("100 jobs behind a slow one took %v", took)
	}
	none(t, s, 300*time.Millisecond, "all is handed out")
	slow.Ack()
	await(t, "commit of all", func() bool { o, _ := offset(t, tr, topic); return o == 101 })
}

// Released messages come again, first, marked, and only once.
func TestRelease(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	prepare(t, tr, topic)
	publish(t, tr, topic, numbered(4)...)
	s := openSource(t, tr, topic)
	ds := fetch(t, s, 3)
	ds[1].Release()
	d := fetch(t, s, 1)[0]
	if body(d) != "1" || !d.Redelivered() || d.Position() != ds[1].Position() {
		t.Fatalf("after a release: %q, redelivered %v, %s", body(d), d.Redelivered(), d.Position())
	}
	if last := fetch(t, s, 1)[0]; body(last) != "3" {
		t.Errorf("then came %q", body(last))
	}
	ds[0].Ack()
	ds[2].Ack()
	d.Release() // and closed before it is taken: uncommitted
	closeSource(t, s)
	if o, _ := offset(t, tr, topic); o != 1 {
		t.Errorf("committed %d, want 1", o)
	}
}

// What is handed out above the watermark is bounded, and flows again when the watermark moves.
func TestSpanIsBounded(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	cfg.MaxSpan = 1000
	tr := open(t, cfg)
	prepare(t, tr, topic)
	publish(t, tr, topic, numbered(17000)...)
	s := openSource(t, tr, topic)
	ds := fetch(t, s, 1000)
	for _, d := range ds[1:] {
		d.Ack()
	}
	none(t, s, 500*time.Millisecond, "the span is full")
	if n := queued(s); n > prefetch+pollMax {
		t.Errorf("%d records are queued", n)
	}
	ds[0].Ack()
	for range 16 {
		for _, d := range fetch(t, s, 1000) {
			d.Ack()
		}
	}
	closeSource(t, s)
	if o, _ := offset(t, tr, topic); o != 17000 {
		t.Errorf("committed %d, want 17000", o)
	}
}

func queued(s *source) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.parts {
		n += p.queued()
	}
	return n
}

func TestFetchEnds(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	prepare(t, tr, topic)
	s := openSource(t, tr, topic)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if ds, err := s.Fetch(ctx, 1); len(ds) > 0 || err == nil {
		t.Errorf("fetch from nothing: %v, %v", ds, err)
	}
	closeSource(t, s)
	if _, err := s.Fetch(t.Context(), 1); !isClosed(err) {
		t.Errorf("fetch after close: %v", err)
	}
	var _ transport.Source = s
}

// A topic that does not exist is named, again and again but not in a hurry, and consumed once it is made.
func TestSourceOfMissingTopic(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	s := openSource(t, tr, topic)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	errs := 0
	for began := time.Now(); errs == 0 || time.Since(began) < 3*time.Second; errs++ {
		if _, err := s.Fetch(ctx, 1); err == nil || !strings.Contains(err.Error(), topic) {
			t.Fatalf("fetch: %v", err)
		}
	}
	if errs > 30 {
		t.Errorf("failed %d times", errs)
	}
	prepare(t, tr, topic)
	publish(t, tr, topic, "x")
	fetch(t, s, 1)[0].Ack()
}
