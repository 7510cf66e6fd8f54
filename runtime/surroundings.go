package runtime

import (
	"io"
	"maps"
	"slices"
	"time"

	"github.com/wasmsidecar/wasmsidecar/runtime/host"
	"github.com/wasmsidecar/wasmsidecar/runtime/wasi"
)

// surroundings are what the guests of a module see of the world through WASI.
type surroundings struct {
	program  bool // stdin and stdout are the job and its result
	args     []string
	vars     []string  // environment of every job, NAME=value
	headers  bool      // the environment of each job has its headers as well
	start    time.Time // of the monotonic clock
	preopens []wasi.Preopen
}

// process makes the process for a job.
func (s *surroundings) process(c *host.Call, l Limits) wasi.Process {
	p := wasi.Process{Args: s.args, Env: s.vars, Stderr: c.Stderr(), Start: s.start, Counter: c}
	if s.program {
		p.Stdin, p.Stdout = c.Job.Body, writerOf(c)
	} else {
		p.Stdout = c.Stdout()
	}
	if len(s.preopens) > 0 {
		p.Files = wasi.Files{Preopens: s.preopens, Open: l.Files, Bytes: l.FileBytes, Refused: c.SetTrouble}
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
