package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
)

func newRun(io streams) *cobra.Command {
	var dir, listen, admin, logFormat string
	var concurrency int
	var allow []string
	cmd := &cobra.Command{
		Use:   "run FILE.wasm...",
		Short: "Serve modules on the embedded NATS server, without a configuration",
		Long: `Serve each module on the embedded NATS server: FILE.wasm takes jobs at jobs.FILE, its results go to
results.FILE and to the subject that the job's Reply-To header names. The server listens on
loopback, so any NATS client can submit, subscribe, and request at request.jobs.FILE. Jobs
and results are kept in the data directory and survive a restart.`,
		Example: `  wasmsidecar run upper.wasm
  wasmsidecar run --listen 127.0.0.1:0 --dir /tmp/data upper.wasm echo.wasm`,
		Args:              between(1, 1000, "FILE.wasm"),
		ValidArgsFunction: wasmFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := config.Default()
			cfg.Embedded.Dir, cfg.Embedded.Listen = dir, listen
			cfg.Admin.Listen, cfg.Log.Format = admin, logFormat
			if admin == "off" {
				cfg.Admin.Listen = ""
			}
			if err := addModules(cfg, args, concurrency, allow); err != nil {
				return usage(err)
			}
			if err := cfg.Complete(); err != nil {
				return usage(err)
			}
			return serve(cmd.Context(), io, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", envOr("WASMSIDECAR_DATA", "wasmsidecar-data"), "data `directory`; WASMSIDECAR_DATA changes the default")
	f.StringVar(&listen, "listen", envOr("NATS_LISTEN", defaultListen), "`address` for NATS clients; NATS_LISTEN in the environment changes the default")
	f.StringVar(&admin, "admin", envOr("ADMIN_LISTEN", defaultAdmin), "`address` for health and metrics, or off; ADMIN_LISTEN changes the default")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	f.IntVar(&concurrency, "concurrency", 64, "most jobs of one module at once")
	f.StringSliceVar(&allow, "allow-http", nil, "`host`:port that the modules may ask over http; may be repeated")
	return cmd
}

// Where a sidecar without a configuration is found. The variables are those that the shipped configurations know.
const (
	defaultListen = "127.0.0.1:4222"
	defaultAdmin  = "127.0.0.1:9464"
)

// envOr is the variable's value, or def where it has none.
func envOr(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// wasmFiles completes arguments that are modules.
func wasmFiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"wasm"}, cobra.ShellCompDirectiveFilterFileExt
}

var notName = regexp.MustCompile(`[^a-z0-9_-]+`)

// moduleName makes a module's name of its file's.
func moduleName(file string) string {
	base := strings.TrimSuffix(filepath.Base(file), ".wasm")
	return strings.Trim(notName.ReplaceAllString(strings.ToLower(base), "-"), "-_")
}

// addModules gives each file a module and a route.
func addModules(cfg *config.Config, files []string, concurrency int, allow []string) error {
	cfg.Modules = map[string]*config.Module{}
	for _, file := range files {
		name := moduleName(file)
		if name == "" {
			return fmt.Errorf("%q gives no module name: rename the file", file)
		}
		if m, twice := cfg.Modules[name]; twice {
			return fmt.Errorf("%q and %q are both named %q: rename one", m.Source, file, name)
		}
		m := config.DefaultModule()
		m.Source, m.Allow.HTTP = file, allow
		cfg.Modules[name] = m
		r := config.DefaultRoute()
		r.From, r.Module, r.To, r.Concurrency = "jobs."+name, name, "results."+name, concurrency
		cfg.Routes = append(cfg.Routes, r)
	}
	return nil
}
