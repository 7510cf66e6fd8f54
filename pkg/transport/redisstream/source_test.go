package redisstream

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestJobAndBack(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	sent := &transport.Message{
		Subject: stream, Key: []byte("k"), ReplyTo: "answers", Body: []byte("hello"),
		Header: job.Header{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}, {Name: "body", Value: "no body"}},
	}
	publish(t, tr, sent)
	d := fetch(t, src, 1)[0]
	m := d.Message()
	if string(m.Body) != "hello" || string(m.Key) != "k" || m.ReplyTo != "answers" || m.Subject != stream {
		t.Errorf("got %+v", m)
	}
	if got := m.Header.Values("A"); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("a field that occurs twice came as %q", got)
	}
	if got := m.Header.Get("body"); got != "no body" {
		t.Errorf("the header body came as %q", got)
	}
	if d.Redelivered() || d.Lost() {
		t.Errorf("redelivered %v, lost %v", d.Redelivered(), d.Lost())
	}
	if !strings.HasPrefix(d.Position(), stream+"/") || time.Since(d.Published()) > time.Hour {
		t.Errorf("position %s, published %v", d.Position(), d.Published())
	}
	d.Ack()
	empty(t, c, stream)
	eventually(t, "nothing is pending", func() bool { return c.XPending(t.Context(), stream, "workers").Val().Count == 0 })
}

// A plain entry of any client is a job, and what cannot be a job of ours kills nothing.
func TestForeignEntries(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	for _, tc := range []struct {
		name   string
		fields []string
		body   string
		header job.Header
	}{
		{"body", []string{"x", "1", "body", "b"}, "b", job.Header{{Name: "x", Value: "1"}}},
		{"payload", []string{"payload", "p", "data", "d"}, "p", job.Header{{Name: "data", Value: "d"}}},
		{"data", []string{"data", "d"}, "d", nil},
		{"empty body", []string{"body", ""}, "", nil},
		{"none", []string{"name", "Ann <3", "age", "7"}, `{"name":"Ann <3","age":"7"}`, job.Header{}},
		{"none, twice", []string{"n", "1", "m", "2", "n", "3"}, `{"n":["1","3"],"m":"2"}`, job.Header{}},
		{"none, with an id", []string{"n", "1", "Wasm-Job-Id", "j"}, `{"n":"1","Wasm-Job-Id":"j"}`, job.Header{{Name: "Wasm-Job-Id", Value: "j"}}},
		{"not text", []string{"\xff", "\xfe"}, `{"\ufffd":"\ufffd"}`, job.Header{}},
		{"watermill, broken", []string{"_watermill_message_uuid", "u", "metadata", "\xc1", "payload", "p"}, "p",
			job.Header{{Name: "_watermill_message_uuid", Value: "u"}, {Name: "metadata", Value: "\xc1"}}},
		{"watermill, no metadata", []string{"_watermill_message_uuid", "u", "metadata", "\xc0", "payload", "p"}, "p",
			job.Header{{Name: "_watermill_message_uuid", Value: "u"}}},
		{"watermill", []string{"_watermill_message_uuid", "u", "metadata", "\x82\xa1b\xa12\xa1a\xa11", "payload", "p"}, "p",
			job.Header{{Name: "_watermill_message_uuid", Value: "u"}, {Name: "a", Value: "1"}, {Name: "b", Value: "2"}}},
	} {
		xadd(t, c, stream, tc.fields...)
		d := fetch(t, src, 1)[0]
		if got := string(d.Message().Body); got != tc.body {
			t.Errorf("%s: body %q, want %q", tc.name, got, tc.body)
		}
		if got := d.Message().Header; !slices.Equal(got, tc.header) {
			t.Errorf("%s: header %q, want %q", tc.name, got, tc.header)
		}
		d.Ack()
	}
	empty(t, c, stream)
}

