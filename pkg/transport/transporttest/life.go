package transporttest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Whatever a transport starts has ended when its Close returns, or shortly after.
func (s *suite) noGoroutineLeft(t *testing.T) {
	subject := s.NewSubject(t)
	warm := s.open(t) // so that what the process starts once is there already
	prepare(t, warm, transport.Subjects{Sources: []string{subject}})
	publish(t, warm, numbered(subject, 1)...)
	before := goleak.IgnoreCurrent()
	t.Run("Use", func(t *testing.T) {
		tr := s.open(t)
		publish(t, tr, numbered(subject, 10)...)
		src := s.source(t, tr, subject)
		ds := fetch(t, src, 11)
		ackAll(ds[:5])
		retry(t, ds[5], 50*time.Millisecond)
		if err := src.Extend(t.Context(), ds[6:]); err != nil {
			t.Errorf("extend: %v", err)
		}
		tail := s.tail(t, tr, subject, true)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, _ = tail.Next(ctx) // whether there is something to see is the broker's affair
	})
	var leak error
	for start := time.Now(); time.Since(start) < patience/2; {
		if leak = goleak.Find(before); leak == nil {
			return
		}
	}
	t.Error(leak)
}

func (s *suite) closeWakesFetch(t *testing.T) {
	tr, subject := s.jobs(t)
	src := s.source(t, tr, subject)
	ended := make(chan error, 1)
	go func() {
		for {
			ds, err := src.Fetch(context.Background(), 1)
			if errors.Is(err, transport.ErrClosed) || len(ds) > 0 {
				ended <- err
				return
			}
		}
	}()
	pause(t.Context(), 50*time.Millisecond)
	closeAll(t, src)
	select {
	case err := <-ended:
		if !errors.Is(err, transport.ErrClosed) {
			t.Errorf("fetch: %v, want ErrClosed", err)
		}
	case <-time.After(patience):
		t.Fatal("fetch does not end with Close")
	}
}

func (s *suite) closeTwice(t *testing.T) {
	tr, subject := s.jobs(t)
	src := s.source(t, tr, subject)
	publish(t, tr, numbered(subject, 2)...)
	ds := fetch(t, src, 2)
	ds[0].Ack()
	closeAll(t, src, src)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if ds, err := src.Fetch(ctx, 1); !errors.Is(err, transport.ErrClosed) || len(ds) > 0 {
		t.Errorf("fetch after Close: %d deliveries, %v; want ErrClosed", len(ds), err)
	}
	ds[1].Ack() // too late, and without effect
	closeAll(t, tr, tr)
	if err := tr.Publisher().Publish(ctx, numbered(subject, 1)...); err == nil {
		t.Error("publish after Close succeeded")
	}
	if err := tr.Ping(ctx); err == nil {
		t.Error("ping after Close succeeded")
	}
	s.comesBack(t, s.source(t, s.open(t), subject), map[string]bool{string(ds[1].Message().Body): true})
}

func (s *suite) fetchEndsWithContext(t *testing.T) {
	tr, subject := s.jobs(t)
	src := s.source(t, tr, subject)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	for {
		ds, err := src.Fetch(ctx, 1)
		if len(ds) > 0 {
			t.Fatal("a message came from an empty subject")
		}
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if time.Since(start) > s.Slack {
			t.Fatalf("fetch goes on %v after its context ended: %v", time.Since(start), err)
		}
	}
	publish(t, tr, numbered(subject, 1)...)
	fetch(t, src, 1)[0].Ack() // the source is none the worse
}

func (s *suite) ping(t *testing.T) {
	tr := s.open(t)
	persist(t, "ping", tr.Ping)
	if tr.Name() == "" {
		t.Error("the transport has no name")
	}
}

// A consumer group that somebody deleted is made again, and what comes later arrives.
func (s *suite) groupDeleted(t *testing.T) {
	tr, subject := s.jobs(t)
	src := s.source(t, tr, subject)
	publish(t, tr, numbered(subject, 5)...)
	ackAll(fetch(t, src, 5))
	pause(t.Context(), 500*time.Millisecond) // the acknowledgements are written
	s.DropGroup(t, subject)
	for i := range 10 {
		publish(t, tr, &transport.Message{Subject: subject, Body: fmt.Appendf(nil, "later %d", i)})
	}
	want := map[string]bool{}
	for i := range 10 {
		want[fmt.Sprintf("later %d", i)] = true
	}
	for len(want) > 0 {
		d := fetch(t, src, 1)[0]
		delete(want, string(d.Message().Body)) // what was settled before may come again: the broker has forgotten that
		d.Ack()
	}
}

// A subject that was deleted and made again begins anew; its messages are other jobs than those before.
func (s *suite) subjectRecreated(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 3)...)
	src := s.source(t, tr, subject)
	before := map[string]bool{}
	for _, d := range fetch(t, src, 3) {
		before[d.Position()] = true
		d.Ack()
	}
	closeAll(t, src)
	s.RecreateSubject(t, subject)
	tr2 := s.open(t)
	prepare(t, tr2, transport.Subjects{Sources: []string{subject}})
	publish(t, tr2, numbered(subject, 3)...)
	for _, d := range fetch(t, s.source(t, tr2, subject), 3) {
		if before[d.Position()] {
			t.Errorf("two messages have the position %q", d.Position())
		}
		d.Ack()
	}
}

// After the network was away for longer than brokers remember their clients, everything goes on, and nothing is lost.
func (s *suite) networkCut(t *testing.T) {
	tr, cut := s.OpenCuttable(t)
	t.Cleanup(func() { closeAll(t, tr) })
	subject := s.NewSubject(t)
	prepare(t, tr, transport.Subjects{Sources: []string{subject}})
	src := s.source(t, tr, subject)
	publish(t, tr, numbered(subject, 5)...)
	ds := fetch(t, src, 5)
	ackAll(ds[:2])
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		cut(8 * time.Second)
	}()
	pause(t.Context(), time.Second)
	ackAll(ds[2:4]) // written once the network is back, or done again
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	start := time.Now()
	if err := tr.Publisher().Publish(ctx, numbered(subject, 1)...); err == nil || transport.Permanent(err) {
		t.Errorf("publish without a network: %v, want an error that is not permanent", err)
	}
	cancel()
	if took := time.Since(start); took > s.Slack {
		t.Errorf("publish took %v although its context had ended", took)
	}
	<-stop
	for i := range 10 {
		publish(t, tr, &transport.Message{Subject: subject, Body: fmt.Appendf(nil, "later %d", i)})
	}
	want := map[string]bool{string(ds[4].Message().Body): src.Lease() > 0 || ds[4].Lost()}
	for b, comes := range want {
		if !comes { // it is still ours
			delete(want, b)
			ds[4].Ack()
		}
	}
	for i := range 10 {
		want[fmt.Sprintf("later %d", i)] = true
	}
	for len(want) > 0 {
		d := fetch(t, src, 1)[0]
		delete(want, string(d.Message().Body))
		d.Ack()
	}
}
