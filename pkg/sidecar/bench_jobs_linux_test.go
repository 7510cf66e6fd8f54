package sidecar_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// BenchmarkJobs is what a job costs in full: a backlog of jobs of 100 bytes, a clean sandbox for each, results published, outcomes
// recorded, in a real server. Beside the rate it tells the CPU time that a job takes, here and in the servers, which on a busy
// machine says more; two cores can do no more than 2 s divided by their sum.
func BenchmarkJobs(b *testing.B) {
	servers := map[string][]string{"embedded": nil, "nats": {"nats"}, "redis": {"redis"}, "kafka": {"kafka", "redis"}}
	for _, br := range benchBrokers {
		for _, way := range []struct{ name, dedup string }{{"claimed", "dedup: {claim: always}"}, {"auto", "dedup: {claim: auto}"}, {"off", "dedup: off"}} {
			b.Run(br.name+"/"+way.name, func(b *testing.B) {
				const n = 300_000
				var rates, own, theirs []float64
				for b.Loop() {
					rate, mine, others := guestRate(b, br, n, ", concurrency: 512, to: %s_results, "+way.dedup, servers[br.name])
					rates, own, theirs = append(rates, rate), append(own, mine), append(theirs, others)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(rates), "jobs/s")
				b.ReportMetric(median(own), "own-µs/job")
				b.ReportMetric(median(theirs), "server-µs/job")
				b.ReportMetric(2e6/(median(own)+median(theirs)), "most-jobs/s")
			})
		}
	}
}

// guestRate runs a backlog of n jobs through a guest and returns jobs per second, and the CPU time of a job here and in servers, in µs.
func guestRate(b *testing.B, br benchBroker, n int, route string, servers []string) (rate, own, theirs float64) {
	b.Helper()
	pace(b)
	var done atomic.Int64
	finished := make(chan struct{})
	sink := func(e event.Event) {
		if e.Type == event.Finished && done.Add(1) == int64(n) {
			close(finished)
		}
	}
	body := bytes.Repeat([]byte("job "), 25)
	_, cfg := fillJobs(b, br, n, route, filepath.Join("..", "..", "examples", "guests", "upper.wasm"), makeRoute, func(m *transport.Message) { m.Body = body })
	s, err := sidecar.New(b.Context(), cfg, sidecar.Options{Log: slog.New(slog.DiscardHandler), Sink: sinkFunc(sink)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	before, began := cpu(b, servers), time.Now()
	go func() { ended <- s.Run(ctx) }()
	select {
	case <-finished:
	case err := <-ended:
		b.Fatalf("the sidecar ended: %v", err)
	case <-time.After(3 * time.Minute):
		b.Fatalf("%d of %d jobs", done.Load(), n)
	}
	took, after := time.Since(began), cpu(b, servers)
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	return float64(n) / took.Seconds(), micros(after[0] - before[0]), micros(after[1] - before[1])
}

// sinkFunc lets a function be a sink.
type sinkFunc func(event.Event)

// Emit calls f.
func (f sinkFunc) Emit(e event.Event) { f(e) }

// cpu returns the CPU time used so far by this process, and by servers of scripts/services.
func cpu(b *testing.B, servers []string) [2]time.Duration {
	b.Helper()
	var out [2]time.Duration
	out[0] = cpuOf(b, "self")
	for _, name := range servers {
		pid, err := os.ReadFile(filepath.Join("..", "..", ".services", name+".pid"))
		if err != nil {
			b.Fatalf("%v: start them with scripts/services start", err)
		}
		out[1] += cpuOf(b, strings.TrimSpace(string(pid)))
	}
	return out
}

func cpuOf(b testing.TB, pid string) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // utime and stime are the 14th and 15th, in 1/100 s
	var ticks int
	for _, f := range fields[11:13] {
		t, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(fmt.Errorf("/proc/%s/stat: %w", pid, err))
		}
		ticks += t
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
