package sidecar_test

import (
	"bytes"
	"context"
	"flag"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// How large the benchmarks below are; make scale gives large ones.
var (
	scaleBacklog  = flag.Int("scale.backlog", 100_000, "jobs that wait, for BenchmarkBacklog")
	scaleOutcomes = flag.Int("scale.outcomes", 200_000, "outcomes that are stored, for BenchmarkOutcomes")
	scaleRoutes   = flag.Int("scale.routes", 100, "routes, for BenchmarkRoutes")
	scaleDue      = flag.Int("scale.schedules", 20_000, "scheduled jobs, for BenchmarkSchedules")
	scaleLead     = flag.Duration("scale.lead", 10*time.Second, "from the first publication to the first due time")
	scaleSpread   = flag.Duration("scale.spread", 10*time.Second, "from the first due time to the last")
	scaleFailing  = flag.Duration("scale.failing", 10*time.Second, "how long a job fails, for BenchmarkFailing")
	scaleOwn      = flag.Bool("scale.own", false, "a Kafka broker of its own, whose processor time and memory can be told")
)

// jobBody is a job of 100 bytes.
var jobBody = bytes.Repeat([]byte("job "), 25)

func fillBody(_ int, m *transport.Message) { m.Body = jobBody }

const mb = 1 << 20

func freeListener(tb testing.TB) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// BenchmarkBacklog takes the first jobs of a large backlog and those of a small one through the whole line, a guest and claims.
func BenchmarkBacklog(b *testing.B) {
	for _, broker := range []string{"redis", "nats", "embedded", "kafka"} {
		b.Run(broker, func(b *testing.B) {
			const sample = 40_000
			for b.Loop() {
				p := newPlant(b, broker, *scaleOwn)
				cfg := p.config("upper-c.wasm", ", concurrency: 256", 1)
				work := func(backlog, jobs int) cost {
					x := p.run(cfg, nil)
					before := p.use()
					x.fill(backlog, fillBody)
					full := p.use()
					b.Logf("%8d waiting: memory here %d MB, servers %d MB, %.0f bytes a job in the servers' memory, files %d MB", backlog, full.mem/mb, full.memTheir/mb,
						float64(full.memTheir-before.memTheir)/float64(backlog), files(b, p.data)/mb)
					start, began := p.done.Load(), p.use()
					x.release()
					x.await(start + int64(jobs))
					after := p.use()
					c := after.since(began, int(p.done.Load()-start))
					b.Logf("%8d waiting: %s; memory here %d MB, servers %d MB", backlog, c, after.mem/mb, after.memTheir/mb)
					x.stop()
					return c
				}
				work(sample/4, sample/4) // warm
				small := work(sample, sample)
				large := work(*scaleBacklog, sample) // the rest stays
				b.ReportMetric(small.rate, "small-jobs/s")
				b.ReportMetric(large.rate, "large-jobs/s")
				b.ReportMetric((large.own+large.servers)/(small.own+small.servers), "cpu-ratio")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkOutcomes lets jobs come until so many outcomes are stored, and compares what a job costs first and last.
func BenchmarkOutcomes(b *testing.B) {
	for _, broker := range []string{"redis", "nats", "embedded"} {
		b.Run(broker, func(b *testing.B) {
			for b.Loop() {
				p := newPlant(b, broker, *scaleOwn)
				x := p.run(p.config("upper-c.wasm", ", concurrency: 256", 1), nil)
				x.release()
				first, last := x.outcomes(*scaleOutcomes, b.Logf)
				b.ReportMetric(first.rate, "first-jobs/s")
				b.ReportMetric(last.rate, "last-jobs/s")
				b.ReportMetric((last.own+last.servers)/(first.own+first.servers), "cpu-ratio")
				x.stop()
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// outcomes has n jobs run while more come, so that the queue is never empty nor long, and returns what a job took in the second and
// the last of ten parts; the first warms up.
func (x *shift) outcomes(n int, log func(string, ...any)) (first, last cost) {
	x.p.tb.Helper()
	part := n / 10
	begun := x.p.use()
	disk := files(x.p.tb, x.p.data)
	for i := range 10 {
		before := x.p.use()
		from := x.p.done.Load()
		for sent := 0; sent < part; {
			m := min(10_000, part-sent)
			x.fill(m, fillBody)
			sent += m
			x.await(from + int64(sent) - 10_000)
		}
		x.await(from + int64(part))
		after := x.p.use()
		last = after.since(before, part)
		if i == 1 {
			first = last
		}
		stored := float64((i + 1) * part)
		log("%8.0f outcomes: %s; memory here %d MB, servers %d MB (%.0f bytes an outcome), files %.0f bytes an outcome", stored, last,
			after.mem/mb, after.memTheir/mb, float64(after.memTheir-begun.memTheir)/stored, float64(files(x.p.tb, x.p.data)-disk)/stored)
	}
	return first, last
}

// BenchmarkRoutes takes the same jobs through one route and through many, and lets both idle.
func BenchmarkRoutes(b *testing.B) {
	for _, broker := range []string{"redis", "nats", "embedded", "kafka"} {
		b.Run(broker, func(b *testing.B) {
			const jobs = 100_000
			for b.Loop() {
				p := newPlant(b, broker, *scaleOwn)
				work := func(routes int) (cost, float64) {
					goroutines := runtime.NumGoroutine()
					x := p.run(p.config("upper-c.wasm", ", concurrency: 64", routes), nil)
					start, warm := p.done.Load(), int64(200*routes+jobs/5) // until every route has as many workers as it may have
					x.fill(int(warm)+jobs, fillBody)
					x.release()
					x.await(start + warm)
					at, began := p.done.Load(), p.use()
					x.await(start + warm + jobs)
					c := p.use().since(began, int(p.done.Load()-at))
					time.Sleep(2 * time.Second)
					idle := p.idle(5 * time.Second)
					u := p.use()
					b.Logf("%3d routes: %s; idle %.2f %% of a core here, %.2f %% in the servers; %d goroutines, memory here %d MB, servers %d MB", routes, c,
						100*idle.own, 100*idle.servers, runtime.NumGoroutine()-goroutines, u.mem/mb, u.memTheir/mb)
					x.stop()
					return c, idle.own + idle.servers
				}
				one, idleOne := work(1)
				many, idleMany := work(*scaleRoutes)
				b.ReportMetric(one.rate, "one-jobs/s")
				b.ReportMetric(many.rate, "many-jobs/s")
				b.ReportMetric((many.own+many.servers)/(one.own+one.servers), "cpu-ratio")
				b.ReportMetric(100*idleOne, "one-idle-%")
				b.ReportMetric(100*idleMany, "many-idle-%")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// idle is the part of a core that is used while nothing is asked for.
func (p *plant) idle(d time.Duration) cost {
	before := p.use()
	time.Sleep(d)
	after := p.use()
	took := after.at.Sub(before.at).Seconds()
	return cost{own: (after.own - before.own).Seconds() / took, servers: (after.servers - before.servers).Seconds() / took}
}

// BenchmarkSchedules publishes jobs that are due later, evenly over a while, and tells how late they begin.
func BenchmarkSchedules(b *testing.B) {
	for _, broker := range []string{"redis", "nats", "embedded", "kafka"} {
		b.Run(broker, func(b *testing.B) {
			for b.Loop() {
				p := newPlant(b, broker, *scaleOwn)
				late, control := p.schedules(*scaleDue, *scaleLead, *scaleSpread, b.Logf)
				b.ReportMetric(late.at(50).Seconds()*1e3, "p50-ms")
				b.ReportMetric(late.at(99).Seconds()*1e3, "p99-ms")
				b.ReportMetric(late.at(100).Seconds()*1e3, "max-ms")
				b.ReportMetric(control.at(99).Seconds()*1e3, "control-p99-ms")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// delays are how late jobs began, in order.
type delays []time.Duration

// at returns the percentile of so many percent; the largest for 100.
func (d delays) at(percent int) time.Duration { return d[min(len(d)*percent/100, len(d)-1)] }

// schedules publishes n jobs, which are due between lead and lead+spread from now, and returns how late each began; and, as a control
// that has the same machine and the same queue, how long after its publication began one that was not scheduled, every 20 ms meanwhile.
func (p *plant) schedules(n int, lead, spread time.Duration, log func(string, ...any)) (late, control delays) {
	p.tb.Helper()
	const at = "Due"
	var mu sync.Mutex
	x := p.run(p.config("upper-c.wasm", ", concurrency: 256, dedup: off", 1), func(_ context.Context, j *job.Job) (*job.Result, error) {
		now := time.Now()
		due, err := strconv.ParseInt(j.Header.Get(at), 10, 64)
		if err != nil {
			return nil, err
		}
		list := &control
		if j.Header.Get(transport.HeaderDeliverAt) != "" {
			list = &late
		}
		mu.Lock()
		*list = append(*list, now.Sub(time.UnixMilli(due)))
		mu.Unlock()
		return &job.Result{}, nil
	})
	x.release()
	began := p.use()
	first := time.Now().Add(lead)
	x.fill(n, func(i int, m *transport.Message) {
		due := strconv.FormatInt(first.Add(spread*time.Duration(i)/time.Duration(n)).UnixMilli(), 10)
		m.Header = job.Header{{Name: transport.HeaderDeliverAt, Value: due}, {Name: at, Value: due}}
	})
	log("%d published in %s", n, time.Since(began.at).Round(time.Millisecond))
	time.Sleep(time.Until(first) * 9 / 10)
	u := p.use()
	log("before the first is due: memory here %d MB, servers %d MB", u.mem/mb, u.memTheir/mb)
	time.Sleep(time.Until(first))
	sent := 0
	for tick := time.NewTicker(20 * time.Millisecond); time.Since(first) < spread; sent++ {
		<-tick.C
		x.fill(1, func(_ int, m *transport.Message) {
			m.Header = job.Header{{Name: at, Value: strconv.FormatInt(time.Now().UnixMilli(), 10)}}
		})
	}
	x.await(int64(n + sent))
	after := p.use()
	log("all: %s; memory here %d MB, servers %d MB, files %d MB", after.since(began, n), after.mem/mb, after.memTheir/mb, files(p.tb, p.data)/mb)
	x.stop()
	slices.Sort(late)
	slices.Sort(control)
	log("late by: least %s, p50 %s, p99 %s, most %s; not scheduled: p50 %s, p99 %s, most %s", late[0], late.at(50), late.at(99), late.at(100),
		control.at(50), control.at(99), control.at(100))
	return late, control
}

// BenchmarkFailing has one job fail over and over again, beside an idle sidecar in the same run.
func BenchmarkFailing(b *testing.B) {
	for _, broker := range []string{"redis", "nats", "embedded", "kafka"} {
		b.Run(broker, func(b *testing.B) {
			for b.Loop() {
				p := newPlant(b, broker, *scaleOwn)
				x := p.run(p.config("trap.wasm", ", concurrency: 64, retry: {max_attempts: 0}", 1), nil)
				x.release()
				time.Sleep(3 * time.Second)
				idle := p.idle(*scaleFailing)
				x.fill(1, fillBody)
				failing := p.idle(*scaleFailing)
				b.Logf("idle: %.2f %% of a core here, %.2f %% in the servers; with the job: %.2f %%, %.2f %%; %d attempts in %s", 100*idle.own, 100*idle.servers,
					100*failing.own, 100*failing.servers, p.failed.Load(), *scaleFailing)
				b.ReportMetric(100*(idle.own+idle.servers), "idle-%")
				b.ReportMetric(100*(failing.own+failing.servers), "failing-%")
				b.ReportMetric(float64(p.failed.Load()), "attempts")
				x.stop()
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
