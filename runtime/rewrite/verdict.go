package rewrite

import "fmt"

// verdict collects what stands against a reset. The first reason found is kept.
type verdict struct {
	why      string
	function int // the one being looked at
}

func (v *verdict) no(format string, args ...any) {
	if v.why == "" {
		v.why = fmt.Sprintf(format, args...)
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
		v.no("function %s changes a table", m.describe(v.function))
	case opDataDrop:
		v.no("function %s drops a data segment", m.describe(v.function))
	case opElemDrop:
		v.no("function %s drops an element segment", m.describe(v.function))
	case opGlobalSet:
		switch t := m.globals[in.a].typ; t {
		case V128, FuncRef, ExternRef:
			v.no("function %s sets a global of type %v", m.describe(v.function), t)
		}
	}
}
