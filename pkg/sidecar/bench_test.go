package sidecar_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/jetstream"
)

// benchBroker is a real server.
type benchBroker struct {
	name string
	head func(b *testing.B) string
}

var benchBrokers = []benchBroker{
	{"nats", func(b *testing.B) string {
		return fmt.Sprintf("transport: nats\nnats: {url: %q, group: %q}\n", benchNATS(b), services.UniqueName(b))
	}},
	{"embedded", func(b *testing.B) string {
		return fmt.Sprintf("transport: embedded\nembedded: {dir: %q, listen: %q}\n", b.TempDir(), freeAddr(b))
	}},
	{"redis", func(b *testing.B) string {
		return fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", services.Redis(b))
	}},
	{"kafka", func(b *testing.B) string {
		return fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%q], group: %q, partitions: 4}\n", services.Redis(b), services.Kafka(b), services.UniqueName(b))
	}},
}

// BenchmarkConsume takes a backlog of 1 KiB jobs through the whole line into a runner that does nothing, without claims and
// results, beside the broker's own client in the same run. The metric ratio is the median of line over client.
func BenchmarkConsume(b *testing.B) {
	for _, br := range benchBrokers {
		for _, window := range []int{64, 256} {
			b.Run(fmt.Sprintf("%s/window=%d", br.name, window), func(b *testing.B) {
				const n = 100_000
				var ours, ratios []float64
				for b.Loop() {
					raw := clientRate(b, br, n)
					line := lineRate(b, br, n, fmt.Sprintf(", concurrency: %d, dedup: off", window), nop)
					ours, ratios = append(ours, line), append(ratios, line/raw)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(ours), "jobs/s")
				b.ReportMetric(median(ratios), "ratio")
			})
		}
	}
}

// BenchmarkHandler5ms is what a runner that takes 5 ms leaves of the rate, at 256 jobs in flight: 51 200/s would be all of it.
func BenchmarkHandler5ms(b *testing.B) {
	for _, br := range benchBrokers {
		b.Run(br.name, func(b *testing.B) {
			const n = 50_000
			var rates []float64
			for b.Loop() {
				rates = append(rates, lineRate(b, br, n, ", concurrency: 256, dedup: off", func(context.Context, *job.Job) (*job.Result, error) {
					time.Sleep(5 * time.Millisecond)
					return &job.Result{}, nil
				}))
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(rates), "jobs/s")
		})
	}
}

// BenchmarkThrough takes 100-byte jobs from broker to broker: with results alone, and with claims and recorded outcomes too.
func BenchmarkThrough(b *testing.B) {
	for _, br := range benchBrokers {
		for name, route := range map[string]string{"dedup off": ", concurrency: 1024, dedup: off, to: %s_results", "claimed": ", concurrency: 1024, to: %s_results"} {
			b.Run(br.name+"/"+name, func(b *testing.B) {
				const n = 50_000
				var rates []float64
				for b.Loop() {
					rates = append(rates, lineRate(b, br, n, route, func(_ context.Context, j *job.Job) (*job.Result, error) {
						return &job.Result{Body: j.Body[:100]}, nil
					}))
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(rates), "jobs/s")
			})
		}
	}
}

// countSink counts jobs that are over.
type countSink func()

// Emit counts.
func (f countSink) Emit(e event.Event) {
	if e.Type == event.Finished {
		f()
	}
}

func nop(context.Context, *job.Job) (*job.Result, error) { return &job.Result{}, nil }

