package runtime

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// Func is a function that a module imports or exports.
type Func struct {
	Module string `json:"module,omitempty"` // of an import: the module that it is wanted from
	Name   string `json:"name"`
	Type   string `json:"type"` // for example "(i32, i32) -> i64"
}

// String writes f as it is shown to people.
func (f Func) String() string {
	if f.Module != "" {
		return f.Module + "." + f.Name + f.Type
	}
	return f.Name + f.Type
}

// Classify tells the ABI of a module from the functions it imports and exports, and why. A module that speaks none, or more
// than it should, is an error that lists what was found and what is wanted.
func Classify(imports, exports []Func) (ABI, string, error) {
	has := func(name string, types ...string) bool { return want(exports, name, types...) == nil }
	native := slices.ContainsFunc(imports, func(f Func) bool { return f.Module == abi.Module })
	start := has(abi.Start, "() -> ()")
	switch {
	case slices.ContainsFunc(imports, func(f Func) bool { return strings.HasPrefix(f.Module, "extism:") }):
		return ABIExtism, "it imports from extism:host", nil
	case has(abi.Handle, pullHandle...) && (native || !start):
		return ABIPull, "it exports handle()", nil
	case has(abi.Handle, drasmHandle) && has("alloc", "(i32) -> i32"):
		return ABIDRASM, "it exports alloc and handle(ptr, len)", nil
	case has(shallabufRun, shallabufType) && !slices.ContainsFunc(imports, func(f Func) bool { return f.Module != abi.WASI }):
		return ABIShallabuf, "it exports run(i32) i32 and imports WASI alone", nil
	case start:
		return ABICommand, "it exports _start", nil
	}
	hint := ""
	switch {
	case slices.ContainsFunc(imports, func(f Func) bool { return strings.Contains(f.Module, ":") }):
		hint = "; it looks like the core of a component, which is not supported"
	}
	return "", "", fmt.Errorf("no known abi: found exports %s%s; want handle() or handle() i32 (pull), _start() (WASI command), "+
		"alloc(i32) i32, dealloc(i32, i32) and handle(i32, i32) i64 (drasm), run(i32) i32 (shallabuf), or imports from %s (extism)",
		list(exports), hint, host.ModuleExtism)
}

// want says what is wrong with the export of that name; nil if it is there with one of the types.
func want(exports []Func, name string, types ...string) error {
	for _, f := range exports {
		if f.Name != name {
			continue
		}
		if slices.Contains(types, f.Type) {
			return nil
		}
		return fmt.Errorf("export %s has type %s; want %s", name, f.Type, strings.Join(types, " or "))
	}
	return fmt.Errorf("export %s%s is missing; found %s", name, types[0], list(exports))
}

func wantMemory(has bool) error {
	if !has {
		return fmt.Errorf("export memory is missing")
	}
	return nil
}

func list(fs []Func) string {
	if len(fs) == 0 {
		return "no functions"
	}
	const most = 12
	var b strings.Builder
	for i, f := range fs {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(fs)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(f.String())
	}
	return b.String()
}

// checkImports says what a module wants that no host module has. The types are checked too: what is left over for
// instantiation cannot fail by them.
func checkImports(imports []Func, a ABI, provided func(module string) []Func) error {
	var missing []string
	for _, f := range imports {
		if f.Module == host.ModuleDRASM && a != ABIDRASM {
			missing = append(missing, f.String()+" (module env is there for drasm guests only)")
			continue
		}
		if f.Module == host.ModuleExtism && a != ABIExtism {
			missing = append(missing, f.String()+" (module "+host.ModuleExtism+" is there for Extism plug-ins only)")
			continue
		}
		have := provided(f.Module)
		if have == nil {
			missing = append(missing, f.String()+hintOf(f.Module))
			continue
		}
		i := slices.IndexFunc(have, func(h Func) bool { return h.Name == f.Name })
		switch {
		case i < 0:
			missing = append(missing, f.String()+" (no such function)")
		case have[i].Type != f.Type:
			missing = append(missing, f.String()+" (the type is "+have[i].Type+")")
		}
	}
	if len(missing) == 0 {
		return nil
	}
	const most = 8
	if n := len(missing); n > most {
		missing = append(missing[:most], fmt.Sprintf("and %d more", n-most))
	}
	return fmt.Errorf("imports that cannot be given: %s; there are the modules %s and %s", strings.Join(missing, ", "),
		abi.WASI, strings.Join(host.Names(), ", "))
}

func hintOf(module string) string {
	switch {
	case module == "wasi_unstable":
		return " (too old: build for wasip1)"
	case module == "extism:host/user":
		return " (a function of the plug-in's own host)"
	case strings.HasPrefix(module, "wasi:"):
		return " (WASI 0.2: build for wasip1)"
	case strings.HasPrefix(module, "wasmsidecar_"):
		return " (a capability that this version does not have)"
	}
	return " (no such module)"
}

// typeOf writes a function's type.
func typeOf(d api.FunctionDefinition) string {
	results := d.ResultTypes()
	r := "()"
	switch len(results) {
	case 0:
	case 1:
		r = api.ValueTypeName(results[0])
	default:
		r = "(" + names(results) + ")"
	}
	return "(" + names(d.ParamTypes()) + ") -> " + r
}

func names(ts []api.ValueType) string {
	var s []string
	for _, t := range ts {
		s = append(s, api.ValueTypeName(t))
	}
	return strings.Join(s, ", ")
}
