package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// extism is any Extism plug-in: it exports functions without parameters, of which one is called, and asks its host for the
// rest. Its input and output are blocks of an arena that the host keeps.
type extism struct {
	function string
	before   []string // called when an instance is made
	haskell  bool     // and hs_init after these
}

const (
	constructors = "__wasm_call_ctors"
	haskellInit  = "hs_init"
)

// newExtism chooses the function to be called: the one that is named, else handle, else run, else the only one; _start is
// chosen where there is no other.
func newExtism(function string, exports []Func) (extism, error) {
	has := func(name string, types ...string) bool { return want(exports, name, types...) == nil }
	var choices []string
	for _, f := range exports {
		if slices.Contains(pullHandle, f.Type) && !ofLanguage(f.Name) {
			choices = append(choices, f.Name)
		}
	}
	x := extism{function: function}
	switch {
	case function != "":
		if err := want(exports, function, pullHandle...); err != nil {
			return x, fmt.Errorf("function: %w; it can be %s", err, orNone(choices))
		}
	case slices.Contains(choices, abi.Handle):
		x.function = abi.Handle
	case slices.Contains(choices, "run"):
		x.function = "run"
	case len(choices) == 1:
		x.function = choices[0]
	case len(choices) > 1:
		return x, fmt.Errorf("the plug-in exports several functions: name one of %s as function", strings.Join(choices, ", "))
	case has(abi.Start, "() -> ()"):
		x.function = abi.Start
	default:
		return x, fmt.Errorf("the plug-in exports no function without parameters; found %s", list(exports))
	}
	if x.function == abi.Start {
		return x, nil // a program starts itself
	}
	switch {
	case has(abi.Initialize, "() -> ()"):
		x.before = append(x.before, abi.Initialize)
	case has(constructors, "() -> ()"):
		x.before = append(x.before, constructors)
	}
	x.haskell = has(haskellInit, "(i32, i32) -> ()")
	return x, nil
}

// ofLanguage says whether a function is there for the language that a plug-in is written in, or for the host.
func ofLanguage(name string) bool {
	switch name {
	case abi.Start, abi.Initialize, abi.Reseed, haskellInit, "hs_exit":
		return true
	}
	return strings.HasPrefix(name, "__") || strings.HasPrefix(name, "asyncify_")
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (extism) fits(_ []Func, hasMemory bool) error { return wantMemory(hasMemory) }

func (x extism) initialize(ctx context.Context, in *instance) error {
	for _, name := range x.before {
		if _, err := in.call(ctx, name); err != nil {
			return err
		}
	}
	if x.haskell {
		if _, err := in.call(ctx, haskellInit, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

func (x extism) reactor() bool { return x.function != abi.Start }

func (x extism) run(ctx context.Context, in *instance, c *host.Call) error {
	got, err := in.call(ctx, x.function)
	code := exitCode(0)
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit):
		code = exitCode(exit.ExitCode())
	case err != nil:
		return err
	case len(got) == 1:
		code = exitCode(got[0])
	}
	if said := c.Verdict(); said != nil && code == abi.ExitRetry {
		said.Kind = job.KindRetry
	}
	switch {
	case code == abi.ExitOK:
		return c.AppendPlugin()
	case err != nil:
		return err
	}
	return code
}
