package runtime_test

import (
	"context"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// The most that guests which loop for ever may do to others.
const (
	gcWithin       = 20 * time.Millisecond // runtime.GC, 99th percentile
	slowerAtMost   = 3                     // times the latency of another module's jobs, 99th percentile too
	deadlineWithin = 10 * time.Millisecond // after it, median
)

// pauses is what was measured in one round.
type pauses struct{ gc, job, late []time.Duration }

func percentile(p int, d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[(len(s)-1)*p/100]
}

// measurePauses collects the garbage, runs short jobs and has jobs run into their deadlines, n times each.
func measurePauses(tb testing.TB, e *runtime.Engine, n int) (p pauses) {
	tb.Helper()
	const limit = 20 * time.Millisecond
	short := load(tb, e, "upper")
	late := load(tb, e, "loop", func(c *runtime.ModuleConfig) { c.Limits.Time = limit })
	defer end(tb, short)
	defer end(tb, late)
	timed := func(f func()) time.Duration {
		start := time.Now()
		f()
		return time.Since(start)
	}
	j := newJob(strings.Repeat("x", 1024))
	for range n {
		p.gc = append(p.gc, timed(goruntime.GC))
		for range 10 {
			p.job = append(p.job, timed(func() {
				if _, err := short.Run(tb.Context(), j); err != nil {
					tb.Error(err)
				}
			}))
		}
		p.late = append(p.late, timed(func() {
			if _, err := late.Run(tb.Context(), j); job.KindOf(err) != job.KindTimeout {
				tb.Error(err)
			}
		})-limit)
	}
	return p
}

// loopForEver has two guests loop while f runs.
func loopForEver(tb testing.TB, e *runtime.Engine, f func()) {
	tb.Helper()
	m := load(tb, e, "loop", func(c *runtime.ModuleConfig) { c.Limits.Time, c.Limits.Fuel = time.Hour, 0 })
	defer end(tb, m)
	ctx, cancel := context.WithCancel(tb.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := m.Run(ctx, newJob("")); job.KindOf(err) != job.KindUnavailable {
				tb.Errorf("the loop ended: %v", err)
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	f()
}

// spinForEver has two goroutines do in Go what those guests do, and let others run as often as Go's scheduler has them.
func spinForEver(f func()) {
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
			}
		})
	}
	defer wg.Wait()
	defer stop.Store(true)
	f()
}

// Two guests that loop for ever hold up neither the collector nor other modules' jobs nor deadlines more than is promised, or,
// on a machine that has other things to do, than goroutines of Go's own would.
func TestLoopsHoldNobodyUp(t *testing.T) { // alone: it measures
	e, _ := open(t)
	n, rounds := 20, 5
	for round := 1; ; round++ {
		var with, without pauses
		spinForEver(func() { without = measurePauses(t, e, n) })
		loopForEver(t, e, func() { with = measurePauses(t, e, n) })
		bad := false
		for _, c := range []struct {
			what      string
			got, want time.Duration
		}{
			{"runtime.GC takes", percentile(99, with.gc), max(gcWithin, 2*percentile(99, without.gc))},
			{"another module's job takes", percentile(99, with.job), max(time.Millisecond, slowerAtMost*percentile(99, without.job))},
			{"a deadline is hit late by", percentile(50, with.late), max(deadlineWithin, 2*percentile(50, without.late))},
		} {
			if c.got > c.want {
				bad = true
				t.Logf("round %d: %s %s, want at most %s", round, c.what, c.got, c.want)
			}
		}
		if !bad {
			return
		}
		if round == rounds {
			t.Fatalf("in none of %d rounds it was as it should", rounds)
		}
	}
}

// BenchmarkLoops prints what TestLoopsHoldNobodyUp wants to know: without loops, with two goroutines that spin, with two guests.
func BenchmarkLoops(b *testing.B) {
	e, _ := open(b)
	for name, during := range map[string]func(f func()){
		"none": func(f func()) { f() }, "goroutines": spinForEver, "guests": func(f func()) { loopForEver(b, e, f) },
	} {
		b.Run(name, func(b *testing.B) {
			during(func() {
				p := measurePauses(b, e, b.N)
				for what, d := range map[string][]time.Duration{"gc": p.gc, "job": p.job, "late": p.late} {
					b.ReportMetric(float64(percentile(50, d))/1e6, what+"-p50-ms")
					b.ReportMetric(float64(percentile(99, d))/1e6, what+"-p99-ms")
				}
			})
		})
	}
}
