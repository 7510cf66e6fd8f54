package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Measurement says what Measure is to do.
type Measurement struct {
	Module     ModuleConfig  // Isolation is left out of account
	Job        *job.Job      // every job is this one
	Duration   time.Duration // of all levels together; at least a tenth of a second
	Goroutines int           // at least 1
	// Progress is told what is going on, from one goroutine; may be nil.
	Progress func(what string)
}

// Measured is what jobs of a module cost. Its JSON is what wasmsidecar bench module prints.
type Measured struct {
	ABI        ABI     `json:"abi"`
	Goroutines int     `json:"goroutines"`
	Cold       float64 `json:"compile_cold_ms"`
	Warm       float64 `json:"compile_warm_ms"` // machine code from the disk
	Levels     []Level `json:"levels"`

	Fuel       uint64 `json:"fuel"`                // of a job
	FuelVaries bool   `json:"fuel_varies"`         // it is that of the last one then
	DirtyPages int    `json:"dirty_pages"`         // of 4 KiB, written by one job; -1: this system does not tell
	Instance   int64  `json:"bytes_per_instance"`  // that waits for a job; without the pages that it shares with others
	Memory     int64  `json:"memory_per_instance"` // what its guest sees, in bytes
	Output     int    `json:"output_bytes"`        // of a job
}

// Level is what a job costs at one level of isolation.
type Level struct {
	Name   string  `json:"name"` // an Isolation; or LevelUsual
	Micros float64 `json:"us_per_job"`
	// Ratio is how many jobs there are for one of LevelUsual. It is the median of the rounds' ratios, as Micros is of their times.
	Ratio float64 `json:"ratio"`
	Jobs  int64   `json:"jobs"`
	Why   string  `json:"why,omitempty"` // why the level was not measured
}

// LevelUsual is what is usual with wazero alone and safe: an instance for each job, and WithCloseOnContextDone so that loops can
// be stopped.
const LevelUsual = "usual"

// rounds is how often each level is measured in turn, so that what else the machine does falls on all alike.
const rounds = 9

// sample is how many instances are made to see what one takes up.
const sample = 16

// Measure measures what a job costs, in an engine of its own. It takes about as long as asked for and the compilations. An error
// says why the module cannot be loaded, or how the job failed.
func Measure(ctx context.Context, want Measurement) (*Measured, error) {
	if want.Duration < 100*time.Millisecond || want.Goroutines < 1 || want.Job == nil {
		return nil, errors.New("measure: want a job, at least 100ms and at least one goroutine")
	}
	if want.Progress == nil {
		want.Progress = func(string) {}
	}
	dir, err := os.MkdirTemp("", "wasmsidecar-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := &Measured{Goroutines: want.Goroutines, DirtyPages: -1}
	want.Progress("compiling")
	cold, err := openMeasured(ctx, dir, want.Module, &out.Cold)
	if err != nil {
		return nil, err
	}
	if err := cold.Close(ctx); err != nil {
		return nil, err
	}
	e, err := openMeasured(ctx, dir, want.Module, &out.Warm)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.Close(context.WithoutCancel(ctx))) }()
	if err := e.levels(ctx, want, out); err != nil {
		return nil, err
	}
	return out, e.anatomy(ctx, want, out)
}

// openMeasured opens an engine that keeps its code in dir, and loads the module once to see how long that takes.
func openMeasured(ctx context.Context, dir string, cfg ModuleConfig, millis *float64) (*Engine, error) {
	e, err := New(Config{CacheDir: filepath.Join(dir, "cache"), Log: slog.New(slog.DiscardHandler), Compiled: func(c Compilation) {
		*millis = float64(c.Duration.Microseconds()) / 1e3
	}})
	if err != nil {
		return nil, err
	}
	m, err := e.Load(ctx, cfg)
	if err == nil {
		err = m.Close(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, e.Close(ctx))
	}
	return e, nil
}

// contender is a level and the way in which it runs a job.
type contender struct {
	Level
	run    func(ctx context.Context, j *job.Job) error
	micros []float64 // of each round
}

func (e *Engine) levels(ctx context.Context, want Measurement, out *Measured) (err error) {
	all, closeAll, err := e.contenders(ctx, want, out)
	defer func() { err = errors.Join(err, closeAll()) }()
	if err != nil {
		return err
	}
	var running []*contender
	for _, c := range all {
		if c.Why == "" {
			running = append(running, c)
		}
	}
	each := want.Duration / time.Duration(rounds*len(running))
	for round := range rounds {
		for _, c := range running {
			want.Progress(fmt.Sprintf("round %d of %d: %s", round+1, rounds, c.Name))
			if err := c.measure(ctx, want, each); err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
		}
	}
	var base []float64
	for _, c := range all {
		if c.Name == LevelUsual {
			base = c.micros
		}
	}
	for _, c := range all {
		if c.Why == "" {
			c.Micros = median(c.micros)
			var ratios []float64
			for i := range base {
				ratios = append(ratios, base[i]/c.micros[i])
			}
			if len(ratios) > 0 {
				c.Ratio = median(ratios)
			}
		}
		out.Levels = append(out.Levels, c.Level)
	}
	return nil
}

