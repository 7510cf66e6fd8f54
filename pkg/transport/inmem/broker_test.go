package inmem_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/inmem"
)

func open(t *testing.T, cfg inmem.Config) *inmem.Transport {
	t.Helper()
	tr, err := inmem.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close(context.Background()) })
	return tr
}

func source(t *testing.T, tr *inmem.Transport, subject string) transport.Source {
	t.Helper()
	s, err := tr.Source(t.Context(), transport.SourceConfig{Route: "r", Subject: subject, Limit: 10, Lease: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publish(t *testing.T, tr *inmem.Transport, subject string, bodies ...string) {
	t.Helper()
	for _, b := range bodies {
		if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: subject, Body: []byte(b)}); err != nil {
			t.Fatal(err)
		}
	}
}

// fetch returns what is there within a moment of the bubble's time.
func fetch(t *testing.T, s transport.Source, limit int) []transport.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	ds, err := s.Fetch(ctx, limit)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return ds
}

func bodies(ds []transport.Delivery) (out string) {
	for _, d := range ds {
		out += string(d.Message().Body)
	}
	return out
}

func TestLeaseAndOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t, inmem.Config{})
		publish(t, tr, "jobs", "a", "b", "c", "d")
		first, second := source(t, tr, "jobs"), source(t, tr, "jobs")
		ds := fetch(t, first, 3)
		if got := bodies(ds); got != "abc" {
			t.Fatalf("fetched %q", got)
		}
		time.Sleep(30 * time.Second)
		if err := first.Extend(t.Context(), ds[1:2]); err != nil {
			t.Fatal(err)
		}
		if got := bodies(fetch(t, second, 9)); got != "d" {
			t.Errorf("before the lease has run out the second source has %q", got)
		}
		time.Sleep(40 * time.Second) // a and c are 70 s old, b was extended 40 s ago
		again := fetch(t, second, 9)
		if got := bodies(again); got != "ac" {
			t.Errorf("after the lease the second source has %q", got)
		}
		if !ds[0].Lost() || ds[1].Lost() || !ds[2].Lost() || !again[0].Redelivered() {
			t.Errorf("lost: %v %v %v", ds[0].Lost(), ds[1].Lost(), ds[2].Lost())
		}
		ds[0].Ack() // another has it
		ds[2].Release()
		if again[0].Lost() || again[1].Lost() {
			t.Error("a stale owner's settlement took effect")
		}
		for _, d := range again {
			d.Ack()
		}
		ds[1].Release()
		if got := bodies(fetch(t, first, 9)); got != "b" {
			t.Errorf("released, %q came", got)
		}
	})
}

func TestRetryIsExact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t, inmem.Config{})
		s := source(t, tr, "jobs")
		publish(t, tr, "jobs", "a")
		d := fetch(t, s, 1)[0]
		if err := d.Retry(t.Context(), time.Hour, &transport.Message{Subject: "jobs", Body: []byte("moved")}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		ds, err := s.Fetch(t.Context(), 1)
		if err != nil || bodies(ds) != "moved" || time.Since(start) != time.Hour {
			t.Errorf("%q came after %v: %v", bodies(ds), time.Since(start), err)
		}
		if ds[0].Position() == d.Position() || ds[0].Redelivered() {
			t.Errorf("moved it is at %q, before at %q", ds[0].Position(), d.Position())
		}
	})
}

func TestFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t, inmem.Config{MaxMessages: 3})
		if err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs"}, Sinks: []string{"results"}}); err != nil {
			t.Fatal(err)
		}
		publish(t, tr, "jobs", "a", "b", "c")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		m := &transport.Message{Subject: "jobs", Body: []byte("d")}
		if err := tr.Publisher().Publish(ctx, m); !errors.Is(err, context.DeadlineExceeded) || transport.Permanent(err) {
			t.Errorf("publish to what is full: %v", err)
		}
		s := source(t, tr, "jobs")
		go func() {
			time.Sleep(time.Minute)
			fetch(t, s, 1)[0].Ack()
		}()
		publish(t, tr, "jobs", "d") // waits for the Ack
		if got := bodies(fetch(t, s, 9)); got != "bcd" {
			t.Errorf("fetched %q", got)
		}

		// What nobody has asked for gives way to what is newer, and never holds up a publisher.
		publish(t, tr, "results", "1", "2", "3", "4", "5")
		tail, err := tr.Tail(t.Context(), "results", true)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"3", "4", "5"} {
			if m, err := tail.Next(t.Context()); err != nil || string(m.Body) != want {
				t.Errorf("tail: %v, %v; want %q", m, err, want)
			}
		}
	})
}

func TestCloseWakesPublish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t, inmem.Config{MaxMessages: 1})
		source(t, tr, "jobs")
		publish(t, tr, "jobs", "a")
		go func() {
			time.Sleep(time.Second)
			_ = tr.Close(context.Background())
		}()
		if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: "jobs"}); !errors.Is(err, transport.ErrClosed) {
			t.Errorf("publish: %v, want ErrClosed", err)
		}
	})
}

func TestSubjects(t *testing.T) {
	t.Parallel()
	tr := open(t, inmem.Config{})
	source(t, tr, "jobs.*.in")
	for subject, ok := range map[string]bool{
		"jobs.*.in": true, "jobs.a.in": false, "jobs.>": false, "*.*.*": false, ">": false,
		"jobs.*": true, "jobs.*.*": false, "jobs.a.in.b": true, "work.*.in": true, "": false, "a b": false,
	} {
		s, err := tr.Source(t.Context(), transport.SourceConfig{Route: "r", Subject: subject, Limit: 1})
		if (err == nil) != ok || err != nil && !transport.Permanent(err) {
			t.Errorf("source of %q: %v", subject, err)
		}
		if s != nil && s.Lease() != 30*time.Second {
			t.Errorf("the lease is %v by default", s.Lease())
		}
	}
	if err := tr.Prepare(t.Context(), transport.Subjects{Sinks: []string{"a.*"}}); !errors.Is(err, transport.ErrRejected) {
		t.Errorf("a sink with a wildcard: %v", err)
	}
	if _, err := inmem.Open(inmem.Config{MaxMessages: -1}); err == nil {
		t.Error("a broker for -1 messages was made")
	}
}

// What is published may be written over afterwards.
func TestPublishCopies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := open(t, inmem.Config{})
		s := source(t, tr, "jobs")
		m := &transport.Message{Subject: "jobs", Body: []byte("body"), Key: []byte("key")}
		m.Header.Add("X", "1")
		if err := tr.Publisher().Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		m.Body[0], m.Key[0], m.Header[0].Value = '!', '!', "!"
		if got := fetch(t, s, 1)[0].Message(); fmt.Sprintf("%s %s %v", got.Body, got.Key, got.Header) != "body key [{X 1}]" {
			t.Errorf("got %s %s %v", got.Body, got.Key, got.Header)
		}
	})
}

func Example() {
	ctx := context.Background()
	tr, err := inmem.Open(inmem.Config{})
	if err != nil {
		panic(err)
	}
	defer tr.Close(ctx)
	src, err := tr.Source(ctx, transport.SourceConfig{Route: "jobs", Subject: "jobs.*", Limit: 8})
	if err != nil {
		panic(err)
	}
	if err := tr.Publisher().Publish(ctx, &transport.Message{Subject: "jobs.resize", Body: []byte("a picture")}); err != nil {
		panic(err)
	}
	deliveries, err := src.Fetch(ctx, 8)
	if err != nil {
		panic(err)
	}
	for _, d := range deliveries {
		fmt.Printf("%s: %s\n", d.Message().Subject, d.Message().Body)
		d.Ack()
	}
	// Output: jobs.resize: a picture
}
