package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// remote is a transport on a server of the test's own, over a proxy.
func remote(t testing.TB) (*Transport, *services.Server, *services.Proxy) {
	t.Helper()
	srv := services.StartNATS(t, "")
	p := services.NewProxy(t, srv.Addr)
	return open(t, dial(t, ConnectConfig{URLs: []string{"nats://" + p.Addr()}, Log: logTo(t)})), srv, p
}

// eventually publishes, however often it takes.
func eventually(t testing.TB, tr *Transport, subject string, bodies ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*within)
	defer cancel()
	for _, b := range bodies {
		for {
			err := tr.Publisher().Publish(ctx, &transport.Message{Subject: subject, Body: []byte(b)})
			if err == nil {
				break
			}
			if ctx.Err() != nil || transport.Permanent(err) {
				t.Fatal(err)
			}
		}
	}
}

// all fetches and settles until each body was there, and returns how often each came.
func all(t testing.TB, s transport.Source, want ...string) map[string]int {
	t.Helper()
	got := make(map[string]int)
	for missing := len(want); missing > 0; {
		for _, d := range fetch(t, s, 1, 64) {
			b := string(d.Message().Body)
			for _, w := range want {
				if w == b && got[b] == 0 {
					missing--
				}
			}
			got[b]++
			d.Ack()
		}
	}
	return got
}

// An ephemeral consumer was gone after eight seconds of silence, and nothing ever came again.
func TestSilentNetwork(t *testing.T) {
	t.Parallel()
	tr, _, p := remote(t)
	s := consume(t, tr, transport.SourceConfig{Lease: 2 * time.Second})
	publish(t, tr, "jobs", "1", "2")
	ds := fetch(t, s, 2, 4)
	ds[0].Ack()
	await(t, "one is settled", func() bool { return consumerInfo(t, tr, "r").NumAckPending == 1 })
	p.Silence()
	time.AfterFunc(8*time.Second, p.Restore)
	await(t, "the lease has run out", ds[1].Lost)
	if err := s.Extend(t.Context(), ds[:1]); err != nil {
		t.Errorf("extending what is settled: %v", err)
	}
	eventually(t, tr, "jobs", "3", "4")
	if got := all(t, s, "2", "3", "4"); got["1"] > 0 {
		t.Error("a settled message came again")
	}
}

func TestServerKilled(t *testing.T) {
	t.Parallel()
	tr, srv, _ := remote(t)
	s := consume(t, tr, transport.SourceConfig{Lease: 2 * time.Second})
	publish(t, tr, "jobs", "0", "1", "2", "3")
	if err := fetch(t, s, 4, 4)[0].Retry(t.Context(), 3*time.Second, moved("jobs", "a")); err != nil {
		t.Fatal(err)
	}
	srv.Kill()
	if _, err := s.Fetch(t.Context(), 4); err == nil || transport.Permanent(err) {
		t.Errorf("Fetch without a server: %v", err)
	}
	if err := tr.Ping(t.Context()); err == nil {
		t.Error("Ping without a server")
	}
	if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: "jobs"}); err == nil || transport.Permanent(err) {
		t.Errorf("Publish without a server: %v", err)
	}
	srv.Start()
	eventually(t, tr, "jobs", "4", "5")
	all(t, s, "1", "2", "3", "4", "5", "moved a")
	await(t, "Ping answers again", func() bool { return tr.Ping(t.Context()) == nil })
}

// What is settled while the network is away is written when it is back.
func TestSettlementsOutliveACut(t *testing.T) {
	t.Parallel()
	tr, _, p := remote(t)
	s := consume(t, tr, transport.SourceConfig{})
	for i := range 100 {
		publish(t, tr, "jobs", fmt.Sprint(i))
	}
	ds := fetch(t, s, 100, 100)
	p.Cut()
	await(t, "the connection is lost", func() bool { return !tr.nc.IsConnected() })
	for _, d := range ds {
		d.Ack()
	}
	if err := s.Extend(t.Context(), ds); err != nil {
		t.Errorf("extending what is settled: %v", err)
	}
	p.Restore()
	await(t, "all are settled", func() bool {
		n, err := tr.Backlog(t.Context(), "r")
		return err == nil && n == 0
	})
}

// Settlements that were written and never arrived are written again.
func TestSettlementsLostOnTheWay(t *testing.T) {
	t.Parallel()
	tr, _, p := remote(t)
	s := consume(t, tr, transport.SourceConfig{Lease: time.Hour})
	for i := range 100 {
		publish(t, tr, "jobs", fmt.Sprint(i))
	}
	ds := fetch(t, s, 100, 100)
	p.Silence()
	before := tr.nc.Stats().OutMsgs
	for _, d := range ds {
		d.Ack()
	}
	// How many the first batch holds is chance; one message may be the mover's request.
	await(t, "some are written", func() bool {
		n, err := tr.nc.Buffered()
		return tr.nc.Stats().OutMsgs >= before+2 && n == 0 && err == nil
	})
	p.Cut()
	await(t, "the connection is lost", func() bool { return !tr.nc.IsConnected() })
	p.Restore()
	await(t, "all are settled", func() bool {
		n, err := tr.Backlog(t.Context(), "r")
		return err == nil && n == 0
	})
}

func TestConsumerDeleted(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "1", "2")
	ds := fetch(t, s, 2, 4)
	ref := tr.routes["r"]
	if err := tr.js.DeleteConsumer(t.Context(), ref.stream, ref.consumer); err != nil {
		t.Fatal(err)
	}
	again := fetch(t, s, 2, 4)
	if !ds[0].Lost() || !ds[1].Lost() {
		t.Error("the first deliveries do not know that they are lost")
	}
	for _, d := range again {
		if !d.Redelivered() || d.Lost() {
			t.Errorf("%s: redelivered %v, lost %v", d.Position(), d.Redelivered(), d.Lost())
		}
		d.Ack()
	}
	publish(t, tr, "jobs", "3")
	if d := fetch(t, s, 1, 4)[0]; d.Redelivered() {
		t.Error("a new message counts as redelivered")
	}
}

