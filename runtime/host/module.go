package host

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// function is one host function. It takes its parameters from the stack and leaves its result in stack[0].
type function struct {
	name            string
	params, results []api.ValueType
	call            func(ctx context.Context, c *Call, m api.Module, stack []uint64)
}

const (
	i32 = api.ValueTypeI32
	i64 = api.ValueTypeI64
)

func types(t ...api.ValueType) []api.ValueType { return t }

// functionsOf returns the functions of the host module of that name; nil when there is none.
func functionsOf(name string) []function {
	switch name {
	case abi.Module:
		return slices.Concat(jobFunctions(), logFunctions())
	case abi.ModuleHTTP:
		return httpFunctions()
	case ModuleDRASM:
		return drasmFunctions()
	case ModuleExtism:
		return extismFunctions()
	}
	return nil
}

// Names lists the host modules that there are, WASI apart.
func Names() []string { return []string{abi.Module, abi.ModuleHTTP, ModuleDRASM, ModuleExtism} }

// Instantiate adds the host module of that name to rt. The name must be one of Names.
func Instantiate(ctx context.Context, rt wazero.Runtime, name string) error {
	fs := functionsOf(name)
	if fs == nil {
		return fmt.Errorf("instantiate host module %q: there is no such module", name)
	}
	b := rt.NewHostModuleBuilder(name)
	for _, f := range fs {
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
			c := callOf(ctx)
			c.used = true
			c.Count(ctx)
			f.call(ctx, c, m, stack)
		}), f.params, f.results).WithName(f.name).Export(f.name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("instantiate host module %q: %w", name, err)
	}
	return nil
}

// view returns guest memory that must not be kept: growth moves it.
func view(m api.Module, what string, ptr, length uint64) []byte {
	p, n := uint32(ptr), uint32(length)
	if n == 0 {
		return nil
	}
	mem := m.Memory() // there is one: package runtime refuses modules that import functions and have none
	b, ok := mem.Read(p, n)
	if !ok {
		panic(&Fault{Kind: job.KindTrap, Text: "pointer to " + what + " out of bounds: " + strconv.FormatUint(uint64(n), 10) + " bytes at " +
			strconv.FormatUint(uint64(p), 10) + " of a memory of " + strconv.FormatUint(uint64(mem.Size()), 10)})
	}
	return b
}

// text returns a copy of guest memory as a string.
func text(m api.Module, what string, ptr, length uint64) string {
	return string(view(m, what, ptr, length))
}

// lookup answers a guest that asks for a value by name: as much as fits, and the whole length.
func lookup(m api.Module, what, value string, ok bool, stack []uint64) {
	if !ok {
		stack[0] = api.EncodeI32(abi.Missing)
		return
	}
	copy(view(m, what, stack[2], stack[3]), value)
	stack[0] = uint64(uint32(len(value)))
}
