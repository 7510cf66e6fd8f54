package redisstream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// D-07: a retry frees its slot and comes when it is due, not earlier and not much later.
func TestRetry(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 1300 * time.Millisecond} {
		publish(t, tr, msg(stream, "first", "a", "1", "a", "2"))
		d := fetch(t, src, 1)[0]
		began := time.Now()
		moved := msg(stream, "second", "a", "1", "a", "2", transport.HeaderMoved, "0.1")
		if err := d.Retry(t.Context(), after, moved); err != nil {
			t.Fatal(err)
		}
		if b, err := tr.Backlog(t.Context(), stream); err != nil || b.Pending != 0 || b.Waiting+b.Delayed > 1 {
			t.Errorf("backlog %+v, %v", b, err)
		}
		d = fetch(t, src, 1)[0]
		late := time.Since(began) - after
		t.Logf("%v: late by %v", after, late)
		// The server's clock counts whole milliseconds.
		if late < -2*time.Millisecond || late > 5*time.Second {
			t.Errorf("%v: late by %v", after, late)
		}
		if m := d.Message(); string(m.Body) != "second" || len(m.Header.Values("a")) != 2 || d.Redelivered() {
			t.Errorf("%v: got %q %v, redelivered %v", after, m.Body, m.Header, d.Redelivered())
		}
		d.Ack()
	}
	empty(t, c, stream)
	if n := c.Exists(t.Context(), keysOf(stream).due, keysOf(stream).moved).Val(); n != 0 {
		t.Errorf("%d keys are left behind", n)
	}
}

// A move whose reply was cut off is made once, however often it is asked for.
func TestRetryTwice(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	publish(t, tr, msg(stream, "a"))
	d := fetch(t, src, 1)[0].(*delivery)
	for range 3 {
		d.settled.Store(false) // as after an error
		d.lost.Store(false)
		if err := d.Retry(t.Context(), 300*time.Millisecond, msg(stream, "b")); err != nil {
			t.Fatal(err)
		}
		if d.Lost() {
			t.Error("the repeated move found the delivery lost while the message waits")
		}
	}
	fetch(t, src, 1)[0].Ack()
	none(t, src, 700*time.Millisecond)
}

// A delivery that another has taken is not moved by its former owner.
func TestRetryLost(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	const lease = 300 * time.Millisecond
	dead := openSource(t, tr, stream, lease)
	publish(t, tr, msg(stream, "a"))
	old := fetch(t, dead, 1)[0]
	src := openSource(t, tr, stream, lease)
	d := fetch(t, src, 1)[0]
	if err := old.Retry(t.Context(), 0, msg(stream, "b")); err != nil {
		t.Fatal(err)
	}
	if !old.Lost() {
		t.Error("the former owner's delivery is not lost")
	}
	d.Ack()
	empty(t, c, stream)
}

// Messages that wait outlive those who moved them, and the server.
func TestRetrySurvives(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	c := client(t, srv.Addr)
	tr := open(t, c)
	src := openSource(t, tr, "jobs", time.Minute)
	const n = 50
	numbered(t, tr, "jobs", n)
	for _, d := range fetch(t, src, n) {
		if err := d.Retry(t.Context(), 2*time.Second, d.Message()); err != nil {
			t.Fatal(err)
		}
	}
	closeSource(t, src)
	srv.Kill()
	srv.Start()
	next := openSource(t, tr, "jobs", time.Minute)
	seen := make(map[string]bool)
	for _, d := range fetch(t, next, n) {
		seen[string(d.Message().Body)] = true
		d.Ack()
	}
	if len(seen) != n {
		t.Errorf("%d of %d came", len(seen), n)
	}
	none(t, next, 100*time.Millisecond)
}

