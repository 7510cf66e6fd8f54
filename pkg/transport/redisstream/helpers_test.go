package redisstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"go.uber.org/goleak"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestMain(m *testing.M) {
	logging.Disable() // go-redis has one logger for the process, and these tests cut many connections
	goleak.VerifyTestMain(m)
}

// patience bounds everything that a test waits for.
const patience = 30 * time.Second

func newClient(t testing.TB, cfg ClientConfig) redis.UniversalClient {
	t.Helper()
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func client(t testing.TB, addr string) redis.UniversalClient {
	t.Helper()
	return newClient(t, ClientConfig{Addrs: []string{addr}})
}

// open makes a transport that may create streams. mend changes the configuration.
func open(t testing.TB, c redis.UniversalClient, mend ...func(*Config)) *Transport {
	t.Helper()
	cfg := Config{Client: c, Group: "workers", CreateStreams: true}
	for _, f := range mend {
		f(&cfg)
	}
	tr, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := tr.Close(ctx); err != nil {
			t.Errorf("close transport: %v", err)
		}
	})
	return tr
}

func openSource(t testing.TB, tr *Transport, stream string, lease time.Duration) *source {
	t.Helper()
	src, err := tr.Source(t.Context(), transport.SourceConfig{Route: "r", Subject: stream, Limit: 256, Lease: lease})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeSource(t, src) })
	return src.(*source)
}

func closeSource(t testing.TB, src transport.Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := src.Close(ctx); err != nil {
		t.Errorf("close source: %v", err)
	}
}

// fetch waits for n deliveries. It goes on after errors, as the window does.
func fetch(t testing.TB, src transport.Source, n int) []transport.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out []transport.Delivery
	var last error
	for len(out) < n {
		ds, err := src.Fetch(ctx, n-len(out))
		if ctx.Err() != nil {
			t.Fatalf("fetched %d of %d deliveries, last error: %v", len(out), n, last)
		}
		if len(ds) > n-len(out) {
			t.Fatalf("fetched %d deliveries, more than the %d asked for", len(ds), n-len(out))
		}
		if err != nil {
			last = err
			pause(ctx, 20*time.Millisecond)
		}
		out = append(out, ds...)
	}
	return out
}

func pause(ctx context.Context, d time.Duration) {
	tm := time.NewTimer(d)
	defer tm.Stop()
	select {
	case <-tm.C:
	case <-ctx.Done():
	}
}

// none proves that nothing comes for so long.
func none(t testing.TB, src transport.Source, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for ctx.Err() == nil {
		ds, err := src.Fetch(ctx, 10)
		if err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			t.Fatalf("unexpected delivery %s: %q", d.Position(), d.Message().Body)
		}
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); pause(t.Context(), 10*time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func publish(t testing.TB, tr *Transport, ms ...*transport.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := tr.Publisher().Publish(ctx, ms...); err != nil {
		t.Fatal(err)
	}
}

func msg(subject, body string, header ...string) *transport.Message {
	m := &transport.Message{Subject: subject, Body: []byte(body)}
	for i := 0; i+1 < len(header); i += 2 {
		m.Header = append(m.Header, job.Field{Name: header[i], Value: header[i+1]})
	}
	return m
}

func bodies(ds []transport.Delivery) []string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = string(d.Message().Body)
	}
	slices.Sort(out)
	return out
}

func xadd(t testing.TB, c redis.UniversalClient, stream string, fields ...string) string {
	t.Helper()
	id, err := c.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: fields}).Result()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func empty(t testing.TB, c redis.UniversalClient, stream string) {
	t.Helper()
	eventually(t, "stream "+stream+" is empty", func() bool { return c.XLen(t.Context(), stream).Val() == 0 })
}

// worker runs jobs like a window does: as many at once as limit, extended until they are done.
type worker struct {
	src  transport.Source
	mu   sync.Mutex
	runs map[string]int
}

func (w *worker) count(body string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runs[body]
}

func (w *worker) distinct() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.runs)
}

// work starts a worker; each job takes so long. It ends with the test, before the source does.
func work(t testing.TB, src transport.Source, limit int, takes time.Duration) *worker {
	w := &worker{src: src, runs: make(map[string]int)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	slots := make(chan struct{}, limit)
	var mu sync.Mutex
	out := make(map[transport.Delivery]bool)
	wg.Go(func() {
		for ctx.Err() == nil {
			slots <- struct{}{}
			<-slots
			ds, err := src.Fetch(ctx, limit-len(slots))
			if errors.Is(err, transport.ErrClosed) {
				return
			}
			if err != nil {
				pause(ctx, 20*time.Millisecond)
			}
			for _, d := range ds {
				slots <- struct{}{}
				mu.Lock()
				out[d] = true
				mu.Unlock()
				wg.Go(func() {
					w.mu.Lock()
					w.runs[string(d.Message().Body)]++
					w.mu.Unlock()
					pause(ctx, takes)
					mu.Lock()
					delete(out, d)
					mu.Unlock()
					d.Ack()
					<-slots
				})
			}
		}
	})
	if lease := src.Lease(); lease > 0 {
		wg.Go(func() {
			for ctx.Err() == nil {
				pause(ctx, lease/4)
				mu.Lock()
				ds := make([]transport.Delivery, 0, len(out))
				for d := range out {
					ds = append(ds, d)
				}
				mu.Unlock()
				_ = src.Extend(ctx, ds) // the server may be away
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return w
}

// numbered publishes n jobs.
func numbered(t testing.TB, tr *Transport, stream string, n int) {
	t.Helper()
	ms := make([]*transport.Message, n)
	for i := range ms {
		ms[i] = msg(stream, fmt.Sprint(i))
	}
	for c := range slices.Chunk(ms, 500) {
		publish(t, tr, c...)
	}
}

func shared(t testing.TB) (redis.UniversalClient, string) {
	t.Helper()
	return client(t, services.Redis(t)), services.UniqueName(t)
}
