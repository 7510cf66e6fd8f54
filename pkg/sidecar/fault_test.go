package sidecar_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// A job that takes longer than every lease is run once: deliveries and claims are kept alive.
func TestJobLongerThanTheLease(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	runs := map[string]int{}
	f := func(ctx context.Context, j *job.Job) (*job.Result, error) {
		mu.Lock()
		runs[j.Subject]++
		mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Second):
		}
		return &job.Result{Body: fmt.Appendf(nil, "attempt %d", j.Attempt)}, nil
	}
	each(t, ", lease: 1s", runner(f), func(l *line) {
		if l.cfg.Transport != config.Embedded { // whose directory one sidecar has to itself
			defer l.start(map[string]job.Runner{"m": job.RunnerFunc(f)})()
		}
		l.submit("long", "x")
		if m := l.next(l.results, "the result"); string(m.Body) != "attempt 1" {
			l.t.Errorf("result %q", m.Body)
		}
		mu.Lock()
		defer mu.Unlock()
		if n := runs[l.cfg.Routes[0].From]; n != 1 {
			l.t.Errorf("%d executions, want 1", n)
		}
	})
}

// A cut of eight seconds between the sidecar and its broker and store loses nothing, and is over by itself.
func TestNetworkCut(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]func(addr string) string{
		"nats": func(addr string) string {
			return fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\", group: %q}\n", addr, services.UniqueName(t))
		},
		"redis": func(addr string) string { return fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", addr) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := services.Redis(t)
			if name == "nats" {
				target = strings.TrimPrefix(services.NATS(t), "nats://")
			}
			proxy := services.NewProxy(t, target)
			f := job.RunnerFunc(func(_ context.Context, j *job.Job) (*job.Result, error) {
				time.Sleep(5 * time.Millisecond)
				return &job.Result{Body: j.Body}, nil
			})
			l := open(t, head(proxy.Addr()), ", lease: 3s", map[string]job.Runner{"m": f})
			l.dial(head(target)) // the client is not cut off
			const jobs = 600
			go func() {
				for range 2 {
					time.Sleep(300 * time.Millisecond)
					proxy.Cut()
					time.Sleep(8 * time.Second)
					proxy.Restore()
				}
			}()
			for i := range jobs {
				l.submit(fmt.Sprint("job", i), fmt.Sprint(i))
				if i%100 == 0 {
					time.Sleep(200 * time.Millisecond)
				}
			}
			seen := map[string]bool{}
			for len(seen) < jobs {
				m := l.next(l.results, fmt.Sprintf("a result, after %d", len(seen)))
				if m.Header.Get("Wasm-Ok") != "true" {
					t.Fatalf("a job failed by the cut: %s", m.Body)
				}
				seen[m.Header.Get("Wasm-Result-Of")] = true
			}
			l.noMore(l.dead, "dead letter", 200*time.Millisecond)
		})
	}
}

// A state stream that is deleted while jobs flow is made again, and every job that is sent afterwards has a result.
func TestStateStreamDeleted(t *testing.T) {
	t.Parallel()
	head := fmt.Sprintf("transport: nats\nnats: {url: %q, group: %q}\n", natsURL(t), services.UniqueName(t))
	l := open(t, head, ", lease: 3s", map[string]job.Runner{"m": job.RunnerFunc(func(_ context.Context, j *job.Job) (*job.Result, error) {
		time.Sleep(5 * time.Millisecond)
		return &job.Result{Body: j.Body}, nil
	})})
	nc, err := nats.Connect(natsURL(t))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream := "WASM_STORE_" + l.cfg.NATS.Group
	missing := map[string]bool{}
	const jobs = 300
	for i := range jobs {
		if i == jobs/3 {
			l.next(l.results, "the first result")
			if err := js.DeleteStream(t.Context(), stream); err != nil {
				t.Fatal(err)
			}
		}
		id := fmt.Sprint("job", i)
		if i >= jobs/3 {
			missing[id] = true
		}
		l.submit(id, id)
	}
	for len(missing) > 0 {
		m := l.next(l.results, fmt.Sprintf("a result; %d are missing", len(missing)))
		if m.Header.Get("Wasm-Ok") != "true" {
			t.Errorf("a job failed: %s", m.Body)
		}
		delete(missing, m.Header.Get("Wasm-Result-Of"))
	}
	l.noMore(l.dead, "dead letter", 200*time.Millisecond)
	if _, err := js.Stream(t.Context(), stream); err != nil {
		t.Errorf("the stream was not made again: %v", err)
	}
	if !strings.Contains(l.log.String(), "the store's stream was deleted and is made again") {
		t.Error("the log does not say that outcomes are gone")
	}
}
