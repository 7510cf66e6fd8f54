package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/module"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// modules holds the runners of a configuration by name.
type modules struct {
	engine *runtime.Engine
	source *module.Source
	log    *slog.Logger
	byName map[string]job.Runner
	slots  []*slot // of those that have a file, by name

	ending sync.WaitGroup  // of versions that were replaced
	until  context.Context // over when nobody waits for that any more
	stop   func()
}

// loadModules finds, verifies and compiles every module of the configuration, several at a time. Every module that cannot be
// loaded is named.
func loadModules(ctx context.Context, cfg *config.Config, opt Options, compiled func(string, time.Duration)) (*modules, error) {
	ms := &modules{log: opt.Log, byName: map[string]job.Runner{}}
	ms.until, ms.stop = context.WithCancel(context.Background())
	for name, r := range opt.Runners {
		ms.byName[name] = r
	}
	if len(cfg.Modules) == 0 {
		return ms, nil
	}
	var err error
	if ms.source, err = module.New(module.Config{}); err != nil {
		return nil, err
	}
	ms.engine, err = newEngine(cfg, runtime.Config{MemoryBudget: budget(cfg, opt.Log), Log: opt.Log, Compiled: func(c runtime.Compilation) {
		if c.Err == nil {
			compiled(c.Module, c.Duration)
		}
	}})
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for name, m := range cfg.Modules {
		if opt.Runners[name] != nil {
			continue
		}
		wg.Go(func() {
			s := &slot{name: name, cfg: m}
			err := s.open(ctx, ms)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err) // names the module
				return
			}
			ms.byName[name] = s
			ms.slots = append(ms.slots, s)
		})
	}
	wg.Wait()
	slices.SortFunc(ms.slots, func(a, b *slot) int { return strings.Compare(a.name, b.name) })
	if len(errs) > 0 {
		ms.close()
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return nil, errors.Join(errs...)
	}
	return ms, nil
}

// load makes a runner of a module's bytes.
func (ms *modules) load(ctx context.Context, name string, m *config.Module, wasm []byte) (*runtime.Module, error) {
	r, err := ms.engine.Load(ctx, runtime.ModuleConfig{
		Name: name, Wasm: wasm, Digest: m.SHA256, Limits: limitsOf(m.Limits), Allow: runtime.Allow{HTTP: m.Allow.HTTP, Files: dirsOf(m.Allow.Files)}, Config: m.Config,
		Env: runtime.Env{Headers: m.Env.Headers, Vars: m.Env.Vars}, Args: m.Args, ABI: runtime.ABI(m.ABI), Function: m.Function,
		Isolation: runtime.Isolation(m.Isolation), Interpreter: m.Engine == "interpreter",
	})
	if err != nil {
		return nil, err
	}
	abi, why := r.ABI()
	ms.log.Debug("module loaded", "module", name, "abi", abi, "why", why, "digest", r.Digest())
	return r, nil
}

// find returns the runner of a job's module.
func (ms *modules) find(j *job.Job) (job.Runner, error) {
	if r, ok := ms.byName[j.Module]; ok {
		return r, nil
	}
	if j.Module == "" {
		return nil, job.Errorf(job.KindInvalid, "the job names no module: set the header Wasm-Module to one of %s", strings.Join(ms.names(), ", "))
	}
	return nil, job.Errorf(job.KindInvalid, "there is no module %q; there are %s", job.CleanText(j.Module), strings.Join(ms.names(), ", "))
}

func (ms *modules) names() []string {
	out := make([]string, 0, len(ms.byName))
	for name := range ms.byName {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (ms *modules) close() {
	ms.stop()
	ms.ending.Wait()
	if ms.engine == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := ms.engine.Close(ctx); err != nil {
		ms.log.Warn("closing the engine", "err", err)
	}
}

// newEngine returns an engine with the cache that cfg names. Where it names none, and there is no place for one or it cannot be used, nothing
// is kept.
func newEngine(cfg *config.Config, rc runtime.Config) (*runtime.Engine, error) {
	rc.CacheSize, rc.CompileTime = int64(cfg.Cache.MaxSize), cfg.Compile.Timeout
	if cfg.Cache.Off || cfg.Cache.Dir != "" {
		rc.CacheDir = cfg.Cache.Dir
		return runtime.New(rc)
	}
	base, err := os.UserCacheDir()
	if err == nil {
		rc.CacheDir = filepath.Join(base, "wasmsidecar")
		var e *runtime.Engine
		if e, err = runtime.New(rc); err == nil || !errors.Is(err, runtime.ErrCache) {
			return e, err
		}
	}
	rc.Log.Warn("compiled modules are not kept, so that each start compiles them; set cache.dir to a directory that can be written, or cache: off", "err", err)
	rc.CacheDir = ""
	return runtime.New(rc)
}

// Check finds, verifies and compiles the modules of a configuration and reads the files it names. It asks no broker.
func Check(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	ms, err := loadModules(ctx, cfg, Options{Log: log}, func(string, time.Duration) {})
	if err != nil {
		return err
	}
	ms.close()
	if _, err := scheduled(cfg); err != nil {
		return err
	}
	for section, t := range map[string]config.TLS{"kafka": cfg.Kafka.TLS, "redis": cfg.Redis.TLS, "nats": cfg.NATS.TLS} {
		if _, err := tlsConfig(section, t); err != nil {
			return err
		}
	}
	return nil
}

// Runner loads the modules of a configuration to run jobs without a broker. The returned function closes them.
func Runner(ctx context.Context, cfg *config.Config, log *slog.Logger) (job.Runner, func(), error) {
	ms, err := loadModules(ctx, cfg, Options{Log: log}, func(string, time.Duration) {})
	if err != nil {
		return nil, nil, err
	}
	return job.RunnerFunc(func(ctx context.Context, j *job.Job) (*job.Result, error) {
		r, err := ms.find(j)
		if err != nil {
			return nil, err
		}
		return r.Run(ctx, j)
	}), ms.close, nil
}
