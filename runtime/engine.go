package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// MaxModuleSize is the largest module that is compiled, in bytes: a compilation takes some twenty times as much memory.
const MaxModuleSize = 64 << 20

// DefaultCompileTime is what a module may take to be compiled by an engine whose configuration says nothing: some twenty times what
// the largest ones do that toolchains make.
const DefaultCompileTime = 2 * time.Minute

// Config is what an Engine needs.
type Config struct {
	// CacheDir keeps machine code between starts. It is made with mode 0700 and refused when others own it or may write to
	// it: who can write there can run code in this process. Empty: nothing is kept.
	CacheDir string
	// CacheSize is how many bytes CacheDir may take up: beyond it the code that was not used for the longest time is removed,
	// unless it is in use in this or another process. 0: unbounded.
	CacheSize int64
	// MemoryBudget bounds what the memory of all guests together may take, in bytes: the limits of all jobs that run at once,
	// and what idle instances have. A job that does not fit waits; a module whose limit is larger is not loaded. 0: unbounded.
	MemoryBudget int64
	// CompileWorkers is how many threads one compilation may use; 0: as many as there are processors.
	CompileWorkers int
	// CompileTime is how long a module may take to be compiled: then Load gives up, and the compilation ends as soon as the function
	// that is at is done. 0: DefaultCompileTime.
	CompileTime time.Duration
	// Portable leaves alone what only this operating system can do. The environment variable WASMSIDECAR_PORTABLE=1 means the
	// same.
	Portable bool
	// Log takes what guests write and what the engine has to say; nil: nothing is logged.
	Log *slog.Logger
	// Resolver finds the addresses of host names for guests' http requests; nil: the system's.
	Resolver host.Resolver
	// Compiled is told of each compilation, warm ones from CacheDir included, from the goroutine that made it; may be nil.
	Compiled func(Compilation)
}

// Compilation is one compilation of a module.
type Compilation struct {
	Module   string // the name under which it was loaded first
	Digest   string
	Duration time.Duration
	Warm     bool // the machine code came from CacheDir
	Err      error
}

// Engine compiles modules and runs their jobs. It may be used by many goroutines.
type Engine struct {
	cfg    Config
	disk   *diskCache // nil: nothing is kept
	budget *budget
	egress *host.Egress
	start  time.Time // of the guests' monotonic clock
	means  func() means

	mu       sync.Mutex
	closed   bool
	builds   sync.WaitGroup // grows only under mu while not closed
	memories memories       // once they are used
	codes    map[codeKey]*code
	modules  map[*Module]struct{}
}

// New returns an Engine. It starts nothing; Close gives back what its modules hold.
func New(cfg Config) (*Engine, error) {
	if cfg.MemoryBudget < 0 || cfg.CompileWorkers < 0 || cfg.CacheSize < 0 || cfg.CompileTime < 0 {
		return nil, errors.New("open wasm engine: a number is below zero")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.CompileTime == 0 {
		cfg.CompileTime = DefaultCompileTime
	}
	if cfg.CompileWorkers == 0 {
		cfg.CompileWorkers = goruntime.GOMAXPROCS(0)
	}
	e := &Engine{cfg: cfg, budget: &budget{limit: cfg.MemoryBudget, pools: map[*pool]struct{}{}}, egress: host.NewEgress(cfg.Resolver), start: time.Now(), codes: map[codeKey]*code{}, modules: map[*Module]struct{}{}}
	e.means = sync.OnceValue(func() means {
		better := newMapped
		if cfg.Portable || os.Getenv("WASMSIDECAR_PORTABLE") == "1" {
			better = nil
		}
		m := findMeans(better, cfg.Log)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.memories = m.memories
		return m
	})
	if cfg.CacheDir != "" {
		var err error
		if e.disk, err = openDiskCache(cfg.CacheDir, cfg.CacheSize, cfg.Log); err == nil {
			err = e.disk.evict()
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCache, err)
		}
	}
	return e, nil
}

// ModuleConfig is a module and what it may do.
type ModuleConfig struct {
	Name   string // in the log, in results and in errors
	Wasm   []byte // the binary; not kept
	Digest string // SHA-256 that Wasm must have, in hex, with or without "sha256:" before it; empty: any

	Limits      Limits            // zero: DefaultLimits
	Allow       Allow             // zero: nothing is granted
	Config      map[string]string // for config_get, and as CONFIG_<NAME> in the environment
	Env         Env               // the environment of guests that use WASI
	Args        []string          // a command's arguments after its name
	ABI         ABI               // empty or ABIAuto: by Classify
	Function    string            // the export that an Extism plug-in is called by; empty: handle, run, or the only one
	Isolation   Isolation         // empty: IsolationReset
	Interpreter bool              // interpret rather than compile: slow, for code that the compiler gets wrong
}

