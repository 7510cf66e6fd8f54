package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/telemetry"
)

// streams are what the command reads and writes: stdout carries data, stderr carries talk.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func newRoot(io streams) *cobra.Command {
	var file string
	var check bool
	var connectTimeout time.Duration
	root := &cobra.Command{
		Use:   "wasmsidecar",
		Short: "Turn a message topic into a sandboxed function",
		Long: `wasmsidecar takes jobs from Kafka, Redis Streams or NATS JetStream, runs the WebAssembly
module that the route names in a clean sandbox, publishes the result, and only then settles
the message. A configuration file says which broker and which modules; a bare name is looked
for here and then in configs/. Without --config it is embedded.yaml: a NATS server with
JetStream inside the process, durable, nothing to install.`,
		Example: `  wasmsidecar --config kafka.yaml          carry jobs until SIGTERM, then drain
  wasmsidecar --config kafka.yaml --check  validate the file, print it resolved, and exit
  wasmsidecar run upper.wasm               serve one module at jobs.upper, no configuration
  wasmsidecar submit upper hello           send it a job and wait for the result`,
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(file)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("connect-timeout") {
				cfg.ConnectTimeout = connectTimeout
			}
			if check {
				return checkConfig(cmd.Context(), io, cfg)
			}
			return serve(cmd.Context(), io, cfg)
		},
	}
	root.PersistentFlags().StringVarP(&file, "config", "c", "", "configuration `file`, looked for here and in configs/")
	root.Flags().BoolVar(&check, "check", false, "validate the configuration and its modules, print it resolved, and exit")
	root.Flags().DurationVar(&connectTimeout, "connect-timeout", time.Minute, "how long to wait for broker and store at the start; 0 for ever")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(fmt.Errorf("%w; see %s --help", err, cmd.CommandPath()))
	})
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddCommand(
		newRun(io), newSubmit(io, &file), newInvoke(io, &file), newCheck(io, &file), newVersion(io), newHealthcheck(io),
	)
	return root
}

// noArgs refuses arguments, and says which command was perhaps meant.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q; see %s --help", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("unknown command %q; did you mean %q?", args[0], near[0])
	}
	return usage(err)
}

// load reads the configuration file; without a name, embedded.yaml.
func load(name string) (*config.Config, error) {
	if name == "" {
		cfg, err := config.Load("embedded.yaml")
		if errors.Is(err, os.ErrNotExist) {
			return nil, usage(errors.New("no configuration: give --config FILE, or serve modules without one by wasmsidecar run FILE.wasm"))
		}
		return cfg, asUsage(err)
	}
	cfg, err := config.Load(name)
	return cfg, asUsage(err)
}

func asUsage(err error) error {
	if err == nil {
		return nil
	}
	return usage(err)
}

// serve runs a configuration until a signal, and drains.
func serve(ctx context.Context, io streams, cfg *config.Config) error {
	log, err := telemetry.NewLogger(io.err, cfg.Log.Format, cfg.Log.Level)
	if err != nil {
		return usage(err)
	}
	if err := cfg.NeedRoutes(); err != nil {
		return usage(err)
	}
	if err := limitMemory(); err != nil {
		log.Warn("no memory limit", "err", err)
	}
	s, err := sidecar.New(ctx, cfg, sidecar.Options{Log: log, Version: version()})
	if err != nil {
		return usage(err)
	}
	return s.Run(ctx)
}
