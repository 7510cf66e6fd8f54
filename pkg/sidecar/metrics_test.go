package sidecar_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// sum adds up the series of a metric that have the labels, each written name="value".
func (l *line) sum(metric string, labels ...string) float64 {
	l.t.Helper()
	total := 0.0
series:
	for text := range strings.Lines(l.get("/metrics")) {
		series, value, _ := strings.Cut(strings.TrimSpace(text), " ")
		name, have, _ := strings.Cut(series, "{")
		if name != metric {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(have, label) {
				continue series
			}
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			l.t.Fatalf("%q: %v", text, err)
		}
		total += n
	}
	return total
}

// execution and queue-wait histograms, in-flight, backlog, depth of dead letters, reaped, fenced, retries, each moved by what it
// counts. A job runs on a sidecar that is cut off from its store for longer than the lease; another one takes it over. The
// embedded server has no second sidecar.
func TestMetricsOfTheLine(t *testing.T) {
	t.Parallel()
	for name, heads := range map[string]func(t *testing.T) (far, near string, cut, restore func()){
		"redis": func(t *testing.T) (string, string, func(), func()) {
			p := services.NewProxy(t, services.Redis(t))
			head := func(addr string) string { return fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", addr) }
			return head(p.Addr()), head(services.Redis(t)), p.Cut, p.Restore
		},
		"nats": func(t *testing.T) (string, string, func(), func()) {
			target, group := strings.TrimPrefix(natsURL(t), "nats://"), services.UniqueName(t)
			p := services.NewProxy(t, target)
			head := func(addr string) string {
				return fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\", group: %q}\n", addr, group)
			}
			return head(p.Addr()), head(target), p.Cut, p.Restore
		},
		"kafka": func(t *testing.T) (string, string, func(), func()) {
			p, group := services.NewProxy(t, services.Redis(t)), services.UniqueName(t)
			head := func(addr string) string {
				return fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%q], group: %q, partitions: 2}\n", addr, services.Kafka(t), group)
			}
			return head(p.Addr()), head(services.Redis(t)), p.Cut, p.Restore
		},
		"embedded": func(t *testing.T) (string, string, func(), func()) {
			return brokers[0].yaml(t), "", nil, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			farHead, nearHead, cut, restore := heads(t)
			const route = ", concurrency: 4, lease: 2s, dedup: {claim: always}, retry: {max_attempts: 3, backoff: 20ms}"
			gate := make(chan struct{})
			free := sync.OnceFunc(func() { close(gate) })
			far := open(t, farHead, route, map[string]job.Runner{"m": job.RunnerFunc(func(_ context.Context, j *job.Job) (*job.Result, error) {
				switch string(j.Body) {
				case "bad":
					return nil, errors.New("always fails")
				case "long":
					<-gate
				}
				return &job.Result{Body: j.Body, Duration: time.Millisecond}, nil
			})})
			t.Cleanup(free)
			if nearHead != "" {
				far.dial(nearHead)
			}
			far.submit("good", "good")
			far.submit("bad", "bad")
			far.next(far.dead, "the dead letter")
			moved := func(l *line, want float64, metric string, labels ...string) {
				t.Helper()
				l.await(fmt.Sprintf("%s%v is %v", metric, labels, want), func() bool { return l.sum(metric, labels...) == want })
			}
			ofRoute, ofModule := `route="jobs"`, `module="m"`
			moved(far, 2, "wasmsidecar_retries_total", ofRoute, ofModule)
			moved(far, 1, "wasmsidecar_dead_letters_total", ofRoute, ofModule)
			moved(far, 4, "wasmsidecar_run_seconds_count", ofRoute, ofModule) // one good, three bad
			moved(far, 2, "wasmsidecar_wait_seconds_count", ofRoute)

			far.stop() // what is counted now and then is counted at the start
			send := func() {
				far.await("the job is taken", func() bool {
					m := &transport.Message{
						Subject: far.cfg.Routes[0].From, Body: []byte("long"), Header: job.Header{{Name: transport.HeaderJobID, Value: "long"}},
					}
					return far.client.Publisher().Publish(t.Context(), m) == nil
				})
			}
			if nearHead != "" {
				send()
			}
			far.restart()
			if nearHead == "" {
				send()
			}
			moved(far, 1, "wasmsidecar_in_flight", ofRoute)
			moved(far, 1, "wasmsidecar_backlog", ofRoute)
			moved(far, 1, "wasmsidecar_dead_letter_depth", fmt.Sprintf("topic=%q", far.cfg.Routes[0].DeadLetter))
			moved(far, 0, "wasmsidecar_gap_messages_total")
			if nearHead == "" {
				free()
				moved(far, 0, "wasmsidecar_in_flight", ofRoute)
				return
			}

			near := &line{t: t, cfg: parse(t, nearHead, route), log: &syncBuffer{}, client: far.client}
			near.cfg.Routes = far.cfg.Routes
			near.stop = near.start(map[string]job.Runner{"m": job.RunnerFunc(func(_ context.Context, j *job.Job) (*job.Result, error) {
				return &job.Result{Body: j.Body, Duration: time.Millisecond}, nil
			})})
			defer near.stop()
			cut()
			n := 0
			near.await("the job is taken over", func() bool { // on Kafka its first message stays where it is
				if n++; n%4 == 0 {
					near.submit("long", "long", job.Field{Name: "Wasm-Key", Value: fmt.Sprint(n)})
				}
				return near.sum("wasmsidecar_crashes_total", ofRoute) == 1
			})
			restore()
			free()
			moved(far, 1, "wasmsidecar_fenced_total", ofRoute)
			moved(far, 0, "wasmsidecar_in_flight", ofRoute)
			moved(near, 0, "wasmsidecar_gap_messages_total")
			moved(far, 0, "wasmsidecar_gap_messages_total")
		})
	}
}
