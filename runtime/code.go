package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
	"github.com/wasmsidecar/wasmsidecar/runtime/wasi"
)

// codeKey is what compiled code depends on.
type codeKey struct {
	digest      string
	pages       uint32 // the memory limit is compiled in
	interpreter bool
}

// code is a compiled module in a wazero runtime of its own, shared by all Modules with the same key. Host functions find
// their call in the context, so sharing shares no grants.
type code struct {
	key    codeKey
	digest string
	refs   int           // under Engine.mu
	ready  chan struct{} // closed when the fields below stand
	err    error

	building context.Context // over when nobody waits for the build, or it takes too long
	stop     context.CancelCauseFunc

	entry     *entry                  // on disk; nil: none
	cache     wazero.CompilationCache // of the runtime; nil: none
	rt        wazero.Runtime
	compiled  wazero.CompiledModule
	rewritten *rewrite.Module // without its bytes
	imports   []Func
	exports   []Func
	memory    bool // has a memory of its own
	exported  bool // exports it as "memory"
	// functions are the exports' names by the names that they have in stack traces where the module has no other.
	functions map[string]string

	linkMu sync.Mutex
	linked map[string][]Func // host modules that are instantiated
}

// Why a build was broken off.
var (
	errCompileTime = errors.New("it takes too long")
	errAbandoned   = errors.New("nobody waits for it any more")
)

// compile returns the code for key, made once however many callers want it. It waits for it no longer than Config.CompileTime.
// release gives it back.
func (e *Engine) compile(ctx context.Context, key codeKey, cfg ModuleConfig) (*code, error) {
	for {
		c, err := e.share(ctx, key, cfg)
		if !errors.Is(err, errAbandoned) {
			return c, err
		}
	}
}

// share is compile, which also fails with errAbandoned: others wanted the code, gave up, and the build took a while to notice.
func (e *Engine) share(ctx context.Context, key codeKey, cfg ModuleConfig) (*code, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, errClosed
	}
	c, found := e.codes[key]
	if !found {
		c = &code{key: key, digest: key.digest, ready: make(chan struct{}), linked: map[string][]Func{}, functions: map[string]string{}}
		c.building, c.stop = context.WithCancelCause(context.Background())
		e.codes[key] = c
		c.refs++ // the build's own
		e.builds.Go(func() { e.run(c, cfg) })
	}
	c.refs++
	e.mu.Unlock()
	if err := c.wait(ctx); err != nil {
		e.release(c)
		return nil, err
	}
	return c, nil
}

// wait waits for the build.
func (c *code) wait(ctx context.Context) error {
	select {
	case <-c.ready:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	case <-c.building.Done():
	}
	// The build ends with the function that it is at. Whoever comes after it was abandoned waits for that, and no one else.
	if cause := context.Cause(c.building); cause != errAbandoned {
		select {
		case <-c.ready:
			return c.err
		default:
			return fmt.Errorf("compile: %w", cause)
		}
	}
	select {
	case <-c.ready:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run builds c, and gives up when it takes too long or nobody waits.
func (e *Engine) run(c *code, cfg ModuleConfig) {
	late := time.AfterFunc(e.cfg.CompileTime, func() {
		c.stop(fmt.Errorf("%w: more than %s (compile.timeout)", errCompileTime, e.cfg.CompileTime))
	})
	defer late.Stop()
	c.err = errors.New("compiler panicked") // stands unless build returns
	defer e.release(c)
	defer close(c.ready)
	c.err = e.build(c, cfg)
}

func (e *Engine) release(c *code) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.releaseLocked(c)
}

func (e *Engine) releaseLocked(c *code) {
	c.refs--
	if c.refs == 1 {
		select {
		case <-c.ready:
		default:
			c.stop(errAbandoned) // the build's own reference is left
		}
	}
	if c.refs > 0 {
		return
	}
	if e.codes[c.key] == c {
		delete(e.codes, c.key)
	}
	c.close()
	if c.entry != nil {
		c.entry.close()
	}
}

// build compiles, and ends with c.building, as soon as the function that is being compiled then is done.
func (e *Engine) build(c *code, cfg ModuleConfig) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("compile: the compiler panicked: %v; try engine: interpreter", p)
		}
	}()
	var wasm []byte
	if wasm, c.memory, err = inspect(cfg.Wasm, c.key.pages); err != nil {
		return err
	}
	if c.rewritten, err = rewrite.Rewrite(wasm, rewrite.Options{MaxPages: c.key.pages}); err != nil {
		return fmt.Errorf("compile: %w", err)
	}
	if why := c.rewritten.Uninstantiable; why != "" {
		return errors.New("it cannot be instantiated: " + why)
	}
	wasm, c.rewritten.Wasm = c.rewritten.Wasm, nil
	ctx := experimental.WithCompilationWorkers(c.building, e.cfg.CompileWorkers)
	start := time.Now()
	warm, err := e.compileCached(ctx, c, wasm, cfg.Name)
	if err != nil {
		err = fmt.Errorf("compile: %w", err)
	}
	if e.cfg.Compiled != nil {
		e.cfg.Compiled(Compilation{Module: cfg.Name, Digest: c.digest, Duration: time.Since(start), Warm: warm, Err: err})
	}
	if err != nil {
		return err
	}
	if err := instantiateMeter(ctx, c.rt, c.rewritten); err != nil {
		return err
	}
	return c.read()
}

