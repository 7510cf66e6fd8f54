package sidecar

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Which modules of a configuration need no claim before they run: those that were granted nothing and keep nothing.
func TestPure(t *testing.T) {
	t.Parallel()
	guest := func(name string) string { return filepath.Join("..", "..", "examples", "guests", name+".wasm") }
	for name, tt := range map[string]struct {
		source string
		change func(*config.Module)
		want   bool
	}{
		"nothing granted":          {guest("echo"), func(*config.Module) {}, true},
		"http":                     {guest("fetch"), func(m *config.Module) { m.Allow.HTTP = []string{"example.com:443"} }, false},
		"a used instance":          {guest("echo"), func(m *config.Module) { m.Isolation = "reuse" }, false},
		"an instance for each job": {guest("echo"), func(m *config.Module) { m.Isolation = "fresh" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, m := config.Default(), config.DefaultModule()
			m.Source = tt.source
			tt.change(m)
			cfg.Modules = map[string]*config.Module{"m": m}
			ms, err := loadModules(t.Context(), cfg, Options{Log: slog.New(slog.DiscardHandler)}, func(string, time.Duration) {})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(ms.close)
			r, err := ms.within(config.RouteLimits{}).find(&job.Job{Module: "m"})
			if err != nil {
				t.Fatal(err)
			}
			if p, ok := r.(job.Pure); !ok || p.Pure() != tt.want {
				t.Errorf("pure: %v, want %v", ok && p.Pure(), tt.want)
			}
		})
	}
}
