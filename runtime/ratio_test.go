package runtime_test

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// BenchmarkRatios prints for each guest how long a job of 1 KB takes with reset and metering, and how many such jobs there are for one
// in an instance of its own with wazero's deadline (usual/reset), for one of an instance that is used again and has no limits
// (reset/bare: how much more it costs), how many two goroutines do for one of one goroutine (two/one), and for programs that are
// frozen what part of usual they cost (frozen/usual). All are measured by turns; ratios are medians of the rounds.
func BenchmarkRatios(b *testing.B) {
	for _, g := range []struct {
		name    string
		wasm    func() []byte
		program bool
		leaks   bool // and cannot be used again as it is
	}{
		{"tiny C", func() []byte { return guests.Bytes("sum") }, false, false},
		{"Rust", func() []byte { return guests.Bytes("upper") }, false, false},
		{"AssemblyScript", func() []byte { return guests.Bytes("upper-as") }, false, true},
		{"Go reactor", func() []byte { return guests.BuildGo(b, "upper-reactor") }, false, false},
		{"C command", func() []byte { return guests.Bytes("upper-c") }, true, false},
		{"Go command", func() []byte { return guests.BuildGo(b, "upper-go") }, true, false},
	} {
		b.Run(strings.ReplaceAll(g.name, " ", "-"), func(b *testing.B) { benchRatios(b, g.wasm(), g.program, g.leaks) })
	}
}

// lap is how long each way is measured in each round.
const lap = 30 * time.Millisecond

func benchRatios(b *testing.B, wasm []byte, program, leaks bool) {
	e, _ := open(b)
	// A document of 200 numbers, which one guest adds up and the others write in upper case.
	values := make([]string, 200)
	for i := range values {
		values[i] = strconv.Itoa(1000 + 7*i)
	}
	j := newJob(`{"values":[` + strings.Join(values, ",") + "]}")
	by := func(level runtime.Isolation) func() {
		m := loadBytes(b, e, string(level), wasm, func(c *runtime.ModuleConfig) { c.Isolation = level })
		return func() {
			if r, err := m.Run(b.Context(), j); err != nil || len(r.Body) != len(j.Body) && string(r.Body) != `{"sum":339300}` {
				b.Fatal(r, err)
			}
		}
	}
	reset := by(runtime.IsolationReset)
	ways := map[string]func(){"reset": reset}
	usual := runtime.Usual(b, wasm, true)
	ways["usual"] = func() { usual(j) }
	if program {
		ways["frozen"] = by(runtime.IsolationFrozen)
	} else if !leaks {
		bare := runtime.Bare(b, wasm)
		ways["bare"] = func() { bare(j) }
	}
	micros := map[string][]float64{}
	round := func() {
		for name, run := range ways {
			micros[name] = append(micros[name], microsPerJob(1, run))
		}
		micros["two"] = append(micros["two"], microsPerJob(2, reset))
	}
	round() // to warm up
	clear(micros)
	for range max(b.N, 9) {
		round()
	}
	ratio := func(of, to string) float64 {
		var all []float64
		for i := range micros[of] {
			all = append(all, micros[of][i]/micros[to][i])
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(slices.Sorted(slices.Values(micros["reset"]))[len(micros["reset"])/2], "us/job")
	b.ReportMetric(ratio("usual", "reset"), "usual/reset")
	b.ReportMetric(ratio("reset", "two"), "two/one")
	if program {
		b.ReportMetric(ratio("frozen", "usual"), "frozen/usual")
	} else if !leaks {
		b.ReportMetric(ratio("reset", "bare"), "reset/bare")
	}
}

// microsPerJob is how long the jobs of n goroutines together take for each job.
func microsPerJob(n int, run func()) float64 {
	counts := make([]int, n)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for time.Since(start) < lap || counts[i] == 0 {
				run()
				counts[i]++
			}
		})
	}
	wg.Wait()
	total := 0
	for _, c := range counts {
		total += c
	}
	return float64(time.Since(start).Nanoseconds()) / 1e3 / float64(total)
}
