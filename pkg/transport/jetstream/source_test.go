package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestJobAndResult(t *testing.T) {
	t.Parallel()
	tr := local(t)
	if err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs.echo"}, Sinks: []string{"results", "dead"}}); err != nil {
		t.Fatal(err)
	}
	if n := tr.Publisher().MaxBytes(); n <= 0 || n >= 1<<20 {
		t.Errorf("MaxBytes %d, want below the server's 1 MiB", n)
	}
	tail, err := tr.Tail(t.Context(), "results", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	s := consume(t, tr, transport.SourceConfig{Subject: "jobs.echo"})
	before := time.Now().Add(-time.Second)
	m := &transport.Message{
		Subject: "jobs.echo", Key: []byte("k"), Body: []byte("hi"), ReplyTo: "_INBOX.x",
		Header: job.Header{{Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"}, {Name: "nats-msg-id", Value: "id"}},
	}
	if err := tr.Publisher().Publish(t.Context(), m, m); err != nil { // the second is a duplicate, and no error
		t.Fatal(err)
	}
	d := fetch(t, s, 1, 10)[0]
	got := d.Message()
	if got.Subject != "jobs.echo" || string(got.Body) != "hi" || string(got.Key) != "k" ||
		fmt.Sprint(got.Header.Values("X-A")) != "[1 2]" || got.Header.Get("Reply-To") != "_INBOX.x" {
		t.Errorf("message %+v", got)
	}
	if d.Redelivered() || d.Lost() || d.Published().Before(before) || d.Published().After(time.Now().Add(time.Second)) {
		t.Errorf("redelivered %v, lost %v, published %v", d.Redelivered(), d.Lost(), d.Published())
	}
	if p := d.Position(); !strings.HasPrefix(p, "WASM_jobs_echo@") || !strings.HasSuffix(p, "/1") {
		t.Errorf("position %q", p)
	}
	publish(t, tr, "results", "done")
	if r, err := tail.Next(t.Context()); err != nil || string(r.Body) != "done" {
		t.Errorf("tail: %v %v", r, err)
	}
	d.Ack()
	await(t, "the job leaves the stream", func() bool {
		n, err := tr.Backlog(t.Context(), "r")
		return err == nil && n == 0
	})
	none(t, s, 100*time.Millisecond)
}

func TestNoCreditBeyondTheLimit(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	for i := range 50 {
		publish(t, tr, "jobs", fmt.Sprint(i))
	}
	ds := fetch(t, s, 4, 4)
	if len(ds) != 4 {
		t.Fatalf("fetched %d", len(ds))
	}
	// The server has handed out what was fetched and nothing more.
	info := consumerInfo(t, tr, "r")
	if info.NumAckPending != 4 || info.NumPending != 46 {
		t.Errorf("%d out and %d waiting, want 4 and 46", info.NumAckPending, info.NumPending)
	}
	ds[0].Ack()
	ds[1].Ack()
	fetch(t, s, 2, 2)
	if info := consumerInfo(t, tr, "r"); info.NumPending != 44 {
		t.Errorf("%d waiting, want 44", info.NumPending)
	}
}

func consumerInfo(t testing.TB, tr *Transport, route string) *jetstream.ConsumerInfo {
	t.Helper()
	tr.mu.Lock()
	ref := tr.routes[route]
	tr.mu.Unlock()
	c, err := tr.js.Consumer(t.Context(), ref.stream, ref.consumer)
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo()
}

// Prefetched messages whose leases run in a buffer were 154 duplicates of 450 in a subscriber that is often used.
func TestSlowJobsAreNotRepeated(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{Lease: 2 * time.Second})
	const jobs, window = 450, 16
	for i := range jobs {
		publish(t, tr, "jobs", fmt.Sprint(i))
	}
	var mu sync.Mutex
	seen := make(map[string]int)
	slots := make(chan struct{}, window)
	var wg sync.WaitGroup
	for n := 0; n < jobs; {
		slots <- struct{}{}
		<-slots
		ds := fetch(t, s, 1, window-len(slots))
		n += len(ds)
		for _, d := range ds {
			slots <- struct{}{}
			wg.Go(func() {
				time.Sleep(100 * time.Millisecond)
				mu.Lock()
				seen[string(d.Message().Body)]++
				mu.Unlock()
				d.Ack()
				<-slots
			})
		}
	}
	wg.Wait()
	none(t, s, 200*time.Millisecond)
	for k, n := range seen {
		if n != 1 {
			t.Errorf("job %s ran %d times", k, n)
		}
	}
	if len(seen) != jobs {
		t.Errorf("%d jobs ran, want %d", len(seen), jobs)
	}
}

func TestJobLongerThanItsLease(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{Lease: time.Second})
	publish(t, tr, "jobs", "long")
	d := fetch(t, s, 1, 2)[0]
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
		if err := s.Extend(t.Context(), []transport.Delivery{d}); err != nil {
			t.Fatal(err)
		}
	}
	if d.Lost() {
		t.Error("lost in spite of Extend")
	}
	if info := consumerInfo(t, tr, "r"); info.NumRedelivered != 0 {
		t.Error("delivered again in spite of Extend")
	}
	d.Ack()
	none(t, s, 1500*time.Millisecond)
}

