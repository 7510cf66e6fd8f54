package runtime

import (
	"context"
	"strings"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// command is any WASI program: stdin is the body, stdout the result, stderr the log, the exit code the verdict.
type command struct{}

func (command) fits(exports []Func, hasMemory bool) error {
	if err := want(exports, abi.Start, "() -> ()"); err != nil {
		return err
	}
	return wantMemory(hasMemory)
}

func (command) initialize(context.Context, *instance) error { return nil }

func (command) reactor() bool { return false }

func (command) run(ctx context.Context, in *instance, _ *host.Call) error {
	return in.program(ctx)
}

// headerVars are the job's headers as environment variables, after CGI: HEADER_CONTENT_TYPE, and WASM_JOB_ID for what the
// sidecar itself knows. The values of a header that occurs more than once are joined by commas. Where two names become one
// variable the first has it.
func headerVars(j *job.Job) []string {
	var vars []string
	seen := map[string]bool{}
	add := func(name, value string) {
		if !seen[name] && !strings.ContainsRune(value, 0) {
			seen[name] = true
			vars = append(vars, name+"="+value)
		}
	}
	for _, name := range []string{"Wasm-Job-Id", "Wasm-Attempt", "Wasm-Route", "Wasm-Subject", "Wasm-Key", "Wasm-Source", "Wasm-Module", "Wasm-Type-Name"} {
		if value, ok := host.Field(j, name); ok {
			add(variable(name), value)
		}
	}
	if value, ok := host.Field(j, "Correlation-Id"); ok {
		add("HEADER_CORRELATION_ID", value)
	}
	for _, f := range j.Header {
		if strings.HasPrefix(variable(f.Name), "WASM_") {
			add(variable(f.Name), strings.Join(j.Header.Values(f.Name), ", "))
			continue
		}
		add("HEADER_"+variable(f.Name), strings.Join(j.Header.Values(f.Name), ", "))
	}
	return vars
}

// variable turns a header's or a setting's name into that of an environment variable.
func variable(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, name)
}
