package sidecar_test

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// another starts one more sidecar that shares the line's jobs; the returned function drains it. Beside one with an embedded server
// it is a client of that server.
func (l *line) another() func() {
	l.t.Helper()
	cfg := *l.cfg
	if cfg.Transport == config.Embedded {
		cfg.Transport, cfg.Store = config.NATS, config.NATS
		cfg.NATS.URLs = []string{"nats://" + cfg.Embedded.Listen}
	}
	admin := l.admin
	defer func() { l.admin = admin }()
	stop := l.startAs(&cfg, l.runners)
	l.t.Cleanup(stop)
	return stop
}

// load publishes n jobs with the numbers up to n as bodies, in batches and under keys of their own.
func (l *line) load(n int) error {
	const batch = 200
	for i := 0; i < n; i += batch {
		var ms []*transport.Message
		for k := i; k < min(i+batch, n); k++ {
			id := strconv.Itoa(k)
			ms = append(ms, &transport.Message{
				Subject: l.cfg.Routes[0].From, Key: []byte(id), Body: []byte(id), Header: job.Header{{Name: transport.HeaderJobID, Value: id}},
			})
		}
		if err := l.client.Publisher().Publish(l.t.Context(), ms...); err != nil {
			return err
		}
	}
	return nil
}

// D-14: ten thousand jobs go through workers that come and go under the load: every number comes out once, whatever else is
// published again is the same, and the sum is right.
func TestWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	const jobs = 10_000
	for _, b := range brokers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			f := func(_ context.Context, j *job.Job) (*job.Result, error) {
				return &job.Result{Body: fmt.Appendf(nil, "%s %d", j.Body, runs.Add(1))}, nil
			}
			l := openAt(t, slog.LevelWarn, strings.Replace(b.yaml(t), "partitions: 1", "partitions: 4", 1), "", runner(f)())
			sent := make(chan error, 1)
			go func() { sent <- l.load(jobs) }()
			var second, third func()
			results := map[string]string{}
			for len(results) < jobs {
				m := l.next(l.results, fmt.Sprintf("a result after %d", len(results)))
				id := m.Header.Get(transport.HeaderResultOf)
				if old, seen := results[id]; seen {
					if old != string(m.Body) {
						t.Fatalf("job %s has two results: %q and %q", id, old, m.Body)
					}
					continue
				}
				results[id] = string(m.Body)
				switch len(results) { // workers are added and removed
				case jobs / 10:
					second = l.another()
				case jobs * 3 / 10:
					third = l.another()
				case jobs * 5 / 10:
					second()
				case jobs * 6 / 10:
					l.another()
				case jobs * 8 / 10:
					third()
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			sum := 0
			for id, body := range results {
				number, _, _ := strings.Cut(body, " ")
				n, err := strconv.Atoi(number)
				if err != nil || number != id {
					t.Errorf("job %s has the result %q", id, body)
				}
				sum += n
			}
			if want := jobs * (jobs - 1) / 2; sum != want {
				t.Errorf("the sum is %d, want %d", sum, want)
			}
			t.Logf("%d jobs in %d runs", jobs, runs.Load())
			l.noMore(l.dead, "dead letter", 50*time.Millisecond)
		})
	}
}

// D-08: one id delivered a hundred times at once to three workers is run once; all that is published of it is one result.
func TestOneIDForThreeWorkers(t *testing.T) {
	t.Parallel()
	const deliveries = 100
	for _, b := range brokers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			f := func(context.Context, *job.Job) (*job.Result, error) {
				n := runs.Add(1)
				time.Sleep(100 * time.Millisecond) // the others come while it runs
				return &job.Result{Body: fmt.Append(nil, "run ", n)}, nil
			}
			l := open(t, strings.Replace(b.yaml(t), "partitions: 1", "partitions: 6", 1), ", lease: 2s", runner(f)())
			l.another()
			l.another()
			var ms []*transport.Message
			for i := range deliveries {
				ms = append(ms, &transport.Message{
					Subject: l.cfg.Routes[0].From, Key: fmt.Append(nil, "key", i), Body: []byte("x"), Header: job.Header{{Name: transport.HeaderJobID, Value: "same"}},
				})
			}
			if err := l.client.Publisher().Publish(t.Context(), ms...); err != nil {
				t.Fatal(err)
			}
			l.await("all deliveries are settled", func() bool {
				return strings.Count(l.log.String(), `msg="job seen again" job_id=same`) >= deliveries-1
			})
			if n := runs.Load(); n != 1 {
				t.Errorf("%d executions, want one", n)
			}
			l.submit("last", "x")
			for seen := 0; ; seen++ { // a broker may recognise the same result by its message id and keep one
				m := l.next(l.results, "a result")
				if m.Header.Get(transport.HeaderResultOf) == "last" {
					t.Logf("its result was kept %d times", seen)
					break
				}
				if string(m.Body) != "run 1" || m.Header.Get(transport.HeaderMsgID) != "same/jobs" {
					t.Errorf("another result: %q, %v", m.Body, m.Header)
				}
			}
			l.noMore(l.dead, "dead letter", 50*time.Millisecond)
		})
	}
}