// Allow grants capabilities; what is not granted is denied.
type Allow struct {
	HTTP  []string // hosts that may be asked, as host.ParsePolicy reads them
	Files []Dir    // directories whose files may be used through WASI
}

// none says that nothing is granted, whatever capabilities are yet to come.
func (a Allow) none() bool {
	for _, grant := range reflect.ValueOf(a).Fields() {
		if list := grant.Kind() == reflect.Slice || grant.Kind() == reflect.Map; list && grant.Len() > 0 || !list && !grant.IsZero() {
			return false
		}
	}
	return true
}

// Load compiles a module and returns it ready to run. The same bytes are compiled once, however many callers load them at the
// same time; each gets a Module of its own, which is closed by Close or with the engine. cfg.Wasm must not be changed before the engine is
// closed or Load has returned a Module. An error is a *job.Error and says what
// is wrong with the module (KindInvalid), or that the engine is closed or ctx ended (KindUnavailable).
func (e *Engine) Load(ctx context.Context, cfg ModuleConfig) (*Module, error) {
	m, err := e.load(ctx, cfg)
	if err != nil {
		kind := job.KindInvalid
		if errors.Is(err, errClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			kind = job.KindUnavailable
		}
		return nil, &job.Error{Kind: kind, Err: fmt.Errorf("load module %q: %w", cfg.Name, err)}
	}
	return m, nil
}

func (e *Engine) load(ctx context.Context, cfg ModuleConfig) (*Module, error) {
	if cfg.Name == "" {
		return nil, errors.New("it has no name")
	}
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits()
	}
	if err := cfg.Limits.check(); err != nil {
		return nil, err
	}
	if err := e.budget.fits(cfg.Limits.Memory); err != nil {
		return nil, err
	}
	policy, err := host.ParsePolicy(cfg.Allow.HTTP)
	if err != nil {
		return nil, err
	}
	if err := checkText(cfg); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(cfg.Wasm)
	digest := hex.EncodeToString(sum[:])
	if cfg.Digest != "" && !strings.EqualFold(strings.TrimPrefix(cfg.Digest, "sha256:"), digest) {
		return nil, fmt.Errorf("sha256 is %s; want %s", digest, cfg.Digest)
	}
	c, err := e.compile(ctx, codeKey{digest, cfg.Limits.pages(), cfg.Interpreter}, cfg)
	if err != nil {
		return nil, err
	}
	m, err := e.assemble(ctx, c, cfg, policy)
	if err != nil {
		e.release(c)
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		e.releaseLocked(c)
		return nil, errClosed
	}
	e.modules[m] = struct{}{}
	return m, nil
}

var errClosed = errors.New("the engine is closed")

// assemble makes a Module of compiled code and the wishes of its configuration.
func (e *Engine) assemble(ctx context.Context, c *code, cfg ModuleConfig, policy host.Policy) (*Module, error) {
	m := &Module{engine: e, code: c, name: cfg.Name, abi: cfg.ABI, why: "the configuration says so"}
	var err error
	if m.abi == "" || m.abi == ABIAuto {
		if m.abi, m.why, err = Classify(c.imports, c.exports); err != nil {
			return nil, err
		}
	}
	if m.driver, err = driverOf(m.abi, cfg.Function, c.exports); err != nil {
		return nil, err
	}
	if err := m.driver.fits(c.exports, c.exported); err != nil {
		return nil, fmt.Errorf("abi %s: %w", m.abi, err)
	}
	if err := c.link(ctx, m.abi); err != nil {
		return nil, err
	}
	if len(cfg.Args) > 0 && m.abi != ABICommand {
		return nil, fmt.Errorf("args are for commands; this module's abi is %s", m.abi)
	}
	e.warnUnused(c, cfg)
	cfg.Limits.Memory = int64(cfg.Limits.pages()) * pageSize
	m.own = terms{cfg.Limits, cfg.Limits.grants(host.Grants{
		Module: cfg.Name, Config: maps.Clone(cfg.Config), HTTP: policy, Egress: e.egress, Logger: e.cfg.Log,
	})}
	m.around = surroundings{
		program: m.abi == ABICommand, args: append([]string{cfg.Name}, cfg.Args...),
		vars: varsOf(cfg.Env, cfg.Config), headers: cfg.Env.Headers, start: e.start,
	}
	if m.around.preopens, err = e.preopens(cfg.Allow.Files); err != nil {
		return nil, err
	}
	if m.instances, err = e.isolate(m, cfg); err != nil {
		return nil, errors.Join(err, closeAll(m.around.preopens))
	}
	m.pure = cfg.Allow.none() && cfg.Isolation != IsolationReuse
	return m, nil
}