// A consumer that is deleted while the window is full, so that no request of ours is there to be told.
func TestConsumerDeletedUnnoticed(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "1", "2")
	d := fetch(t, s, 1, 1)[0]
	ref := tr.routes["r"]
	if err := tr.js.DeleteConsumer(t.Context(), ref.stream, ref.consumer); err != nil {
		t.Fatal(err)
	}
	if err := s.Extend(t.Context(), []transport.Delivery{d}); err == nil {
		t.Error("a consumer that is gone was told to wait")
	}
	got := all(t, s, "1", "2")
	if !d.Lost() || got["1"] != 1 || got["2"] != 1 {
		t.Errorf("lost %v, got %v", d.Lost(), got)
	}
}

// A stream that is deleted and made again at run time gives new positions for the same sequences.
func TestStreamMadeAgain(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "1")
	d := fetch(t, s, 1, 1)[0]
	if err := tr.js.DeleteStream(t.Context(), tr.routes["r"].stream); err != nil {
		t.Fatal(err)
	}
	done := make(chan transport.Delivery, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		for ctx.Err() == nil {
			if ds, err := s.Fetch(ctx, 1); err == nil && len(ds) > 0 {
				done <- ds[0]
				return
			}
		}
		close(done)
	}()
	// The source makes the stream again, as it may; a publish before then finds none.
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	m := &transport.Message{Subject: "jobs", Body: []byte("2")}
	for err := errors.New("not yet"); err != nil && ctx.Err() == nil; err = tr.Publisher().Publish(ctx, m) {
	}
	again := <-done
	if again == nil {
		t.Fatal("nothing came")
	}
	if a, b := d.Position(), again.Position(); a == b || a[strings.LastIndex(a, "/"):] != b[strings.LastIndex(b, "/"):] {
		t.Errorf("positions %s and %s: want one sequence of two streams", a, b)
	}
	if !d.Lost() {
		t.Error("the delivery from the stream that is gone is not lost")
	}
	again.Ack()
}

// A server that comes late is waited for.
func TestServerComesLate(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, "")
	srv.Stop()
	tr := open(t, dial(t, ConnectConfig{URLs: []string{"nats://" + srv.Addr}, Log: logTo(t)}))
	subjects := transport.Subjects{Sources: []string{"jobs"}}
	err := tr.Prepare(t.Context(), subjects)
	if err == nil || transport.Permanent(err) || !strings.Contains(err.Error(), "connection to NATS") {
		t.Errorf("Prepare without a server: %v", err)
	}
	srv.Start()
	await(t, "Prepare succeeds", func() bool { return tr.Prepare(t.Context(), subjects) == nil })
}

// A consumer that goes on where it was: what it never handed out is new, what it did, and what a killed server may have forgotten to
// have handed out, is not.
func TestGoingOnWithAConsumer(t *testing.T) {
	t.Parallel()
	const last = 10 * deliveredMargin
	made := func(bound, life string, delivered uint64) *jetstream.ConsumerInfo {
		c := &jetstream.ConsumerInfo{Delivered: jetstream.SequenceInfo{Stream: delivered}}
		if bound != "" {
			c.Config.Metadata = map[string]string{metadataBound: bound, metadataLife: life}
		}
		return c
	}
	for name, tt := range map[string]struct {
		info *jetstream.ConsumerInfo
		life string
		want uint64
	}{
		"the server lives":                        {made("7", "a", 1000), "a", 7},
		"it lives, an earlier one came as far":    {made("150000", "a", 1000), "a", 150000},
		"it was killed, handed out some":          {made("7", "a", 1000), "b", 1000 + deliveredMargin},
		"it was killed, handed out almost all":    {made("7", "a", last-1), "b", last},
		"it was killed, an earlier one was ahead": {made("150000", "a", 1000), "b", 150000},
		"whether it lives cannot be told":         {made("7", "", 1000), "", 1000 + deliveredMargin},
		"made by another version of us":           {made("", "a", 1000), "a", last},
		"metadata of somebody else":               {made("far", "a", 1000), "a", last},
	} {
		if got := handedOut(tt.info, last, tt.life); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}

	var life atomic.Pointer[string]
	lives := func(name string) { life.Store(&name) }
	lives("first")
	tr := local(t, func(cfg *Config) { cfg.Life = func() string { return *life.Load() } })
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "1")
	if d := fetch(t, s, 1, 1)[0]; d.Redelivered() {
		t.Error("the first message of a new stream counts as redelivered")
	} else {
		d.Ack()
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, tr, "jobs", "2")
	s = consume(t, tr, transport.SourceConfig{})
	if d := fetch(t, s, 1, 1)[0]; d.Redelivered() {
		t.Error("a new message counts as redelivered although the server lives")
	} else {
		d.Ack()
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	lives("second")
	// So much that the margin is left behind.
	for range (deliveredMargin + 500) / 500 {
		publish(t, tr, "jobs", make([]string, 500)...)
	}
	publish(t, tr, "jobs", "last")
	s = consume(t, tr, transport.SourceConfig{})
	var first, final transport.Delivery
	for final == nil || string(final.Message().Body) != "last" {
		for _, d := range fetch(t, s, 1, 1024) {
			if first == nil {
				first = d
			}
			final = d
			d.Ack()
		}
	}
	if !first.Redelivered() || final.Redelivered() {
		t.Errorf("redelivered: the first %v, the last %v", first.Redelivered(), final.Redelivered())
	}
}
