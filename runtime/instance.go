package runtime

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
	"github.com/wasmsidecar/wasmsidecar/runtime/wasi"
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
	code   *code
	driver driver
}

func (f *fresh) get(ctx context.Context, c *host.Call) (*instance, error) {
	// Instances are anonymous: there are many.
	m, err := f.code.rt.InstantiateModule(ctx, f.code.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
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

// surroundings are what the guests of a module see of the world through WASI.
type surroundings struct {
	program bool // stdin and stdout are the job and its result
	args    []string
	vars    []string  // environment of every job, NAME=value
	headers bool      // the environment of each job has its headers as well
	start   time.Time // of the monotonic clock
}

// process makes the process for a job.
func (s *surroundings) process(c *host.Call) *wasi.Process {
	p := &wasi.Process{Args: s.args, Env: s.vars, Stderr: c.Stderr(), Start: s.start}
	if s.program {
		p.Stdin, p.Stdout = c.Job.Body, writerOf(c)
	} else {
		p.Stdout = c.Stdout()
	}
	if s.headers {
		p.Env = slices.Concat(s.vars, headerVars(c.Job))
	}
	return p
}

// writerOf hides everything of c but its Write.
func writerOf(c *host.Call) io.Writer { return struct{ io.Writer }{c} }

// Env is the environment of a guest that uses WASI.
type Env struct {
	Headers bool              // the job's headers, CGI style: HEADER_CONTENT_TYPE, WASM_JOB_ID
	Vars    map[string]string // as they are
}

// varsOf is the environment that all jobs of a module share: Vars, and the module's config as CONFIG_<NAME>.
func varsOf(e Env, config map[string]string) []string {
	var vars []string
	for _, name := range slices.Sorted(maps.Keys(config)) {
		v := "CONFIG_" + variable(name)
		if _, taken := e.Vars[v]; !taken {
			vars = append(vars, v+"="+config[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Vars)) {
		vars = append(vars, name+"="+e.Vars[name])
	}
	return vars
}
