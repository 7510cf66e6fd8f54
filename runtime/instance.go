package runtime

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	goruntime "runtime"
	"slices"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// instance is a guest that is ready for one job. It belongs to one goroutine.
type instance struct {
	module api.Module
}

// call calls an export that is known to be there.
func (in *instance) call(ctx context.Context, name string, args ...uint64) ([]uint64, error) {
	f := in.module.ExportedFunction(name)
	if f == nil {
		return nil, &host.Fault{Kind: job.KindTrap, Text: "export " + name + " is missing"}
	}
	return f.Call(ctx, args...)
}

// instances hands out clean instances. What is behind it may make them anew or reset used ones; the drivers cannot tell.
type instances interface {
	// get returns an instance whose guest is initialized and has seen no job. ctx carries c to host functions and bounds it.
	get(ctx context.Context, c *host.Call) (*instance, error)
	// put takes back what get returned, however its job ended.
	put(in *instance)
}

// fresh makes an instance for each job.
type fresh struct {
	code    *code
	driver  driver
	args    []string
	vars    [][2]string // environment of every job
	headers bool        // the environment of each job has its headers as well
}

func (f *fresh) get(ctx context.Context, c *host.Call) (*instance, error) {
	cfg := wazero.NewModuleConfig().
		WithName(""). // instances are anonymous: there are many
		WithStartFunctions().
		WithArgs(f.args...).
		WithStderr(c.Stderr()).
		WithSysWalltime().
		WithSysNanotime().
		WithOsyield(goruntime.Gosched).
		WithRandSource(rand.Reader).
		WithNanosleep(func(ns int64) { sleep(ctx, time.Duration(ns)) })
	if _, program := f.driver.(command); program {
		cfg = cfg.WithStdin(c.Stdin()).WithStdout(writerOf(c))
	} else {
		cfg = cfg.WithStdout(c.Stdout())
	}
	for _, v := range f.vars {
		cfg = cfg.WithEnv(v[0], v[1])
	}
	if f.headers {
		for _, v := range headerVars(c.Job) {
			cfg = cfg.WithEnv(v[0], v[1])
		}
	}
	m, err := f.code.rt.InstantiateModule(ctx, f.code.compiled, cfg)
	if err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	in := &instance{module: m}
	if f.driver.reactor() && m.ExportedFunction(abi.Initialize) != nil {
		if _, err := in.call(ctx, abi.Initialize); err != nil {
			f.put(in)
			return nil, fmt.Errorf("initialize guest: %w", err)
		}
	}
	c.Begin()
	return in, nil
}

func (*fresh) put(in *instance) { _ = in.module.Close(context.Background()) }

// writerOf hides everything of c but its Write.
func writerOf(c *host.Call) io.Writer { return struct{ io.Writer }{c} }

// sleep waits for d on a guest's behalf. When ctx ends first it stops the guest, which would take the sleep for slept.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		panic(sys.NewExitError(sys.ExitCodeContextCanceled))
	}
}

// Env is the environment of a guest that uses WASI.
type Env struct {
	Headers bool              // the job's headers, CGI style: HEADER_CONTENT_TYPE, WASM_JOB_ID
	Vars    map[string]string // as they are
}

// varsOf is the environment that all jobs of a module share: Vars, and the module's config as CONFIG_<NAME>.
func varsOf(e Env, config map[string]string) [][2]string {
	var vars [][2]string
	for _, name := range slices.Sorted(maps.Keys(config)) {
		v := "CONFIG_" + variable(name)
		if _, taken := e.Vars[v]; !taken {
			vars = append(vars, [2]string{v, config[name]})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Vars)) {
		vars = append(vars, [2]string{name, e.Vars[name]})
	}
	return vars
}