func TestAbandonedJobGoesToAnother(t *testing.T) {
	t.Parallel()
	srv := embed(t, EmbedConfig{})
	a := consume(t, open(t, dial(t, srv.ConnectConfig())), transport.SourceConfig{Lease: time.Second})
	b := consume(t, open(t, dial(t, srv.ConnectConfig())), transport.SourceConfig{Lease: time.Second})
	publish(t, a.t, "jobs", "x")
	first := fetch(t, a, 1, 1)[0]
	second := fetch(t, b, 1, 1)[0]
	if !first.Lost() {
		t.Error("the silent owner does not know that it lost the job")
	}
	if second.Lost() || !second.Redelivered() || second.Position() != first.Position() {
		t.Errorf("lost %v, redelivered %v, positions %s %s", second.Lost(), second.Redelivered(), first.Position(), second.Position())
	}
	first.Ack() // has no effect
	if err := b.Extend(t.Context(), []transport.Delivery{second}); err != nil {
		t.Fatal(err)
	}
	if n, err := b.t.Backlog(t.Context(), "r"); err != nil || n != 1 {
		t.Errorf("backlog %d, %v: the loser's Ack had an effect", n, err)
	}
	second.Ack()
}

func TestReleaseAndClose(t *testing.T) {
	t.Parallel()
	srv := embed(t, EmbedConfig{})
	tr := open(t, dial(t, srv.ConnectConfig()))
	a := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "1", "2", "3", "4")
	ds := fetch(t, a, 1, 1)
	ds[0].Release()
	again := fetch(t, a, 3, 3)
	again[0].Ack()
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Fetch(t.Context(), 1); !errors.Is(err, transport.ErrClosed) {
		t.Errorf("Fetch after Close: %v", err)
	}
	if !again[1].Lost() {
		t.Error("a delivery that was out is still ours after Close")
	}
	// What was out, and what was never fetched, is there at once for another.
	b := consume(t, open(t, dial(t, srv.ConnectConfig())), transport.SourceConfig{})
	start := time.Now()
	for _, d := range fetch(t, b, 3, 64) {
		d.Ack()
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v: the messages were not handed back", took)
	}
	none(t, b, 100*time.Millisecond)
}

// What arrived for a Fetch that was content with less is handed back at once.
func TestCloseHandsBackWhatWasNeverFetched(t *testing.T) {
	t.Parallel()
	srv := embed(t, EmbedConfig{})
	tr := open(t, dial(t, srv.ConnectConfig()))
	a := consume(t, tr, transport.SourceConfig{Lease: time.Hour})
	publish(t, tr, "jobs", "1")
	fetch(t, a, 1, 4)[0].Ack()
	publish(t, tr, "jobs", "2", "3")
	await(t, "two wait inside the source", func() bool { return consumerInfo(t, tr, "r").NumAckPending == 2 })
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := consume(t, open(t, dial(t, srv.ConnectConfig())), transport.SourceConfig{Lease: time.Hour})
	for _, d := range fetch(t, b, 2, 4) {
		d.Ack()
	}
}

func TestFetchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := consume(t, local(t), transport.SourceConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := s.Fetch(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDeadEndsTheJob(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "bad")
	sub, err := tr.nc.SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>")
	if err != nil {
		t.Fatal(err)
	}
	fetch(t, s, 1, 1)[0].Dead("no such\r\nmodule")
	m, err := sub.NextMsg(within)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(m.Data), `"reason":"no such  module"`) {
		t.Errorf("advisory %s", m.Data)
	}
	none(t, s, 100*time.Millisecond)
}