// openingCache is held while a cache is opened: wazero 1.12 finds out its own version then and keeps it in a variable without a lock.
var openingCache sync.Mutex

func openCache(dir string) (wazero.CompilationCache, error) {
	openingCache.Lock()
	defer openingCache.Unlock()
	return wazero.NewCompilationCacheWithDir(dir)
}

// compileCached compiles wasm for c, or takes what an earlier compilation left on disk. A cache that does not work costs a
// log line and a compilation.
func (e *Engine) compileCached(ctx context.Context, c *code, wasm []byte, name string) (warm bool, err error) {
	if e.disk == nil || c.key.interpreter {
		return false, c.compile(ctx, wasm, nil)
	}
	useless := func(err error) {
		e.cfg.Log.Warn("compilation cache cannot be used", "dir", e.cfg.CacheDir, "module", name, "err", err)
	}
	if c.entry, err = e.disk.open(wasm); err != nil {
		useless(err)
		return false, c.compile(ctx, wasm, nil)
	}
	warm = c.entry.holds()
	cache, err := openCache(c.entry.dir)
	if err == nil {
		err = c.compile(ctx, wasm, cache)
	}
	var path *fs.PathError
	if err != nil && (errors.As(err, &path) || strings.HasPrefix(err.Error(), "compilationcache:")) {
		useless(err)
		if err := c.entry.clear(); err != nil {
			useless(err)
		}
		return false, c.compile(ctx, wasm, nil)
	}
	if err != nil || warm {
		return warm, err
	}
	if err := errors.Join(c.entry.seal(), e.disk.evict()); err != nil {
		useless(err)
	}
	return false, nil
}

// compile compiles wasm in a runtime of its own.
func (c *code) compile(ctx context.Context, wasm []byte, cache wazero.CompilationCache) (err error) {
	c.close() // what was tried before
	rc := wazero.NewRuntimeConfigCompiler()
	if c.key.interpreter {
		rc = wazero.NewRuntimeConfigInterpreter()
	}
	// One page more than guests get: see cut.
	rc = rc.WithMemoryLimitPages(min(c.key.pages+1, maxPages)).WithDebugInfoEnabled(false)
	if c.cache = cache; cache != nil {
		rc = rc.WithCompilationCache(cache)
	}
	c.rt = wazero.NewRuntimeWithConfig(ctx, rc)
	c.compiled, err = c.rt.CompileModule(ctx, wasm)
	return err
}

// close gives back what compile made. The machine code itself goes with the next collection.
func (c *code) close() {
	ctx := context.Background()
	if c.compiled != nil {
		_ = c.compiled.Close(ctx)
	}
	if c.rt != nil {
		_ = c.rt.Close(ctx)
	}
	if c.cache != nil {
		_ = c.cache.Close(ctx) // closes what the runtime would without a cache
	}
	c.compiled, c.rt, c.cache = nil, nil, nil
}

// read takes down what the module imports and exports.
func (c *code) read() error {
	for _, d := range c.compiled.ImportedFunctions() {
		module, name, _ := d.Import()
		if module == c.rewritten.RefuelModule {
			continue
		}
		c.imports = append(c.imports, Func{Module: module, Name: name, Type: typeOf(d)})
	}
	for name, d := range c.compiled.ExportedFunctions() {
		if name == c.rewritten.Start {
			continue
		}
		c.exports = append(c.exports, Func{Name: name, Type: typeOf(d)})
		c.functions["$"+strconv.FormatUint(uint64(d.Index()), 10)] = name
	}
	slices.SortFunc(c.exports, func(a, b Func) int { return strings.Compare(a.Name, b.Name) })
	_, c.exported = c.compiled.ExportedMemories()["memory"]
	if len(c.imports) > 0 && !c.memory {
		return errors.New("it imports functions but has no memory, which they need")
	}
	return nil
}

// link instantiates the host modules that the guest wants and checks that they have all of it.
func (c *code) link(ctx context.Context, a ABI) error {
	c.linkMu.Lock()
	defer c.linkMu.Unlock()
	for _, f := range c.imports {
		if _, ok := c.linked[f.Module]; ok {
			continue
		}
		var err error
		switch {
		case f.Module == abi.WASI:
			err = wasi.Instantiate(context.WithoutCancel(ctx), c.rt)
		case slices.Contains(host.Names(), f.Module):
			err = host.Instantiate(context.WithoutCancel(ctx), c.rt, f.Module)
		default:
			continue
		}
		if err != nil {
			return err
		}
		c.linked[f.Module] = functionsOf(c.rt.Module(f.Module))
	}
	return checkImports(c.imports, a, func(module string) []Func { return c.linked[module] })
}

func functionsOf(m api.Module) []Func {
	out := []Func{}
	for name, d := range m.ExportedFunctionDefinitions() {
		out = append(out, Func{Name: name, Type: typeOf(d)})
	}
	return out
}
