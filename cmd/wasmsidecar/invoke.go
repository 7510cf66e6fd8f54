package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/telemetry"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func newInvoke(s streams, file *string) *cobra.Command {
	var inputFile, output, memory, typeName string
	var headers, allow []string
	var settings map[string]string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "invoke MODULE [INPUT]",
		Short: "Run one module on one input, without a broker",
		Long: `Run a module once, in the sandbox that a job would get, and print its result. MODULE is a file, or
with --config the name of a module in that configuration. The input is the argument, the
file named by --file, or stdin. What the guest logs goes to stderr.

Exits 0 when the job went well and 1 when it failed.`,
		Example: `  wasmsidecar invoke upper.wasm hello
  wasmsidecar invoke --config kafka.yaml resize --file cat.png > small.png
  wasmsidecar invoke fetch.wasm --allow-http api.example.com:443 /v1/status`,
		Args:              between(1, 2, "MODULE"),
		ValidArgsFunction: wasmFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, name, err := invocation(*file, args[0])
			if err != nil {
				return usage(err)
			}
			m := cfg.Modules[name]
			m.Allow.HTTP = append(m.Allow.HTTP, allow...)
			for k, v := range settings {
				if m.Config == nil {
					m.Config = map[string]string{}
				}
				m.Config[k] = v
			}
			if cmd.Flags().Changed("time") {
				if limit <= 0 {
					return usage(fmt.Errorf("--time %s: want a duration above 0", limit))
				}
				m.Limits.Time = limit
			}
			if memory != "" {
				if m.Limits.Memory, err = config.ParseSize(memory); err != nil {
					return usage(fmt.Errorf("--memory: %w", err))
				}
				if m.Limits.Memory <= 0 {
					return usage(fmt.Errorf("--memory %s: want a size above 0", memory))
				}
			}
			body, err := input(cmd.Context(), s, inputFile, args[1:])
			if err != nil {
				return err
			}
			h, err := parseHeaders(headers)
			if err != nil {
				return usage(err)
			}
			j := &job.Job{ID: "invoke", Route: "invoke", Module: name, Source: "invoke/0", Header: h, Body: body, Attempt: 1, TypeName: typeName}
			return invoke(cmd.Context(), s, cfg, j, output)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&inputFile, "file", "f", "", "read the input from this `file`; - for stdin")
	f.StringArrayVarP(&headers, "header", "H", nil, "a `'Name: value'` of the job; may be repeated")
	f.StringSliceVar(&allow, "allow-http", nil, "`host`:port that the module may ask over http; may be repeated")
	f.StringToStringVar(&settings, "set", nil, "a `name=value` of the module's config; may be repeated")
	f.DurationVar(&limit, "time", 0, "the module's limit of wall time")
	f.StringVar(&memory, "memory", "", "the module's limit of memory, as in 64MiB")
	f.StringVar(&typeName, "type", "", "type_name of the job, for DRASM modules")
	outputFlag(cmd, &output)
	configFlag(cmd, file)
	return cmd
}

// invocation is a configuration that holds the module, and the module's name in it.
func invocation(file, module string) (*config.Config, string, error) {
	if file != "" {
		cfg, err := load(file)
		if err != nil {
			return nil, "", err
		}
		if m, ok := cfg.Modules[module]; ok {
			cfg.Modules = map[string]*config.Module{module: m}
			return cfg, module, nil
		}
		return nil, "", fmt.Errorf("%s has no module %q; it has %s", file, module, strings.Join(slices.Sorted(maps.Keys(cfg.Modules)), ", "))
	}
	cfg := config.Default()
	if err := addModules(cfg, []string{module}, 1, nil); err != nil {
		return nil, "", err
	}
	return cfg, moduleName(module), nil
}

func invoke(ctx context.Context, s streams, cfg *config.Config, j *job.Job, output string) error {
	log, err := telemetry.NewLogger(s.err, cfg.Log.Format, cfg.Log.Level)
	if err != nil {
		return usage(err)
	}
	r, closeModules, err := sidecar.Runner(ctx, cfg, log)
	if err != nil {
		return usage(err)
	}
	defer closeModules()
	res, err := r.Run(ctx, j)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.Log(ctx, slog.LevelDebug, "failed", "err", err)
		o := &job.Outcome{Kind: job.KindOf(err), Err: job.CleanText(err.Error()), Attempts: 1, Module: j.Module}
		m := transport.Result(j, o, transport.EnvelopeNone, "")
		return printResult(s, output, "", false, string(o.Kind), job.Header{{Name: "Content-Type", Value: m.Header.Get("Content-Type")}}, m.Body)
	}
	return printResult(s, output, "", true, "", res.Header, res.Body)
}
