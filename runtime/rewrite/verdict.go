package rewrite

import "fmt"

// verdict collects what stands against a reset. The first reason found is kept.
type verdict struct {
	why      string
	function int // the one being looked at
}

func (v *verdict) no(why string) {
	if v.why == "" {
		v.why = why
	}
}

// does says what the function being looked at does. It is named once: looking for a name takes time.
func (v *verdict) does(m *module, what string) {
	if v.why == "" {
		v.why = "function " + m.describe(v.function) + " " + what
	}
}

// module looks at what is shared with others.
func (v *verdict) module(m *module) {
	for _, i := range m.imports {
		switch {
		case i.kind == kindMemory:
			v.no("it imports its memory")
		case i.kind == kindTable:
			v.no("it imports a table")
		case i.kind == kindGlobal && i.global.mutable:
			v.no("it imports a mutable global")
		}
	}
}

// instr looks at what an instruction changes beside memory and numbers in globals.
func (v *verdict) instr(m *module, in *instr) {
	switch in.op {
	case opTableSet, opTableCopy, opTableInit, opTableFill, opTableGrow:
		v.does(m, "changes a table")
	case opDataDrop:
		v.does(m, "drops a data segment")
	case opElemDrop:
		v.does(m, "drops an element segment")
	case opGlobalSet:
		switch t := m.globals[in.a].typ; t {
		case V128, FuncRef, ExternRef:
			v.does(m, fmt.Sprintf("sets a global of type %v", t))
		}
	}
}
