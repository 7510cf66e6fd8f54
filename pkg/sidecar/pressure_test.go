package sidecar_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// get reads a page of the admin server.
func (l *line) get(path string) string {
	l.t.Helper()
	req, err := http.NewRequestWithContext(l.t.Context(), http.MethodGet, "http://"+l.admin+path, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(b)
}

// paused returns what /readyz says of the route; "" where it takes jobs.
func (l *line) paused() string {
	l.t.Helper()
	var page struct {
		Checks []struct {
			Name, Detail string
			OK           bool
		}
	}
	if err := json.Unmarshal([]byte(l.get("/readyz")), &page); err != nil {
		l.t.Fatal(err)
	}
	for _, c := range page.Checks {
		if c.Name == "route jobs" && !c.OK {
			return c.Detail
		}
	}
	return ""
}

// await polls until the condition holds.
func (l *line) await(what string, holds func() bool) {
	l.t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("waited in vain: %s\n%s", what, l.log)
		}
	}
}

// metric says whether the metrics have the line.
func (l *line) metric(line string) bool { return strings.Contains(l.get("/metrics"), line+"\n") }

// A module that keeps failing pauses its route on every broker; jobs wait without an attempt, and all are done once it works.
func TestBreakerOfTheLine(t *testing.T) {
	t.Parallel()
	for _, b := range brokers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var works atomic.Bool
			var failed atomic.Int32
			// The wait is too long to be made in the slot, so that each attempt is told to the breaker.
			f := func(_ context.Context, j *job.Job) (*job.Result, error) {
				if !works.Load() {
					failed.Add(1)
					return nil, &job.Error{Kind: job.KindUpstream, Err: errors.New("the shop is away"), RetryAfter: 2100 * time.Millisecond}
				}
				return &job.Result{Body: j.Body}, nil
			}
			l := open(t, b.yaml(t), ", concurrency: 4, retry: {max_attempts: 0}, breaker: {consecutive: 1, open: 1s}",
				map[string]job.Runner{"m": job.RunnerFunc(f)})
			const jobs = 40
			for i := range jobs {
				l.submit(fmt.Sprint("job", i), "x")
			}
			l.await("the breaker opens", func() bool { return strings.Contains(l.paused(), "the shop is away") })
			if !l.metric(`wasmsidecar_paused{reason="breaker",route="jobs"} 1`) {
				t.Error("the metrics do not say that the breaker is open")
			}
			before := failed.Load()
			time.Sleep(2 * time.Second)
			// Four may have been under way; then one a second tries.
			if n := failed.Load() - before; n > 8 {
				t.Errorf("%d attempts in two seconds of an open breaker", n)
			}
			works.Store(true)
			done := map[string]bool{}
			for len(done) < jobs {
				m := l.next(l.results, fmt.Sprintf("a result after %d", len(done)))
				if m.Header.Get(transport.HeaderOK) != "true" {
					t.Fatalf("a job failed: %s", m.Body)
				}
				done[m.Header.Get(transport.HeaderResultOf)] = true
			}
			l.await("the route takes jobs", func() bool { return l.paused() == "" })
			l.noMore(l.dead, "dead letter", 100*time.Millisecond)
		})
	}
}

// S-08, S-09: while the store is away no job runs and no message is settled, also when the sidecar ends meanwhile; /readyz and the metrics
// say why. With on_store_error: run jobs go on.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		transport, mode string
		ends            bool // the sidecar does, while the store is away
	}{
		{"nats", "pause", false}, {"nats", "run", false}, {"kafka", "pause", true}, {"embedded", "pause", true},
	} {
		t.Run(c.transport+" "+c.mode, func(t *testing.T) {
			t.Parallel()
			st := services.StartRedis(t, "--appendonly", "yes")
			var runs atomic.Int32
			f := func(_ context.Context, j *job.Job) (*job.Result, error) {
				runs.Add(1)
				return &job.Result{Body: j.Body}, nil
			}
			head := fmt.Sprintf("transport: %s\nstore: redis\non_store_error: %s\nredis: {addr: %q}\n", c.transport, c.mode, st.Addr)
			switch c.transport {
			case config.NATS:
				head += fmt.Sprintf("nats: {url: %q, group: %q}\n", natsURL(t), services.UniqueName(t))
			case config.Kafka:
				head += fmt.Sprintf("kafka: {brokers: [%q], group: %q, partitions: 1}\n", services.Kafka(t), services.UniqueName(t))
			case config.Embedded:
				head += fmt.Sprintf("embedded: {dir: %q, listen: \"127.0.0.1:%d\"}\n", t.TempDir(), freePort(t))
			}
			l := open(t, head, ", lease: 2s, dedup: {claim: always}", map[string]job.Runner{"m": job.RunnerFunc(f)})
			result := func(id string) {
				t.Helper()
				for l.next(l.results, "the result of "+id).Header.Get(transport.HeaderResultOf) != id {
				}
			}
			l.submit("first", "x")
			result("first")
			st.Kill()
			l.submit("second", "x")
			if c.mode == "run" {
				result("second")
				if l.paused() != "" {
					t.Errorf("paused: %s", l.paused())
				}
			} else {
				l.await("the route pauses", func() bool { return strings.Contains(l.paused(), "paused (store)") })
				if !l.metric(`wasmsidecar_paused{reason="store",route="jobs"} 1`) {
					t.Error("the metrics do not say that the store is away")
				}
				if n := runs.Load(); n != 1 {
					t.Errorf("%d jobs ran without the store", n-1)
				}
			}
			if ran := l.metric(`wasmsidecar_unclaimed_total{reason="store",route="jobs"} 1`); ran != (c.mode == "run") {
				t.Errorf("the metrics say that a job ran without the store: %t", ran)
			}
			if c.ends {
				l.stop()
			}
			st.Start()
			if c.ends {
				l.restart()
				l.connect(l.cfg)
			}
			if c.mode == "pause" {
				result("second")
			}
			l.await("the store is back", func() bool { return l.metric(`wasmsidecar_store_up{store="redis"} 1`) })
			l.submit("third", "x")
			result("third")
			if n := runs.Load(); n != 3 {
				t.Errorf("%d runs, want three", n)
			}
		})
	}
}
