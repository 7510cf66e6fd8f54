package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
)

// benchmark is what bench transport is asked for.
type benchmark struct {
	route, module, profile, output string
	jobs, size, concurrency, rate  int
	time                           time.Duration
	dedup                          string
}

func newBench(s streams, file *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a module, or a configuration",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage(errors.New("what to measure is missing: wasmsidecar bench module FILE, or wasmsidecar bench transport"))
		},
	}
	cmd.AddCommand(newBenchModule(s), newBenchTransport(s, file))
	return cmd
}

func newBenchTransport(s streams, file *string) *cobra.Command {
	var o benchmark
	cmd := &cobra.Command{
		Use:   "transport",
		Short: "Measure jobs/s and latency through broker, module and store",
		Long: `Measure the configuration's broker, one of its modules and its store, and in the same run the broker's
own client, which takes the same jobs, publishes results of the same size and settles, without a
sidecar. Each does three things: it works off a backlog of jobs, it answers jobs that come at a
rate, and it answers as fast as it can while a number of jobs is always under way.

Latency is from when a job was due to be published to when its result is read. The load and the
sidecar share this process and its processors. Subjects, groups and state have names of their own and
are removed at the end; an embedded server is one of its own, beside the configured directory.
What may not be made by the configuration (create: false) cannot be measured.

Exits 0 when every job went well, 1 when the module failed jobs.`,
		Example: `  wasmsidecar bench transport --config kafka.yaml
  wasmsidecar bench transport -c redis.yaml --module upper --jobs 200000 --dedup off --profile cpu.pprof`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(*file)
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), s, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.route, "route", "", "take concurrency, dedup, envelope, lease, retry and module of this `route`; the first unless given")
	f.StringVar(&o.module, "module", "", "another `module`: a name in the configuration or a file")
	f.IntVar(&o.jobs, "jobs", 50_000, "how many jobs the backlog has")
	f.IntVar(&o.size, "size", 100, "bytes of a job")
	f.IntVar(&o.concurrency, "concurrency", 0, "most jobs at once; the route's unless given")
	f.StringVar(&o.dedup, "dedup", "", "on or off; the route's unless given")
	f.IntVar(&o.rate, "rate", 500, "jobs a second that latency is measured at")
	f.DurationVar(&o.time, "time", 5*time.Second, "how long each latency is measured; 0s for not")
	f.StringVar(&o.profile, "profile", "", "write a CPU profile of the sidecar working off the backlog to this `file`")
	outputFlag(cmd, &o.output)
	configFlag(cmd, file)
	return cmd
}

// measured is the figures of one stage.
type measured struct {
	JobsPerSecond float64       `json:"jobs_per_second"`
	P50           time.Duration `json:"p50_ns,omitempty"`
	P99           time.Duration `json:"p99_ns,omitempty"`
	Failed        int           `json:"failed,omitempty"`
	Missing       int           `json:"missing,omitempty"` // results that did not come within the patience
}

// side is what one of the two did.
type side struct {
	Backlog measured  `json:"backlog"`
	AtRate  *measured `json:"at_rate,omitempty"`
	AtFull  *measured `json:"at_full_speed,omitempty"`
}

func (d *side) failed() int {
	n := d.Backlog.Failed
	for _, m := range []*measured{d.AtRate, d.AtFull} {
		if m != nil {
			n += m.Failed + m.Missing
		}
	}
	return n
}

// benchReport is what -o json prints.
type benchReport struct {
	Transport   string  `json:"transport"`
	At          string  `json:"at"`
	Store       string  `json:"store"` // "off" where nothing is claimed
	Module      string  `json:"module"`
	Jobs        int     `json:"jobs"`
	Size        int     `json:"size"`
	Concurrency int     `json:"concurrency"`
	Rate        int     `json:"rate"`
	CPUs        int     `json:"cpus"`
	Client      side    `json:"client"`
	Sidecar     side    `json:"sidecar"`
	Ratio       float64 `json:"ratio"` // of the backlog rates
}

