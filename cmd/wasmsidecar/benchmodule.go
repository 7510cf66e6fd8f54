package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

func newBenchModule(s streams) *cobra.Command {
	var inputFile, output string
	var headers, allow []string
	var settings map[string]string
	var duration time.Duration
	var goroutines int
	cmd := &cobra.Command{
		Use:   "module FILE [INPUT]",
		Short: "Measure what a job of a module costs",
		Long: `Measure what one job costs at each level of isolation, beside what is usual with wazero alone: an instance
for each job, and a deadline that can stop a loop. The levels take turns, and figures are medians of
nine rounds, so that the ratios hold on a machine that does other things too. Every job has the same
input: the argument, the file named by --file, or 1 KiB of text.

Prints too the fuel of a job, the pages of memory it writes, what an instance takes up while it waits, and
how long compiling takes, without and with machine code on disk.`,
		Example: `  wasmsidecar bench module upper.wasm
  wasmsidecar bench module resize.wasm --file cat.png --duration 10s --goroutines 4`,
		Args:              between(1, 2, "FILE"),
		ValidArgsFunction: wasmFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case duration < 100*time.Millisecond:
				return usage(fmt.Errorf("--duration %s: want at least 100ms", duration))
			case goroutines < 1:
				return usage(fmt.Errorf("--goroutines %d: want at least 1", goroutines))
			}
			h, err := parseHeaders(headers)
			if err != nil {
				return usage(err)
			}
			body := []byte(strings.Repeat("wasmsidecar ", 86)[:1<<10])
			if inputFile != "" || len(args) > 1 {
				if body, err = input(cmd.Context(), s, inputFile, args[1:]); err != nil {
					return err
				}
			}
			m := config.DefaultModule()
			m.Source, m.Allow.HTTP, m.Config = args[0], allow, settings
			name := moduleName(args[0])
			if name == "" {
				name = "module"
			}
			j := &job.Job{ID: "bench", Route: "bench", Module: name, Source: "bench/0", Header: h, Body: body, Attempt: 1}
			return benchModule(cmd.Context(), s, name, m, runtime.Measurement{Job: j, Duration: duration, Goroutines: goroutines}, output)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&inputFile, "file", "f", "", "read the input from this `file`; - for stdin")
	f.StringArrayVarP(&headers, "header", "H", nil, "a `'Name: value'` of the job; may be repeated")
	f.StringSliceVar(&allow, "allow-http", nil, "`host`:port that the module may ask over http; may be repeated")
	f.StringToStringVar(&settings, "set", nil, "a `name=value` of the module's config; may be repeated")
	f.DurationVar(&duration, "duration", 3*time.Second, "how long all levels together are measured")
	f.IntVar(&goroutines, "goroutines", 1, "how many jobs run at once")
	outputFlag(cmd, &output)
	return cmd
}

func benchModule(ctx context.Context, s streams, name string, m *config.Module, want runtime.Measurement, output string) error {
	erase := func() {}
	if isTerminal(s.err) {
		want.Progress = func(what string) { fmt.Fprintf(s.err, "\r\x1b[K%s", what) }
		erase = func() { fmt.Fprint(s.err, "\r\x1b[K") }
	}
	got, err := sidecar.Measure(ctx, name, m, want)
	erase()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err = fmt.Errorf("measure %s: %w", m.Source, err); job.KindOf(err) == job.KindInvalid {
			return usage(err)
		}
		return err
	}
	if output == "json" {
		enc := json.NewEncoder(s.out)
		enc.SetIndent("", "  ")
		err = enc.Encode(got)
	} else {
		err = printMeasured(s.out, m.Source, len(want.Job.Body), got)
	}
	if err != nil {
		return fmt.Errorf("print the figures: %w", err)
	}
	return nil
}

// printMeasured writes figures for people.
func printMeasured(w io.Writer, file string, size int, m *runtime.Measured) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s, abi %s: jobs of %s, results of %s, %d at once\n\n", file, m.ABI, bytesText(int64(size)), bytesText(int64(m.Output)), m.Goroutines)
	fmt.Fprintln(t, "isolation\tµs/job\tjobs for one of usual\t")
	for _, l := range m.Levels {
		switch {
		case l.Why != "":
			fmt.Fprintf(t, "%s\t-\t-\t%s\n", l.Name, l.Why)
		case l.Name == runtime.LevelUsual:
			fmt.Fprintf(t, "%s\t%.1f\t1\twazero alone: an instance for each job, and a deadline\n", l.Name, l.Micros)
		default:
			fmt.Fprintf(t, "%s\t%.1f\t%.1f\t\n", l.Name, l.Micros, l.Ratio)
		}
	}
	varies := ""
	if m.FuelVaries {
		varies = ", not always the same"
	}
	dirty := "not known on this system"
	if m.DirtyPages >= 0 {
		dirty = fmt.Sprintf("%d of %d", m.DirtyPages, m.Memory>>12)
	}
	fmt.Fprintf(t, "\nfuel per job\t%d%s\n", m.Fuel, varies)
	fmt.Fprintf(t, "pages of 4 KiB written per job\t%s\n", dirty)
	waiting := "none waits: each job has one of its own"
	if m.Instance > 0 {
		waiting = fmt.Sprintf("%.1f KiB, of %s that its guest sees", float64(m.Instance)/1024, bytesText(m.Memory))
	}
	fmt.Fprintf(t, "memory per instance that waits\t%s\n", waiting)
	fmt.Fprintf(t, "compiling\t%.1f ms, and %.1f ms with machine code on disk\n", m.Cold, m.Warm)
	return t.Flush()
}
