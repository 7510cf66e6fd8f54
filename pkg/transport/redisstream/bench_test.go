package redisstream

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// BenchmarkSource consumes a backlog of 1 KiB jobs that do nothing, with at most 256 out, and the same with go-redis alone:
// XREADGROUP COUNT 100, then XACK and XDEL in one pipeline. It reports both rates and their ratio.
func BenchmarkSource(b *testing.B) {
	srv := services.StartRedis(b)
	c := client(b, srv.Addr)
	body := make([]byte, 1024)
	var ours, raw time.Duration
	fill := func(stream string, n int) {
		for n > 0 {
			pipe := c.Pipeline()
			for range min(n, 500) {
				pipe.XAdd(b.Context(), &redis.XAddArgs{Stream: stream, Values: []any{"body", body}})
			}
			n -= pipe.Len()
			if _, err := pipe.Exec(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	// In small rounds that take turns, so that a busy machine is busy for both.
	const round = 20_000
	for left := b.N; left > 0; left -= round {
		n := min(left, round)
		fill("raw", n)
		began := time.Now()
		consumeRaw(b, c, "raw", n)
		raw += time.Since(began)

		fill("ours", n)
		src, err := open(b, c).Source(b.Context(), transport.SourceConfig{Subject: "ours", Limit: 256})
		if err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		for got := 0; got < n; {
			ds, err := src.Fetch(b.Context(), 256)
			if err != nil {
				b.Fatal(err)
			}
			for _, d := range ds {
				d.Ack()
			}
			got += len(ds)
		}
		closeSource(b, src) // the last acknowledgements belong to it
		ours += time.Since(began)
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(n/ours.Seconds(), "jobs/s")
	b.ReportMetric(n/raw.Seconds(), "raw/s")
	b.ReportMetric(raw.Seconds()/ours.Seconds(), "ratio")
}

func consumeRaw(b *testing.B, c redis.UniversalClient, stream string, n int) {
	if err := c.XGroupCreateMkStream(b.Context(), stream, "g", "0").Err(); err != nil && !hasCode(err, "BUSYGROUP") {
		b.Fatal(err)
	}
	for n > 0 {
		xs, err := c.XReadGroup(b.Context(), &redis.XReadGroupArgs{
			Group: "g", Consumer: "c", Streams: []string{stream, ">"}, Count: 100, Block: 100 * time.Millisecond,
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
		pipe.XAck(b.Context(), stream, "g", ids...)
		pipe.XDel(b.Context(), stream, ids...)
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		n -= len(ids)
	}
}
