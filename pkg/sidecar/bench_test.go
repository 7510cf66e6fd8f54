package sidecar_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// benchBroker is a real server, and how its own client consumes a backlog as fast as it can.
type benchBroker struct {
	name string
	head func(b *testing.B) string
	raw  func(b *testing.B, subject string, n int)
}

var benchBrokers = []benchBroker{
	{"nats", func(b *testing.B) string {
		return fmt.Sprintf("transport: nats\nnats: {url: %q, group: %q}\n", benchNATS(b), services.UniqueName(b))
	}, rawNATS},
	{"redis", func(b *testing.B) string {
		return fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", services.Redis(b))
	}, rawRedis},
	{"kafka", func(b *testing.B) string {
		return fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%q], group: %q, partitions: 4}\n", services.Redis(b), services.Kafka(b), services.UniqueName(b))
	}, rawKafka},
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
					raw := timed(func(subject string) { br.raw(b, subject, n) }, fill(b, br, n))
					line := lineRate(b, br, n, fmt.Sprintf(", concurrency: %d, dedup: off", window), nop)
					ours, ratios = append(ours, line), append(ratios, line/(float64(n)/raw.Seconds()))
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

func fill(b *testing.B, br benchBroker, n int) string {
	subject, _ := fillWith(b, br, n, ", dedup: off")
	return subject
}

// fillWith writes n jobs of 1 KiB to a new subject and returns it with a configuration that consumes it.
func fillWith(b *testing.B, br benchBroker, n int, route string) (string, *config.Config) {
	b.Helper()
	name := services.UniqueName(b)
	if strings.Contains(route, "%s") {
		route = fmt.Sprintf(route, name)
	}
	text := br.head(b) + fmt.Sprintf("admin: {listen: off}\nmodules:\n  m: {source: none.wasm}\nroutes:\n  - {name: jobs, from: %s, module: m%s}\n", name, route)
	cfg, err := config.Parse("bench.yaml", []byte(text), nil)
	if err != nil {
		b.Fatal(err)
	}
	cfg.Modules = nil
	warm, err := sidecar.New(b.Context(), cfg, sidecar.Options{Log: slog.New(slog.DiscardHandler), Runners: map[string]job.Runner{"m": job.RunnerFunc(nop)}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- warm.Run(ctx) }() // makes the subjects
	<-warm.Running()
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	t, closeTransport, err := sidecar.Dial(b.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer closeTransport()
	body := make([]byte, 1<<10)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for left := n / 8; left > 0; left -= 500 {
				ms := make([]*transport.Message, min(500, left))
				for i := range ms {
					ms[i] = &transport.Message{Subject: name, Body: body}
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

func timed(f func(string), subject string) time.Duration {
	began := time.Now()
	f(subject)
	return time.Since(began)
}

func median(xs []float64) float64 {
	slices.Sort(xs)
	return xs[len(xs)/2]
}

func benchNATS(b *testing.B) string {
	return "nats://" + strings.TrimPrefix(services.NATS(b), "nats://")
}

func rawNATS(b *testing.B, subject string, n int) {
	nc, err := nats.Connect(benchNATS(b))
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := natsjs.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	stream, err := js.StreamNameBySubject(b.Context(), subject)
	if err != nil {
		b.Fatal(err)
	}
	// The stream is a work queue, on which the line has made its consumer already: take its place.
	st, err := js.Stream(b.Context(), stream)
	if err != nil {
		b.Fatal(err)
	}
	for name := range st.ConsumerNames(b.Context()).Name() {
		if err := st.DeleteConsumer(b.Context(), name); err != nil {
			b.Fatal(err)
		}
	}
	c, err := st.CreateConsumer(b.Context(), natsjs.ConsumerConfig{Durable: "raw", AckPolicy: natsjs.AckExplicitPolicy, MaxAckPending: -1})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	cc, err := c.Consume(func(m natsjs.Msg) {
		if err := m.Ack(); err != nil {
			b.Error(err)
		}
		if n--; n == 0 {
			close(done)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	<-done
	cc.Stop()
}

func rawRedis(b *testing.B, subject string, n int) {
	c := redis.NewClient(&redis.Options{Addr: services.Redis(b)})
	defer c.Close()
	for n > 0 {
		xs, err := c.XReadGroup(b.Context(), &redis.XReadGroupArgs{
			Group: "wasmsidecar", Consumer: "raw", Streams: []string{subject, ">"}, Count: 100, Block: 100 * time.Millisecond,
		}).Result()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			b.Fatal(err)
		}
		ids := make([]string, 0, 100)
		for _, m := range xs[0].Messages {
			ids = append(ids, m.ID)
		}
		pipe := c.Pipeline()
		pipe.XAck(b.Context(), subject, "wasmsidecar", ids...)
		pipe.XDel(b.Context(), subject, ids...)
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		n -= len(ids)
	}
}

func rawKafka(b *testing.B, subject string, n int) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(services.Kafka(b)), kgo.ConsumeTopics(subject), kgo.ConsumerGroup(services.UniqueName(b)),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitMarks(), kgo.AutoCommitInterval(time.Second))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	for got := 0; got < n; {
		cl.PollFetches(b.Context()).EachPartition(func(p kgo.FetchTopicPartition) {
			if k := len(p.Records); k > 0 {
				got += k
				cl.MarkCommitRecords(p.Records[k-1])
			}
		})
	}
}
