package jetstream

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// What a stream has dropped, and what only looks like it. Each step is followed by a look; want is what they count together.
func TestGaps(t *testing.T) {
	t.Parallel()
	srv := embed(t, EmbedConfig{})
	type world struct {
		t       *testing.T
		tr      *Transport
		s       *source
		subject string
		out     []transport.Delivery
	}
	stream := func(w *world) jetstream.Stream {
		w.t.Helper()
		name, err := w.tr.holder(w.t.Context(), w.subject)
		if err != nil {
			w.t.Fatal(err)
		}
		s, err := w.tr.js.Stream(w.t.Context(), name)
		if err != nil {
			w.t.Fatal(err)
		}
		return s
	}
	add := func(n int) func(*world) {
		return func(w *world) { publish(w.t, w.tr, w.subject, make([]string, n)...) }
	}
	read := func(n int) func(*world) {
		return func(w *world) { w.out = append(w.out, fetch(w.t, w.s, n, n)...) }
	}
	each := func(from, to int, f func(transport.Delivery)) func(*world) {
		return func(w *world) {
			for _, d := range w.out[from:to] {
				f(d)
			}
		}
	}
	settled := func(n int) func(*world) {
		return func(w *world) {
			await(w.t, "settlements arrive", func() bool { return consumerInfo(w.t, w.tr, "r").NumAckPending == n })
		}
	}
	limit := func(change func(*jetstream.StreamConfig)) func(*world) {
		return func(w *world) {
			cfg := stream(w).CachedInfo().Config
			cfg.Discard = jetstream.DiscardOld
			change(&cfg)
			if _, err := w.tr.js.UpdateStream(w.t.Context(), cfg); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	keep := func(n int64) func(*world) { return limit(func(c *jetstream.StreamConfig) { c.MaxMsgs = n }) }
	again := func(w *world) {
		if err := w.s.Close(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
		w.out = nil
		w.s = consume(w.t, w.tr, transport.SourceConfig{Subject: w.subject})
	}
	ack, release := transport.Delivery.Ack, transport.Delivery.Release
	for name, tc := range map[string]struct {
		config *jetstream.StreamConfig // of a stream that is there; nil for one of our making
		steps  []func(*world)
		want   int64
	}{
		"nothing":               {nil, []func(*world){add(10), read(5), each(0, 5, ack), settled(0)}, 0},
		"settled out of order":  {nil, []func(*world){add(10), read(8), each(5, 8, ack), settled(5), read(1), each(0, 5, ack), settled(1)}, 0},
		"delivered again":       {nil, []func(*world){add(10), read(5), each(0, 5, release), read(5), again, read(10)}, 0},
		"dropped before read":   {nil, []func(*world){add(30), keep(10)}, 20},
		"while some are out":    {nil, []func(*world){add(30), read(5), keep(10), read(10)}, 15},
		"while nobody is there": {nil, []func(*world){add(30), read(5), each(0, 5, ack), settled(0), keep(10), again, read(10)}, 15},
		"all of it": {nil, []func(*world){add(30), read(5), limit(func(c *jetstream.StreamConfig) { c.MaxAge, c.Duplicates = 100*time.Millisecond, 100*time.Millisecond }), func(w *world) {
			await(w.t, "all is too old", func() bool { return stream(w).CachedInfo().State.Msgs == 0 })
		}, add(1), read(1)}, 25},
		"again and again": {nil, []func(*world){add(30), keep(10), add(5), read(3), add(20), again, read(10)}, 20 + 5 + 17},
		"deleted by hand": {nil, []func(*world){add(3), func(w *world) {
			if err := stream(w).DeleteMsg(w.t.Context(), 2); err != nil {
				w.t.Fatal(err)
			}
		}, read(2)}, 1},
		"a stream that keeps what is read":     {&jetstream.StreamConfig{}, []func(*world){add(30), read(20), each(0, 20, ack), settled(0), keep(15), keep(5), read(5)}, 5},
		"dropped before the consumer was made": {&jetstream.StreamConfig{MaxMsgs: 3}, []func(*world){add(1), read(1)}, 0},
		"others' messages in the stream": {&jetstream.StreamConfig{Subjects: []string{"more"}}, []func(*world){func(w *world) {
			publish(w.t, w.tr, "more."+w.subject, make([]string, 30)...)
		}, add(3), keep(2), read(2)}, 0},
		"consumer made again": {nil, []func(*world){add(10), read(5), func(w *world) {
			if err := stream(w).DeleteConsumer(w.t.Context(), consumerInfo(w.t, w.tr, "r").Name); err != nil {
				w.t.Fatal(err)
			}
		}, again, read(10)}, 0},
		"stream made again": {nil, []func(*world){add(10), read(5), func(w *world) {
			if err := w.tr.js.DeleteStream(w.t.Context(), stream(w).CachedInfo().Config.Name); err != nil {
				w.t.Fatal(err)
			}
		}, again, add(3), read(3)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &world{t: t, subject: services.UniqueName(t)}
			w.tr = open(t, dial(t, srv.ConnectConfig()), func(c *Config) { c.Group = w.subject })
			if tc.config != nil {
				c := *tc.config
				c.Name, c.Subjects = legal(w.subject), []string{w.subject}
				if tc.config.Subjects != nil {
					c.Subjects = append(c.Subjects, "more."+w.subject)
				}
				if _, err := w.tr.js.CreateStream(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				add(5)(w)
			}
			w.s = consume(t, w.tr, transport.SourceConfig{Subject: w.subject})
			if tc.config != nil {
				left := int(stream(w).CachedInfo().State.Msgs)
				for _, d := range fetch(t, w.s, left, left) {
					d.Ack()
				}
				settled(0)(w)
			}
			for i, step := range append(tc.steps, func(*world) {}) { // nothing more is counted by another look
				step(w)
				if err := w.s.look(t.Context(), nil); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
			}
			if n := w.tr.Losses().Gaps; n != tc.want {
				t.Errorf("%d messages are counted, want %d", n, tc.want)
			}
		})
	}
}

// A count that cannot be kept holds up no jobs.
func TestGapThatCannotBeCounted(t *testing.T) {
	t.Parallel()
	srv := embed(t, EmbedConfig{})
	first := open(t, dial(t, srv.ConnectConfig()))
	s := consume(t, first, transport.SourceConfig{})
	publish(t, first, "jobs", "1", "2", "3")
	fetch(t, s, 1, 1)[0].Ack()
	await(t, "it is settled", func() bool { return consumerInfo(t, first, "r").NumAckPending == 0 && moves(t, first) })
	if err := errors.Join(s.Close(t.Context()), first.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	js := first.js
	jobs, err := js.Stream(t.Context(), "WASM_jobs")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(jobs.DeleteMsg(t.Context(), 2), js.DeleteStream(t.Context(), first.waitStream().Name)); err != nil {
		t.Fatal(err)
	}
	tr := open(t, dial(t, srv.ConnectConfig()), func(c *Config) { c.CreateStreams = false })
	s = consume(t, tr, transport.SourceConfig{})
	if got := string(fetch(t, s, 1, 1)[0].Message().Body); got != "3" {
		t.Errorf("got %q", got)
	}
	elsewhere := *first.waitStream()
	elsewhere.Name = "ELSEWHERE"
	if _, err := js.CreateStream(t.Context(), elsewhere); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.look(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := tr.Losses().Gaps; n != 1 {
		t.Errorf("%d messages are counted once they can be, want 1", n)
	}
}

// A server that is killed has dropped nothing, although it forgets what it delivered last.
func TestNoGapAfterKill(t *testing.T) {
	t.Parallel()
	tr, srv, _ := remote(t)
	s := consume(t, tr, transport.SourceConfig{Lease: time.Second})
	var want []string
	for i := range 500 {
		want = append(want, fmt.Sprint(i))
	}
	publish(t, tr, "jobs", want...)
	for _, d := range fetch(t, s, 200, 64) {
		d.Release()
	}
	if err := s.look(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, d := range fetch(t, s, 200, 64) {
		d.Release()
	}
	srv.Kill()
	srv.Start()
	all(t, s, want...)
	if err := s.look(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if n := tr.Losses().Gaps; n != 0 {
		t.Errorf("%d messages are counted", n)
	}
}