// Many movers at once move each message once.
func TestMoversRace(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	const n = 1000
	numbered(t, tr, stream, n)
	var wg sync.WaitGroup
	for got := 0; got < n; {
		ds := fetch(t, src, min(100, n-got))
		got += len(ds)
		for _, d := range ds {
			wg.Go(func() {
				if err := d.Retry(t.Context(), time.Second, d.Message()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	k := keysOf(stream)
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = dueScript.Run(t.Context(), c, []string{k.stream, k.due, k.moved}, dueBatch, dueBytes).Err()
				}
			}
		})
	}
	eventually(t, "all have moved", func() bool { return c.ZCard(t.Context(), k.due).Val() == 0 })
	close(stop)
	wg.Wait()
	if got := c.XLen(t.Context(), stream).Val(); got != n {
		t.Errorf("%d entries of %d messages", got, n)
	}
	if got := c.HLen(t.Context(), k.moved).Val(); got != 0 {
		t.Errorf("%d messages are left in the hash", got)
	}
}

// A message that the mover cannot write stays scheduled.
func TestMoveIsAtomic(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	numbered(t, tr, stream, 3)
	for _, d := range fetch(t, src, 3) {
		if err := d.Retry(t.Context(), 200*time.Millisecond, d.Message()); err != nil {
			t.Fatal(err)
		}
	}
	closeSource(t, src)
	if err := c.Del(t.Context(), stream).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(t.Context(), stream, "no stream", 0).Err(); err != nil {
		t.Fatal(err)
	}
	k := keysOf(stream)
	run := func() error {
		return dueScript.Run(t.Context(), c, []string{k.stream, k.due, k.moved}, dueBatch, dueBytes).Err()
	}
	eventually(t, "the mover fails", func() bool { return hasCode(run(), "WRONGTYPE") })
	if z, h := c.ZCard(t.Context(), k.due).Val(), c.HLen(t.Context(), k.moved).Val(); z != 3 || h != 3 {
		t.Errorf("%d and %d of 3 are left", z, h)
	}
	if err := c.Del(t.Context(), stream).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all have moved", func() bool {
		if err := run(); err != nil {
			t.Fatal(err)
		}
		return c.XLen(t.Context(), stream).Val() == 3
	})
}

func TestRetryRefuses(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	publish(t, tr, msg(stream, "a"))
	d := fetch(t, src, 1)[0]
	many := msg(stream, "a")
	for i := range 4000 {
		many.Header.Add(fmt.Sprint(i), "x")
	}
	large := msg(stream, strings.Repeat("x", tr.Publisher().MaxBytes()))
	for _, m := range []*transport.Message{many, large} {
		if err := d.Retry(t.Context(), time.Second, m); !errors.Is(err, transport.ErrTooLarge) {
			t.Errorf("got %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Retry(ctx, time.Second, d.Message()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// Just not too many fields.
	many.Header = many.Header[:(maxFields-6)/2]
	if err := d.Retry(t.Context(), time.Millisecond, many); err != nil {
		t.Fatal(err)
	}
	d = fetch(t, src, 1)[0]
	if got := len(d.Message().Header); got != len(many.Header) {
		t.Errorf("%d of %d headers", got, len(many.Header))
	}
	// A delay beyond all calendars does not overflow.
	if err := d.Retry(t.Context(), math.MaxInt64, msg(stream, "never")); err != nil {
		t.Fatal(err)
	}
	none(t, src, 200*time.Millisecond)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		stream, tag, due string
		taggable         bool
	}{
		{"jobs", "jobs", "wasm:{jobs}:due:jobs", true},
		{"{a}:jobs", "a", "wasm:{a}:due:{a}:jobs", true},
		{"x{}y", "x{}y", "wasm:{x{}y}:due:x{}y", false},
		{"a}b", "a}b", "wasm:{a}b}:due:a}b", false},
	} {
		if got := hashTag(tc.stream); got != tc.tag {
			t.Errorf("%s: tag %q, want %q", tc.stream, got, tc.tag)
		}
		if got := keysOf(tc.stream).due; got != tc.due {
			t.Errorf("%s: key %q, want %q", tc.stream, got, tc.due)
		}
		if got := taggable(tc.stream); got != tc.taggable {
			t.Errorf("%s: taggable %v", tc.stream, got)
		}
	}
}
