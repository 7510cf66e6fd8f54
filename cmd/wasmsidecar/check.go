package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
)

func newCheck(io streams, file *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Validate a configuration and its modules",
		Long: `Validate a configuration file: every mistake is listed with its line and column, every module is
found, verified and compiled. The resolved configuration, defaults filled in and secrets
hidden, is printed. No broker is asked.`,
		Example: `  wasmsidecar check kafka.yaml`,
		Args:    atMost(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := *file
			if len(args) == 1 {
				if name != "" {
					return usage(fmt.Errorf("the configuration is given twice: %q and --config %q", args[0], name))
				}
				name = args[0]
			}
			cfg, err := load(name)
			if err != nil {
				return err
			}
			return checkConfig(cmd.Context(), io, cfg)
		},
	}
	configFlag(cmd, file)
	return cmd
}

func checkConfig(ctx context.Context, io streams, cfg *config.Config) error {
	if err := cfg.NeedRoutes(); err != nil {
		return usage(err)
	}
	if err := sidecar.Check(ctx, cfg, slog.New(slog.DiscardHandler)); err != nil {
		return usage(err)
	}
	return cfg.Print(io.out)
}

// atMost takes up to n arguments.
func atMost(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return usage(fmt.Errorf("%d arguments too many: %q; see %s --help", len(args)-n, args[n:], cmd.CommandPath()))
		}
		return nil
	}
}

// between takes from lo to hi arguments.
func between(lo, hi int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < lo {
			return usage(fmt.Errorf("%s is missing; see %s --help", what, cmd.CommandPath()))
		}
		return atMost(hi)(cmd, args)
	}
}
