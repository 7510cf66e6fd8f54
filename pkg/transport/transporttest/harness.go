// Package transporttest holds the suite that every implementation of transport.Transport passes, and a transport whose calls
// can be made to fail.
//
// Each case is a defect that a consumer of this kind has had: jobs lost behind others, run twice, stuck, or written where no
// one reads.
package transporttest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Harness tells the suite about one implementation.
type Harness struct {
	// Open connects to the broker, the same one each time. The suite closes the transport.
	Open func(t testing.TB) transport.Transport
	// NewSubject names a subject that nobody has used. It need not exist: the suite calls Prepare.
	NewSubject func(t testing.TB) string
	// RawPublish writes a record as a foreign client does: the body alone, in the broker's plainest form. The subject is
	// prepared.
	RawPublish func(t testing.TB, subject string, body []byte)

	// DropGroup deletes what the broker keeps of a subject's consumers (group, durable), while a source is open. Nil where
	// there is no such thing.
	DropGroup func(t testing.TB, subject string)
	// RecreateSubject deletes the subject with all its messages and makes it anew, empty; no source is open. Nil where that
	// cannot be done.
	RecreateSubject func(t testing.TB, subject string)
	// Trim makes the broker drop all but the newest keep messages of a subject, as its retention does. Nil where it drops nothing.
	Trim func(t testing.TB, subject string, keep int)
	// OpenCuttable connects over a network that cut interrupts: every connection breaks and none comes about for d, after
	// which cut returns. Nil where there is no network. See Proxy.
	OpenCuttable func(t testing.TB) (tr transport.Transport, cut func(d time.Duration))

	// Beside opens a store in the database of what Open connects to. Nil where there is none whose transactions the transport can take
	// part in.
	Beside func(t testing.TB) store.Store
	// Spoil makes a subject one that refuses every message; with Beside.
	Spoil func(t testing.TB, subject string)

	// Lease is asked for in SourceConfig; 0 for 2 s.
	Lease time.Duration
	// Watermark says that a settled message may come back when one before it was not settled, as it is on Kafka.
	Watermark bool
	// Slack is how much later than promised things may happen on a busy machine; 0 for 10 s.
	Slack time.Duration
}

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

// suite is a Harness at work.
type suite struct{ Harness }

// open connects, and closes when the test is over.
func (s *suite) open(t testing.TB) transport.Transport {
	t.Helper()
	tr := s.Open(t)
	t.Cleanup(func() {
		closeAll(t, tr)
		if n := gaps(tr); n != 0 {
			t.Errorf("%d messages are counted as dropped by the broker; none was", n)
		}
	})
	return tr
}

type closer interface {
	Close(ctx context.Context) error
}

func closeAll(t testing.TB, cs ...closer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, c := range cs {
		if err := c.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// jobs returns a connection and a new subject that jobs come from.
func (s *suite) jobs(t testing.TB) (transport.Transport, string) {
	t.Helper()
	tr, subject := s.open(t), s.NewSubject(t)
	prepare(t, tr, transport.Subjects{Sources: []string{subject}})
	return tr, subject
}

func prepare(t testing.TB, tr transport.Transport, subjects transport.Subjects) {
	t.Helper()
	persist(t, fmt.Sprintf("prepare %v", subjects), func(ctx context.Context) error { return tr.Prepare(ctx, subjects) })
}

// persist calls f until it succeeds or fails for good.
func persist(t testing.TB, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		if transport.Permanent(err) || errors.Is(err, transport.ErrClosed) || ctx.Err() != nil {
			t.Fatalf("%s: %v", what, err)
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// pause waits between two tries.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (s *suite) config(subject string) transport.SourceConfig {
	route := strings.NewReplacer(".", "-", "*", "any", ">", "all").Replace(subject)
	return transport.SourceConfig{Route: route, Subject: subject, Limit: 256, Lease: s.Lease, DrainBudget: 2 * time.Second}
}

// source opens a source that is closed when the test is over.
func (s *suite) source(t testing.TB, tr transport.Transport, subject string) transport.Source {
	t.Helper()
	return s.sourceWith(t, tr, s.config(subject))
}

func (s *suite) sourceWith(t testing.TB, tr transport.Transport, cfg transport.SourceConfig) transport.Source {
	t.Helper()
	var src transport.Source
	persist(t, "open source of "+cfg.Subject, func(ctx context.Context) (err error) {
		src, err = tr.Source(ctx, cfg)
		return err
	})
	t.Cleanup(func() { closeAll(t, src) })
	return src
}

func publish(t testing.TB, tr transport.Transport, ms ...*transport.Message) {
	t.Helper()
	persist(t, "publish", func(ctx context.Context) error { return tr.Publisher().Publish(ctx, ms...) })
}

// numbered makes messages whose bodies are the numbers from 0 to n-1.
func numbered(subject string, n int) []*transport.Message {
	ms := make([]*transport.Message, n)
	for i := range ms {
		ms[i] = &transport.Message{Subject: subject, Body: fmt.Append(nil, i)}
	}
	return ms
}

// fetch returns n deliveries, or fails the test when they do not come.
func fetch(t testing.TB, src transport.Source, n int) []transport.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out []transport.Delivery
	for len(out) < n {
		ds, err := src.Fetch(ctx, n-len(out))
		if ctx.Err() != nil || errors.Is(err, transport.ErrClosed) {
			t.Fatalf("fetch: %d of %d messages came: %v", len(out), n, err)
		}
		if len(ds) > n-len(out) {
			t.Fatalf("fetch returned %d deliveries and was asked for %d", len(ds), n-len(out))
		}
		out = append(out, ds...)
		if err != nil {
			pause(ctx, 20*time.Millisecond)
		}
	}
	return out
}

// during acknowledges and returns what comes within d, at most 100 000 deliveries.
func during(t testing.TB, src transport.Source, d time.Duration) []transport.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var out []transport.Delivery
	for ctx.Err() == nil && len(out) < 100_000 {
		ds, err := src.Fetch(ctx, 256)
		ackAll(ds)
		out = append(out, ds...)
		if errors.Is(err, transport.ErrClosed) {
			t.Fatalf("fetch: %v", err)
		}
		if err != nil {
			pause(ctx, 20*time.Millisecond)
		}
	}
	return out
}

// quiet fails the test when anything comes within d.
func quiet(t testing.TB, src transport.Source, d time.Duration, why string) {
	t.Helper()
	for _, x := range during(t, src, d) {
		t.Errorf("%s: %q came from %s", why, clip(x.Message().Body), x.Position())
	}
}

// settled is how long to listen before it is believed that nothing comes: longer than the lease.
func (s *suite) settled() time.Duration { return s.Lease + s.Lease/2 }

func ackAll(ds []transport.Delivery) {
	for _, d := range ds {
		d.Ack()
	}
}

func bodies(ds []transport.Delivery) map[string]int {
	out := map[string]int{}
	for _, d := range ds {
		out[string(d.Message().Body)]++
	}
	return out
}

func clip(b []byte) []byte {
	if len(b) > 40 {
		return b[:40]
	}
	return b
}

// tally counts what happened to messages, by body.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *tally) add(body []byte) (total int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[string(body)]++
	return len(c.n)
}

func (c *tally) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.n)
}

// await polls until ok says true.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !ok() {
		if ctx.Err() != nil {
			t.Fatalf("%s: not within %v", what, patience)
		}
		pause(ctx, 10*time.Millisecond)
	}
}
