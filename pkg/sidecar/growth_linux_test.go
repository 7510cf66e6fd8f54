package sidecar_test

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// What a job costs does not grow with the outcomes that are stored, and an outcome takes little room. Not parallel: it is processor time that is
// compared, of this process too.
func TestOutcomesCostTheSame(t *testing.T) {
	for _, broker := range []string{"redis", "nats"} {
		t.Run(broker, func(t *testing.T) {
			p := newPlant(t, broker, false)
			x := p.run(p.config("upper-c.wasm", ", concurrency: 256", 1), nil)
			x.release()
			const n = 10_000
			before := p.use()
			first, last := x.outcomes(n, t.Logf)
			// A part is a tenth, and processor time is told in hundredths of a second.
			if a, b := first.own+first.servers, last.own+last.servers; b > 3*a+100 {
				t.Errorf("a job takes %.0f µs with %d outcomes stored, and %.0f with a fifth of them", b, n, a)
			}
			room := float64(files(t, p.data)) / n
			if p.data == "" {
				room = float64(p.use().memTheir-before.memTheir) / n
			}
			if room > 5000 {
				t.Errorf("an outcome of 100 bytes takes %.0f bytes", room)
			}
		})
	}
}

// Jobs that are due later, many of them, begin within a second of that on each broker, and none too early.
func TestSchedulesFireOnTime(t *testing.T) {
	t.Parallel()
	for _, broker := range []string{"redis", "nats", "kafka"} {
		t.Run(broker, func(t *testing.T) {
			t.Parallel()
			late, control := newPlant(t, broker, false).schedules(4000, 15*time.Second, 8*time.Second, t.Logf)
			if late[0] < 0 {
				t.Errorf("a job began %s before it was due", -late[0])
			}
			// What the machine takes for any job comes on top.
			if limit := time.Second + 3*control.at(99); late.at(99) > limit {
				t.Errorf("one of a hundred jobs began more than %s after it was due; what was not scheduled took %s", late.at(99), control.at(99))
			}
		})
	}
}

// A hundred routes work, and while they are idle each costs little: no polling in a tight loop, few goroutines, one connection. Not parallel: it
// counts the goroutines of this process.
func TestManyRoutes(t *testing.T) {
	for _, broker := range []string{"redis", "embedded"} {
		t.Run(broker, func(t *testing.T) {
			const routes = 100
			p := newPlant(t, broker, false)
			before := runtime.NumGoroutine()
			x := p.run(p.config("upper-c.wasm", ", concurrency: 64", routes), func(context.Context, *job.Job) (*job.Result, error) { return &job.Result{}, nil })
			x.release()
			x.fill(10*routes, fillBody)
			x.await(10 * routes)
			// Ten jobs of a route have ten workers at most.
			if n := runtime.NumGoroutine() - before; n > 40*routes {
				t.Errorf("%d goroutines for %d routes", n, routes)
			}
			if broker != "redis" {
				return
			}
			client := redis.NewClient(&redis.Options{Addr: x.cfg.Redis.Addrs[0]})
			defer client.Close()
			count := func() (connections, commands int64) {
				info := client.InfoMap(t.Context(), "clients", "stats")
				if info.Err() != nil {
					t.Fatal(info.Err())
				}
				return number(t, info.Item("Clients", "connected_clients")), number(t, info.Item("Stats", "total_commands_processed"))
			}
			_, old := count()
			began := time.Now()
			time.Sleep(2 * time.Second)
			connections, commands := count()
			if connections > 2*routes {
				t.Errorf("%d connections for %d routes", connections, routes)
			}
			if each := float64(commands-old) / routes / time.Since(began).Seconds(); each > 25 {
				t.Errorf("%.0f commands a second for each idle route", each)
			}
		})
	}
}

// A job that fails for ever is tried as its backoff says, on each broker, and never in a loop of its own.
func TestFailingForEver(t *testing.T) {
	t.Parallel()
	for _, broker := range []string{"redis", "nats", "embedded", "kafka"} {
		t.Run(broker, func(t *testing.T) {
			t.Parallel()
			p := newPlant(t, broker, false)
			x := p.run(p.config("trap.wasm", ", concurrency: 64, retry: {max_attempts: 0}", 1), nil)
			x.release()
			x.fill(1, func(_ int, m *transport.Message) { m.Body = jobBody })
			deadline := time.Now().Add(30 * time.Second)
			for p.failed.Load() < 3 && time.Now().Before(deadline) {
				time.Sleep(10 * time.Millisecond)
			}
			// By chance waits are short, but a hundredth of their ceiling, which doubles, at least: seventy attempts in ten seconds are never to be seen.
			time.Sleep(5 * time.Second)
			if n := p.failed.Load(); n < 3 || n > 70 {
				t.Errorf("%d attempts", n)
			}
		})
	}
}