func TestWatermillIsWritten(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	publish(t, tr, &transport.Message{Subject: stream, Key: []byte("k"), Body: []byte("p"), Header: job.Header{
		{Name: transport.HeaderWatermillUUID, Value: "u"}, {Name: "a", Value: "1"}, {Name: "A", Value: "2"},
	}})
	got := c.XRange(t.Context(), stream, "-", "+").Val()
	want := map[string]any{"_watermill_message_uuid": "u", "metadata": "\x82\xa8Wasm-Key\xa1k\xa1a\xa11", "payload": "p"}
	if len(got) != 1 || !maps.Equal(got[0].Values, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// D-14: a group or stream that goes away is made again, and consumption goes on.
func TestGroupGone(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		gone func(ctx context.Context, c redis.UniversalClient, stream string) error
	}{
		{"group destroyed", func(ctx context.Context, c redis.UniversalClient, stream string) error {
			return c.XGroupDestroy(ctx, stream, "workers").Err()
		}},
		{"stream deleted", func(ctx context.Context, c redis.UniversalClient, stream string) error {
			return c.Del(ctx, stream).Err()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, stream := shared(t)
			tr := open(t, c)
			src := openSource(t, tr, stream, time.Minute)
			w := work(t, src, 8, 0)
			numbered(t, tr, stream, 10)
			eventually(t, "ten jobs ran", func() bool { return w.distinct() == 10 })
			empty(t, c, stream)
			if err := tc.gone(t.Context(), c, stream); err != nil {
				t.Fatal(err)
			}
			publish(t, tr, msg(stream, "after"))
			eventually(t, "the job after it ran", func() bool { return w.count("after") == 1 })
		})
	}
}

// What was given out by a group that is gone may come again, and says so; those who had it learn that it is lost.
func TestGroupDestroyedWhileHeld(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	publish(t, tr, msg(stream, "a"))
	old := fetch(t, src, 1)
	if err := c.XGroupDestroy(t.Context(), stream, "workers").Err(); err != nil {
		t.Fatal(err)
	}
	if err := src.Extend(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if !old[0].Lost() {
		t.Error("the delivery is not lost")
	}
	old[0].Ack() // has no effect
	d := fetch(t, src, 1)[0]
	if !d.Redelivered() {
		t.Error("the second delivery does not say that it is one")
	}
	d.Ack()
	publish(t, tr, msg(stream, "b"))
	if d := fetch(t, src, 1)[0]; d.Redelivered() {
		t.Error("a new job says that it was delivered before")
	}
}

// A consumer that somebody deleted takes its entries with it, and they would never be delivered again.
func TestConsumerDeletedWhileHeld(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	publish(t, tr, msg(stream, "a"))
	ds := fetch(t, src, 1)
	if n := c.XGroupDelConsumer(t.Context(), stream, "workers", src.consumer).Val(); n != 1 {
		t.Fatalf("%d entries went with the consumer", n)
	}
	if err := src.Extend(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	if ds[0].Lost() {
		t.Error("the delivery is lost, and the job with it")
	}
	ds[0].Release()
	fetch(t, src, 1)[0].Ack()
	empty(t, c, stream)
}

// An entry that is deleted while it is pending goes off the list and holds nothing up.
func TestDeletedWhilePending(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	const lease = 500 * time.Millisecond
	dead := openSource(t, tr, stream, lease)
	publish(t, tr, msg(stream, "gone"), msg(stream, "stays"))
	ds := fetch(t, dead, 2)
	_, id, _ := strings.Cut(ds[0].Position(), "/")
	if err := c.XDel(t.Context(), stream, id).Err(); err != nil {
		t.Fatal(err)
	}
	src := openSource(t, tr, stream, lease)
	d := fetch(t, src, 1)[0]
	if got := string(d.Message().Body); got != "stays" || !d.Redelivered() {
		t.Errorf("got %q, redelivered %v", got, d.Redelivered())
	}
	d.Ack()
	eventually(t, "nothing is pending", func() bool { return c.XPending(t.Context(), stream, "workers").Val().Count == 0 })
}

// A consumer that dies without a word is succeeded after its lease. Its late acknowledgement does no harm.
func TestTakeover(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	const lease = time.Second
	dead := openSource(t, tr, stream, lease)
	numbered(t, tr, stream, 20)
	old := fetch(t, dead, 20)
	heir := openSource(t, open(t, c), stream, lease)
	began := time.Now()
	ds := fetch(t, heir, 20)
	if took := time.Since(began); took > lease+5*time.Second {
		t.Errorf("taking over lasted %v", took)
	}
	for _, d := range ds {
		if !d.Redelivered() {
			t.Errorf("%s was taken over and does not say so", d.Position())
		}
	}
	// The first owner wakes up and acknowledges what is no longer its own.
	for _, d := range old[:10] {
		d.Ack()
	}
	eventually(t, "the acknowledgements were written", func() bool { return dead.holding() == 10 })
	if n := c.XLen(t.Context(), stream).Val(); n != 20 {
		t.Errorf("%d of 20 jobs are left: the first owner took them from the second", n)
	}
	if err := dead.Extend(t.Context(), old[10:]); err != nil {
		t.Fatal(err)
	}
	for _, d := range old[10:] {
		if !d.Lost() {
			t.Errorf("%s was taken over and is not lost", d.Position())
		}
	}
	if err := heir.Extend(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	for _, d := range ds {
		if d.Lost() {
			t.Errorf("%s is lost to its new owner", d.Position())
		}
		d.Ack()
	}
	empty(t, c, stream)
}

// A job that lasts longer than the lease runs once.
func TestLongJobRunsOnce(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	const lease = 600 * time.Millisecond
	a := work(t, openSource(t, tr, stream, lease), 4, 4*lease)
	b := work(t, openSource(t, open(t, c), stream, lease), 4, 4*lease)
	publish(t, tr, msg(stream, "long"))
	eventually(t, "the job ran", func() bool { return a.count("long")+b.count("long") > 0 })
	empty(t, c, stream)
	if n := a.count("long") + b.count("long"); n != 1 {
		t.Errorf("the job ran %d times", n)
	}
}

func TestTwoShare(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	a := work(t, openSource(t, tr, stream, time.Minute), 16, time.Millisecond)
	b := work(t, openSource(t, open(t, c), stream, time.Minute), 16, time.Millisecond)
	const n = 2000
	numbered(t, tr, stream, n)
	empty(t, c, stream)
	if got := a.distinct() + b.distinct(); got != n {
		t.Errorf("%d runs of %d jobs", got, n)
	}
	if a.distinct() == 0 || b.distinct() == 0 {
		t.Errorf("one did everything: %d and %d", a.distinct(), b.distinct())
	}
}

// What is released is delivered again at once: to the same source, and to another that waits.
func TestRelease(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	publish(t, tr, msg(stream, "a"))
	fetch(t, src, 1)[0].Release()
	began := time.Now()
	d := fetch(t, src, 1)[0]
	if !d.Redelivered() {
		t.Error("what was released does not say that it was delivered before")
	}
	t.Logf("to the same source after %v", time.Since(began))
	other := openSource(t, open(t, c), stream, time.Minute)
	got := make(chan time.Duration, 1)
	go func() {
		d := fetch(t, other, 1)[0]
		got <- time.Since(began)
		d.Ack()
	}()
	began = time.Now()
	d.Release()
	took := <-got
	t.Logf("to another source after %v", took)
	if took > 5*time.Second {
		t.Errorf("the hand-over lasted %v", took)
	}
	empty(t, c, stream)
}

// Close hands back what is out, so that nobody waits for a lease, and takes its consumer away.
func TestCloseHandsBack(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	numbered(t, tr, stream, 10)
	src := openSource(t, tr, stream, time.Hour)
	ds := fetch(t, src, 10)
	for _, d := range ds[:5] {
		d.Ack()
	}
	closeSource(t, src)
	if _, err := src.Fetch(t.Context(), 1); !errors.Is(err, transport.ErrClosed) {
		t.Errorf("fetch after close: %v", err)
	}
	for _, d := range ds[5:] {
		if !d.Lost() {
			t.Error("a delivery that was handed back is not lost")
		}
		d.Ack() // has no effect
	}
	next := openSource(t, tr, stream, time.Hour)
	for _, d := range fetch(t, next, 5) {
		d.Ack()
	}
	empty(t, c, stream)
	closeSource(t, next)
	eventually(t, "one consumer is left", func() bool { return len(c.XInfoConsumers(t.Context(), stream, "workers").Val()) <= 1 })
}

// A call that gives up leaves its read behind, whose harvest belongs to the next call or is handed back.
func TestFetchGivesUp(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	began := time.Now()
	if ds, err := src.Fetch(ctx, 10); !errors.Is(err, context.DeadlineExceeded) || len(ds) > 0 {
		t.Fatalf("got %d deliveries, %v", len(ds), err)
	}
	t.Logf("gave up after %v", time.Since(began))
	numbered(t, tr, stream, 6)
	one := fetch(t, src, 1) // the read that was left behind brought more
	two := fetch(t, src, 2)
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	_, _ = src.Fetch(ctx, 10)
	closeSource(t, src)
	next := openSource(t, tr, stream, time.Hour)
	rest := fetch(t, next, 6)
	if got := bodies(rest); !slices.Equal(got, []string{"0", "1", "2", "3", "4", "5"}) {
		t.Errorf("got %q after %q and %q", got, bodies(one), bodies(two))
	}
}

// A consumer that died empty-handed is removed, one that holds something is not.
func TestSweep(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	for _, name := range []string{"idle", "holds"} {
		if err := c.XGroupCreateConsumer(t.Context(), stream, "workers", name).Err(); err != nil {
			t.Fatal(err)
		}
	}
	xadd(t, c, stream, "body", "x")
	if err := c.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "workers", Consumer: "holds", Streams: []string{stream, ">"}, Count: 1}).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the idle consumer is removed", func() bool {
		if err := sweepScript.Run(t.Context(), c, []string{stream}, "workers", 1, "").Err(); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, x := range c.XInfoConsumers(t.Context(), stream, "workers").Val() {
			names = append(names, x.Name)
		}
		return slices.Contains(names, "holds") && !slices.Contains(names, "idle")
	})
	_ = src
}

// Every read brings as many as there are slots, so a large backlog stays at the server; large entries come in small numbers.
func TestLargeEntries(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	src := openSource(t, tr, stream, time.Minute)
	src.average = readBudget / 3 // as after a few entries of three megabytes
	numbered(t, tr, stream, 20)
	ds, err := src.Fetch(t.Context(), 20)
	for err == nil && len(ds) == 0 {
		ds, err = src.Fetch(t.Context(), 20)
	}
	if err != nil || len(ds) > 3 {
		t.Errorf("got %d deliveries, %v", len(ds), err)
	}
	for _, d := range append(ds, fetch(t, src, 20-len(ds))...) {
		d.Ack()
	}
	empty(t, c, stream)
}