// contenders makes a module for each level and runs a job on each of them.
func (e *Engine) contenders(ctx context.Context, want Measurement, out *Measured) ([]*contender, func() error, error) {
	var all []*contender
	var closers []func() error
	closeAll := func() error {
		var errs []error
		for _, c := range closers {
			errs = append(errs, c())
		}
		return errors.Join(errs...)
	}
	var first *Module
	for _, level := range []Isolation{IsolationReset, IsolationFrozen, IsolationFresh, IsolationReuse} {
		c := &contender{Level: Level{Name: string(level)}}
		all = append(all, c)
		cfg := want.Module
		cfg.Isolation = level
		m, err := e.Load(ctx, cfg)
		if err != nil {
			if first == nil {
				return nil, closeAll, err
			}
			all = all[:len(all)-1] // there is no such level for this ABI
			continue
		}
		closers = append(closers, func() error { return m.Close(context.WithoutCancel(ctx)) })
		if first == nil {
			first, out.ABI = m, m.abi
		}
		if _, ok := m.instances.(*pool); !ok && level != IsolationFresh {
			c.Why = "it cannot be reset: " + m.unfit()
			continue
		}
		c.run = func(ctx context.Context, j *job.Job) error {
			_, err := m.Run(ctx, j)
			return err
		}
		if r, err := m.Run(ctx, want.Job); err != nil {
			return nil, closeAll, fmt.Errorf("%s: the job fails: %w", level, err)
		} else if level == IsolationReset {
			out.Output = len(r.Body)
		}
	}
	u := &contender{Level: Level{Name: LevelUsual}}
	usual, err := newUsual(ctx, first, want.Module.Wasm, true)
	if err == nil {
		closers = append(closers, usual.close)
		u.run = func(ctx context.Context, j *job.Job) error {
			_, err := usual.run(ctx, j)
			return err
		}
		err = u.run(ctx, want.Job)
	}
	if err != nil {
		u.Why = firstLine(err.Error())
	}
	return append(all, u), closeAll, nil
}

// measure runs jobs for so long, and one at least on each goroutine.
func (c *contender) measure(ctx context.Context, want Measurement, d time.Duration) error {
	var jobs atomic.Int64
	errs := make([]error, want.Goroutines)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for first := true; first || time.Since(start) < d; first = false {
				if errs[i] = c.run(ctx, want.Job); errs[i] != nil {
					return
				}
				jobs.Add(1)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.Jobs += jobs.Load()
	c.micros = append(c.micros, float64(time.Since(start).Nanoseconds())/1e3/float64(jobs.Load()))
	return nil
}

func median(xs []float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// anatomy sees what a job burns and writes, and what instances take up.
func (e *Engine) anatomy(ctx context.Context, want Measurement, out *Measured) (err error) {
	want.Progress("looking at instances")
	cfg := want.Module
	cfg.Isolation = IsolationReset
	m, err := e.Load(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close(context.WithoutCancel(ctx))) }()
	for i := range 5 {
		r, err := m.Run(ctx, want.Job)
		if err != nil {
			return fmt.Errorf("the job fails: %w", err)
		}
		out.FuelVaries = out.FuelVaries || i > 0 && r.Fuel != out.Fuel
		out.Fuel = r.Fuel
	}
	if _, ok := m.instances.(*pool); !ok {
		return nil
	}
	before := heapBytes()
	pages := 0
	for pass := range 2 { // programs are frozen in the first
		var held []*instance
		giveBack := func() {
			for _, in := range held {
				m.instances.put(nil, in, nil)
			}
		}
		pages = 0
		for range sample {
			in, written, err := m.dissect(ctx, want.Job)
			if in != nil {
				held = append(held, in)
			}
			if err != nil {
				giveBack()
				return fmt.Errorf("the job fails: %w", err)
			}
			out.DirtyPages, out.Memory = written, int64(in.size())
			pages += max(written, 0)
		}
		if pass == 1 {
			out.Instance = max(heapBytes()-before, 0)/sample + int64(pages)*osPageSize/sample
		}
		giveBack()
	}
	return nil
}

// osPageSize is the unit of DirtyPages.
const osPageSize = 4 << 10

// dissect runs the job on an instance whose memory holds nothing of its own before, and returns the instance and how many pages
// the job has written; -1 where that is not known.
func (m *Module) dissect(ctx context.Context, j *job.Job) (in *instance, pages int, err error) {
	seat, own, err := m.admit(ctx, j, m.own)
	if err != nil {
		return nil, -1, err
	}
	if own {
		defer seat.release()
	}
	r := m.newRun(ctx, j, m.own, time.Now().Add(m.own.limits.Time), seat)
	defer r.close()
	call := &r.call
	defer call.End()
	e := ended{code: m.code, parent: ctx, ctx: &r.bounded, limit: m.own.limits.Time, most: m.own.limits.Memory, call: call}
	ctx = r.context()
	if in, err = m.instances.get(ctx, r); err != nil {
		return nil, -1, err
	}
	counts := forgetWritten(in.memory)
	e.err = m.driver.run(ctx, in, call)
	if err := e.verdict(); err != nil {
		return in, -1, err
	}
	if !counts {
		return in, -1, nil
	}
	return in, countWritten(in.memory), nil
}

func heapBytes() int64 {
	goruntime.GC()
	goruntime.GC()
	var s goruntime.MemStats
	goruntime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}
