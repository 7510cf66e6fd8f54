package jetstream

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// BenchmarkSource compares the source with nats.go's Consume, both with 1 KiB messages that are acknowledged at once, without
// waiting. The runs alternate, and the metric ratio is the source's rate through the other's.
func BenchmarkSource(b *testing.B) {
	const jobs, rounds = 50_000, 3
	srv := embed(b, EmbedConfig{})
	tr := open(b, dial(b, srv.ConnectConfig()), func(c *Config) { c.Log = nil })
	run := 0
	fill := func() (subject, stream string) {
		run++
		subject = fmt.Sprintf("bench.%d", run)
		prepare(b, tr, transport.Subjects{Sources: []string{subject}})
		body := make([]byte, 1<<10)
		ms := make([]*transport.Message, 1000)
		for i := range ms {
			ms[i] = &transport.Message{Subject: subject, Body: body}
		}
		for range jobs / len(ms) {
			if err := tr.Publisher().Publish(b.Context(), ms...); err != nil {
				b.Fatal(err)
			}
		}
		return subject, streamName(subject)
	}
	raw := func() time.Duration {
		subject, stream := fill()
		nc := dial(b, srv.ConnectConfig())
		js, err := jetstream.New(nc)
		if err != nil {
			b.Fatal(err)
		}
		c, err := js.CreateConsumer(b.Context(), stream, jetstream.ConsumerConfig{
			Durable: "raw", FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: -1,
		})
		if err != nil {
			b.Fatal(err)
		}
		n, done, start := 0, make(chan struct{}), time.Now()
		cc, err := c.Consume(func(m jetstream.Msg) {
			_ = m.Ack()
			if n++; n == jobs {
				close(done)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		<-done
		took := time.Since(start)
		cc.Stop()
		_ = js.DeleteStream(b.Context(), stream)
		return took
	}
	ours := func(limit int) time.Duration {
		subject, stream := fill()
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		defer cancel()
		s, err := tr.Source(ctx, transport.SourceConfig{Route: subject, Subject: subject, Limit: limit})
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		for n := 0; n < jobs; {
			ds, err := s.Fetch(ctx, limit)
			if err != nil {
				b.Fatal(err)
			}
			for _, d := range ds {
				d.Ack()
			}
			n += len(ds)
		}
		took := time.Since(start)
		if err := s.Close(ctx); err != nil {
			b.Fatal(err)
		}
		_ = tr.js.DeleteStream(b.Context(), stream)
		return took
	}
	for _, limit := range []int{64, 256} {
		b.Run(fmt.Sprintf("window=%d", limit), func(b *testing.B) {
			var theirs, own time.Duration
			for b.Loop() {
				for range rounds {
					theirs += raw()
					own += ours(limit)
				}
			}
			total := float64(jobs * rounds * b.N)
			b.ReportMetric(total/own.Seconds(), "jobs/s")
			b.ReportMetric(total/theirs.Seconds(), "raw/s")
			b.ReportMetric(theirs.Seconds()/own.Seconds(), "ratio")
		})
	}
}

// BenchmarkPublish stores 1 KiB messages from many goroutines, one message a call.
func BenchmarkPublish(b *testing.B) {
	tr := local(b, func(c *Config) { c.Log = nil })
	prepare(b, tr, transport.Subjects{Sinks: []string{"results"}})
	body := make([]byte, 1<<10)
	b.SetParallelism(64)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := tr.Publisher().Publish(context.Background(), &transport.Message{Subject: "results", Body: body}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

// BenchmarkEmbed is the time from nothing to a server that takes connections.
func BenchmarkEmbed(b *testing.B) {
	for b.Loop() {
		s, err := Embed(EmbedConfig{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Shutdown(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