// isolate returns what keeps the jobs of m apart.
func (e *Engine) isolate(m *Module, cfg ModuleConfig) (instances, error) {
	p := &pool{code: m.code, driver: m.driver, budget: e.budget, log: e.cfg.Log, module: m.name}
	switch cfg.Isolation {
	case "", IsolationReset, IsolationFrozen:
		if cfg.Isolation == IsolationFrozen && m.abi != ABICommand {
			return nil, fmt.Errorf("isolation: only programs can be frozen, and this module's abi is %s; want reset", m.abi)
		}
		if why := m.unfit(); why != "" {
			e.cfg.Log.Info("module cannot be reset; each job has an instance of its own", "module", m.name, "why", why)
			break
		}
		p.means = e.means()
		p.draws = cfg.Isolation == IsolationFrozen
		switch {
		case m.abi != ABICommand:
		case !p.means.freezes:
			p.thaw(errors.New("this system cannot stop a call and go on in another"))
		case cfg.Interpreter:
			p.thaw(errors.New("it is interpreted"))
		case cfg.Env.Headers:
			p.thaw(errors.New("it may have seen the job's headers (env.headers) when it first reads"))
		default:
			p.freeze = true
		}
		e.budget.join(p)
		return p, nil
	case IsolationReuse:
		if !m.driver.reactor() {
			return nil, fmt.Errorf("isolation: a guest of abi %s runs once, so its instance cannot be used again as it is; want reset or fresh", m.abi)
		}
		p.means, p.reuse = e.means(), true
		e.budget.join(p)
		return p, nil
	case IsolationFresh:
	default:
		return nil, fmt.Errorf("unknown isolation %q; want reset, frozen, fresh or reuse", cfg.Isolation)
	}
	return &fresh{code: m.code, driver: m.driver}, nil
}

// warnUnused says what was configured for a guest that has no means to see it.
func (e *Engine) warnUnused(c *code, cfg ModuleConfig) {
	imports := func(name string) bool {
		return slices.ContainsFunc(c.imports, func(f Func) bool { return f.Name == name })
	}
	env := imports("environ_get")
	if len(cfg.Config) > 0 && !env && !imports("config_get") {
		e.cfg.Log.Warn("module has a config but imports nothing that could read it", "module", cfg.Name)
	}
	if (cfg.Env.Headers || len(cfg.Env.Vars) > 0) && !env {
		e.cfg.Log.Warn("module has an env but imports nothing that could read it", "module", cfg.Name)
	}
	if len(cfg.Allow.Files) > 0 && !imports("path_open") {
		e.cfg.Log.Warn("module is allowed files but imports nothing that could open one", "module", cfg.Name)
	}
	http := asks(c.imports, "http")
	if len(cfg.Allow.HTTP) > 0 && !http {
		e.cfg.Log.Warn("module is allowed http but imports nothing that could use it", "module", cfg.Name)
	}
	if len(cfg.Allow.HTTP) == 0 && http {
		e.cfg.Log.Warn("module imports http but has no allow.http; its requests will be denied", "module", cfg.Name)
	}
}

// checkText refuses what cannot be put into a guest's environment or arguments.
func checkText(cfg ModuleConfig) error {
	for name, value := range cfg.Env.Vars {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("env variable %q: a name must not be empty or hold =, and neither may hold a NUL", name)
		}
	}
	for name, value := range cfg.Config {
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("config %q holds a NUL", name)
		}
	}
	for _, a := range append([]string{cfg.Name}, cfg.Args...) {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("argument %q holds a NUL", a)
		}
	}
	return nil
}

// forget drops a module that nobody runs any more.
func (e *Engine) forget(m *Module) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.modules[m]; ok {
		delete(e.modules, m)
		e.releaseLocked(m.code)
	}
}

// Close refuses further loads and runs, waits for the runs under way or for ctx to end, and gives back what the engine holds.
// After an error it may be called again; runs end by their time limits in any case. It may be called more than once.
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	e.closed = true
	modules := slices.Collect(maps.Keys(e.modules))
	for _, c := range e.codes {
		c.stop(errClosed) // where it is still being compiled
	}
	e.mu.Unlock()
	var errs []error
	for _, m := range modules {
		errs = append(errs, m.Close(ctx))
	}
	errs = append(errs, e.built(ctx))
	e.egress.Close()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	e.mu.Lock()
	memories := e.memories
	e.memories = nil
	e.mu.Unlock()
	if memories != nil {
		if err := memories.close(); err != nil {
			return fmt.Errorf("close memories: %w", err)
		}
	}
	return nil
}

// built waits for the compilations under way, which have been told to end, or for ctx to end.
func (e *Engine) built(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.builds.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close wasm engine: a module is still being compiled: %w", ctx.Err())
	}
}
