package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
				if connectTimeout < 0 {
					return usage(fmt.Errorf("--connect-timeout %s: want a duration from 0 (for ever)", connectTimeout))
				}
				cfg.ConnectTimeout = connectTimeout
			}
			if check {
				return checkConfig(cmd.Context(), io, cfg)
			}
			return serve(cmd.Context(), io, cfg)
		},
	}
	configFlag(root, &file)
	root.Flags().BoolVar(&check, "check", false, "validate the configuration and its modules, print it resolved, and exit")
	root.Flags().DurationVar(&connectTimeout, "connect-timeout", time.Minute, "how long to wait for broker and store at the start; 0 for ever")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if near := nearFlag(cmd, err); near != "" {
			return usage(fmt.Errorf("%w; did you mean %q?", err, near))
		}
		return usage(fmt.Errorf("%w; see %s --help", err, cmd.CommandPath()))
	})
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(
		newRun(io), newSubmit(io, &file), newInvoke(io, &file), newInspect(io), newCheck(io, &file),
		newDLQ(io, &file), newBench(io, &file), newVersion(io), newHealthcheck(io),
	)
	root.SetHelpCommand(newHelp(root))
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		c.Args = noArgs
		c.RunE = func(*cobra.Command, []string) error {
			return usage(errors.New("the shell is missing: wasmsidecar completion bash, zsh, fish or powershell"))
		}
	}
	return root
}

// configFlag adds --config to a command that reads a configuration.
func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "", "configuration `file`, looked for here and in configs/")
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic(err) // there is no such flag
	}
}

// nearFlag is the flag that was perhaps meant by one that is unknown; "" for none.
func nearFlag(cmd *cobra.Command, err error) string {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || len(unknown.GetSpecifiedName()) < 2 {
		return ""
	}
	names := &cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	if near := names.SuggestionsFor(unknown.GetSpecifiedName()); len(near) > 0 {
		return "--" + near[0]
	}
	return ""
}

func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [command]",
		Short:   "Explain a command",
		Long:    "Explain a command, as its --help does.",
		Example: `  wasmsidecar help submit`,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == root && len(rest) > 0 {
				return noArgs(root, args)
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
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
	redis.SetLogger(redisLog{log})
	if err := cfg.NeedRoutes(); err != nil {
		return usage(err)
	}
	tuneCollector()
	if err := limitMemory(); err != nil {
		log.Warn("no memory limit", "err", err)
	}
	defer context.AfterFunc(ctx, func() {
		log.Info("ending in good order; once more to leave at once", "signal", context.Cause(ctx).Error())
	})()
	s, err := sidecar.New(ctx, cfg, sidecar.Options{Log: log, Version: version()})
	if err != nil {
		return usage(err)
	}
	defer onHangup(s.Reload)()
	return s.Run(ctx)
}