// clientRate is how many jobs a second the broker's own client takes from a backlog of n and settles.
func clientRate(b *testing.B, br benchBroker, n int) float64 {
	b.Helper()
	subject, cfg := fillWith(b, br, n, ", dedup: off")
	t, closeTransport, err := sidecar.Dial(b.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer closeTransport()
	took, err := t.(transport.Measured).Relay(b.Context(), subject, "", n)
	if err != nil {
		b.Fatal(err)
	}
	return float64(n) / took.Seconds()
}

// lineRate runs a backlog of n jobs through a sidecar and returns jobs per second, from the first fetch to the last job
// settled or, where results are published, to the last result.
func lineRate(b *testing.B, br benchBroker, n int, route string, run job.RunnerFunc) float64 {
	b.Helper()
	var done atomic.Int64
	finished := make(chan struct{})
	sink := countSink(func() {
		if done.Add(1) == int64(n) {
			close(finished)
		}
	})
	subject, cfg := fillWith(b, br, n, route)
	s, err := sidecar.New(b.Context(), cfg, sidecar.Options{Log: slog.New(slog.DiscardHandler), Runners: map[string]job.Runner{"m": run}, Sink: sink})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Running()
	began := time.Now()
	select {
	case <-finished:
	case err := <-ended:
		b.Fatalf("the sidecar ended: %v", err)
	case <-time.After(3 * time.Minute):
		b.Fatalf("%s: %d of %d jobs", subject, done.Load(), n)
	}
	took := time.Since(began)
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	return float64(n) / took.Seconds()
}

// fillWith writes n jobs of 1 KiB to a new subject and returns it with a configuration that consumes it.
func fillWith(b *testing.B, br benchBroker, n int, route string) (string, *config.Config) {
	b.Helper()
	body := make([]byte, 1<<10)
	name, cfg := fillJobs(b, br, n, route, "none.wasm", makeSubjects, func(m *transport.Message) { m.Body = body })
	cfg.Modules = nil
	return name, cfg
}

// fillJobs writes n jobs to a new subject, which prepare makes, and returns it with a configuration that takes them to a module.
func fillJobs(b *testing.B, br benchBroker, n int, route, module string, prepare func(*testing.B, *config.Config, string), fill func(*transport.Message)) (string, *config.Config) {
	b.Helper()
	name := services.UniqueName(b)
	if strings.Contains(route, "%s") {
		route = fmt.Sprintf(route, name)
	}
	text := br.head(b) + fmt.Sprintf("admin: {listen: off}\nmodules:\n  m: {source: %q}\nroutes:\n  - {name: jobs, from: %s, module: m%s}\n", module, name, route)
	cfg, err := config.Parse("bench.yaml", []byte(text), nil)
	if err != nil {
		b.Fatal(err)
	}
	prepare(b, cfg, name)
	if e := cfg.Embedded; cfg.Transport == config.Embedded {
		srv, err := jetstream.Embed(jetstream.EmbedConfig{Dir: e.Dir, Listen: e.Listen})
		if err != nil {
			b.Fatal(err)
		}
		defer func() {
			if err := srv.Shutdown(context.WithoutCancel(b.Context())); err != nil {
				b.Error(err)
			}
		}()
	}
	t, closeTransport, err := sidecar.Dial(b.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer closeTransport()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for left := n / 8; left > 0; left -= 500 {
				ms := make([]*transport.Message, min(500, left))
				for i := range ms {
					ms[i] = &transport.Message{Subject: name}
					fill(ms[i])
				}
				if err := t.Publisher().Publish(b.Context(), ms...); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return name, cfg
}

// makeSubjects runs a sidecar until all its subjects are there. It takes no jobs.
func makeSubjects(b *testing.B, cfg *config.Config, _ string) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	s := idle(b, cfg, sidecar.Options{Hold: make(chan struct{})})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Running()
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}

// idle is a sidecar whose jobs do nothing.
func idle(b *testing.B, cfg *config.Config, opt sidecar.Options) *sidecar.Sidecar {
	b.Helper()
	bare := *cfg
	bare.Modules = nil
	opt.Log, opt.Runners = slog.New(slog.DiscardHandler), map[string]job.Runner{"m": job.RunnerFunc(nop)}
	s, err := sidecar.New(b.Context(), &bare, opt)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// makeRoute runs a sidecar until its route has done a job, so that all that it needs of the broker is there.
func makeRoute(b *testing.B, cfg *config.Config, subject string) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	s := idle(b, cfg, sidecar.Options{Sink: countSink(cancel)})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Running()
	t, closeTransport, err := sidecar.Dial(b.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer closeTransport()
	if err := t.Publisher().Publish(b.Context(), &transport.Message{Subject: subject}); err != nil {
		b.Fatal(err)
	}
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}

// freeAddr is an address on loopback that nobody uses.
func freeAddr(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func median(xs []float64) float64 {
	slices.Sort(xs)
	return xs[len(xs)/2]
}

func benchNATS(b *testing.B) string {
	return "nats://" + strings.TrimPrefix(services.NATS(b), "nats://")
}