func (o *benchmark) run(ctx context.Context, s streams, cfg *config.Config) error {
	switch {
	case o.jobs < 1 || o.size < 0 || o.rate < 1 || o.concurrency < 0 || o.time < 0:
		return usage(errors.New("--jobs and --rate: want at least 1; --size, --concurrency and --time: at least 0"))
	case o.dedup != "" && o.dedup != "on" && o.dedup != "off":
		return usage(fmt.Errorf("--dedup %q: want on or off", o.dedup))
	case cfg.Transport == config.Memory:
		return usage(errors.New("transport memory has no server and no client to compare with"))
	}
	own, err := o.config(cfg)
	if err != nil {
		return usage(err)
	}
	if own.Transport == config.Embedded {
		dir, err := os.MkdirTemp(filepath.Dir(filepath.Clean(cfg.Embedded.Dir)), "wasmsidecar-bench-")
		if err != nil {
			return usage(fmt.Errorf("make a data directory beside embedded.dir: %w", err))
		}
		defer os.RemoveAll(dir)
		own.Embedded.Dir = dir
		if own.Embedded.Listen, err = freeListen(); err != nil {
			return err
		}
	}
	tuneCollector()
	r := own.Routes[0]
	rep := &benchReport{
		Transport: cfg.Transport, At: sidecar.Address(own), Store: own.Store, Module: r.Module, Jobs: o.jobs, Size: o.size,
		Concurrency: r.Concurrency, Rate: o.rate, CPUs: runtime.GOMAXPROCS(0),
	}
	if r.Dedup.Off {
		rep.Store = "off"
	}
	say := func(format string, args ...any) { fmt.Fprintf(s.err, format+"\n", args...) }
	say("measuring the client of %s", cfg.Transport)
	if rep.Client, err = o.stage(ctx, own, true); err != nil {
		return fmt.Errorf("measure the client of %s: %w", cfg.Transport, err)
	}
	say("measuring the sidecar")
	if rep.Sidecar, err = o.stage(ctx, own, false); err != nil {
		return fmt.Errorf("measure the sidecar on %s: %w", cfg.Transport, err)
	}
	rep.Ratio = rep.Sidecar.Backlog.JobsPerSecond / rep.Client.Backlog.JobsPerSecond
	if err := rep.print(s, o.output); err != nil {
		return fmt.Errorf("print the figures: %w", err)
	}
	if n := rep.Sidecar.failed() + rep.Client.failed(); n > 0 {
		return fmt.Errorf("%d jobs failed or were not answered: the figures are not those of a working module; give one that takes any input, as --module examples/guests/upper.wasm", n)
	}
	return nil
}

// config is a configuration with one route, whose subjects and state nobody else uses.
func (o *benchmark) config(cfg *config.Config) (*config.Config, error) {
	own := *cfg
	r := config.DefaultRoute()
	for _, x := range cfg.Routes {
		if x.Name == o.route || o.route == "" {
			*r = *x
			break
		}
	}
	if o.route != "" && r.Name != o.route {
		return nil, fmt.Errorf("the configuration has no route %q", o.route)
	}
	if err := o.chooseModule(&own, r); err != nil {
		return nil, err
	}
	if o.concurrency > 0 {
		r.Concurrency = o.concurrency
	}
	if o.dedup != "" {
		r.Dedup.Off, r.Dedup.TTL, r.Dedup.Results = o.dedup == "off", time.Hour, time.Hour
	}
	name := fmt.Sprintf("wasmsidecar-bench-%08x", rand.Uint32())
	r.Name, r.From, r.To, r.DeadLetter, r.Reply = "bench", name, name+"_results", name+"_dlq", nil
	own.Routes = []*config.Route{r}
	own.NATS.Group, own.Kafka.Group = name, name
	own.Redis.Prefix += name + ":"
	own.Admin.Listen = ""
	own.ConnectTimeout = 10 * time.Second
	if err := own.Complete(); err != nil {
		return nil, err
	}
	return &own, nil
}

// chooseModule leaves one module in cfg, for r.
func (o *benchmark) chooseModule(cfg *config.Config, r *config.Route) error {
	if o.module != "" {
		r.Module = o.module
	}
	m, known := cfg.Modules[r.Module]
	switch {
	case known:
	case strings.HasSuffix(r.Module, ".wasm"):
		m = config.DefaultModule()
		m.Source = r.Module
		if r.Module = moduleName(r.Module); r.Module == "" {
			return fmt.Errorf("%q gives no module name: rename the file", m.Source)
		}
	case o.module != "":
		return fmt.Errorf("the configuration has no module %q; name one of its modules or a file that ends in .wasm", o.module)
	default:
		return fmt.Errorf("the route names no single module (%q): give one by --module", r.Module)
	}
	cfg.Modules = map[string]*config.Module{r.Module: m}
	return nil
}

func (r *benchReport) print(s streams, output string) error {
	if output == "json" {
		enc := json.NewEncoder(s.out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	fmt.Fprintf(s.out, "%s at %s, store %s, module %s, %d jobs of %d bytes, concurrency %d, %d CPUs\n\n", r.Transport, r.At, r.Store, r.Module, r.Jobs, r.Size, r.Concurrency, r.CPUs)
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tjobs/s\tratio\tp50\tp99\t")
	row := func(name string, m, base *measured) {
		if m == nil {
			return
		}
		ratio, p50, p99 := "", "", ""
		if base != nil {
			ratio = strconv.FormatFloat(m.JobsPerSecond/base.JobsPerSecond, 'f', 2, 64)
		}
		if m.P50 > 0 {
			p50, p99 = m.P50.Round(10*time.Microsecond).String(), m.P99.Round(10*time.Microsecond).String()
		}
		fmt.Fprintf(w, "%s\t%.0f\t%s\t%s\t%s\t\n", name, m.JobsPerSecond, ratio, p50, p99)
	}
	c, d := &r.Client, &r.Sidecar
	row("client, backlog", &c.Backlog, nil)
	row("sidecar, backlog", &d.Backlog, &c.Backlog)
	row("client, at the rate", c.AtRate, nil)
	row("sidecar, at the rate", d.AtRate, nil)
	row("client, at full speed", c.AtFull, nil)
	row("sidecar, at full speed", d.AtFull, c.AtFull)
	return w.Flush()
}
