package kafka

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// BenchmarkSource consumes a backlog through a source that settles at once, and by the raw client with marks that are committed,
// one after the other, and prints the ratio of the rates. Not for -benchtime: every iteration reads the whole backlog.
func BenchmarkSource(b *testing.B) {
	for _, c := range []struct{ size, n int }{{100, 1_000_000}, {1024, 200_000}} {
		b.Run(fmt.Sprintf("%dB", c.size), func(b *testing.B) {
			topic := unique(b)
			cfg := config(b, real(b))
			cfg.Partitions = 4
			tr := open(b, cfg)
			prepare(b, tr, topic)
			fill(b, cfg.Brokers, topic, c.n, c.size)
			b.ReportAllocs()
			b.ResetTimer()
			var ours, raw time.Duration
			for i := range b.N {
				b.StopTimer()
				raw += consumeRaw(b, cfg.Brokers, topic, c.n)
				cfg.Group = fmt.Sprintf("%s-%d", unique(b), i)
				tr := open(b, cfg)
				b.StartTimer()
				began := time.Now()
				s := openSource(b, tr, topic)
				for got := 0; got < c.n; {
					ds, err := s.Fetch(b.Context(), 1024)
					if err != nil {
						b.Fatal(err)
					}
					for _, d := range ds {
						if len(d.Message().Body) != c.size {
							b.Fatal("another body")
						}
						d.Ack()
					}
					got += len(ds)
				}
				ours += time.Since(began)
			}
			b.StopTimer()
			per := float64(b.N * c.n)
			b.ReportMetric(per/ours.Seconds(), "records/s")
			b.ReportMetric(per/raw.Seconds(), "raw-records/s")
			b.ReportMetric(raw.Seconds()/ours.Seconds(), "of-raw")
		})
	}
}

func fill(b *testing.B, brokers []string, topic string, n, size int) {
	b.Helper()
	cl, _ := admin(b, brokers, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	body := make([]byte, size)
	for range n {
		cl.Produce(b.Context(), &kgo.Record{Topic: topic, Value: body}, func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	if err := cl.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func consumeRaw(b *testing.B, brokers []string, topic string, n int) time.Duration {
	b.Helper()
	began := time.Now()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumerGroup(unique(b)),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitMarks(), kgo.AutoCommitInterval(time.Second))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	for got := 0; got < n; {
		fs := cl.PollFetches(b.Context())
		fs.EachPartition(func(p kgo.FetchTopicPartition) {
			if k := len(p.Records); k > 0 {
				got += k
				cl.MarkCommitRecords(p.Records[k-1])
			}
		})
	}
	return time.Since(began)
}

// BenchmarkPublish writes from many goroutines at once, one message per call, as concurrent jobs do.
func BenchmarkPublish(b *testing.B) {
	topic := unique(b)
	cfg := config(b, real(b))
	cfg.Partitions = 4
	tr := open(b, cfg)
	prepare(b, tr, topic)
	body := make([]byte, 100)
	b.ReportAllocs()
	b.SetParallelism(256)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := tr.Publisher().Publish(b.Context(), &transport.Message{Subject: topic, Body: body}); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
