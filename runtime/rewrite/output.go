package rewrite

import (
	"fmt"
	"slices"
	"strings"
)

// What is added is named after these; underscores are added as long as the module uses such a name itself.
const (
	moduleName   = "wasmsidecar_meter"
	refuelName   = "refuel"
	exportPrefix = "__wasmsidecar_"
)

func (m *module) rewrite(opt Options) (*Module, error) {
	out := &Module{RefuelModule: moduleName, RefuelName: refuelName}
	for slices.ContainsFunc(m.imports, func(i imported) bool { return i.module == out.RefuelModule }) {
		out.RefuelModule += "_"
	}
	prefix := exportPrefix
	for slices.ContainsFunc(m.exports, func(x export) bool { return strings.HasPrefix(x.name, prefix) }) {
		prefix = "_" + prefix
	}
	w := &meter{m: m}
	if err := m.limit(opt, out, w); err != nil {
		return nil, err
	}
	out.Uninstantiable = m.misfit()

	imports := uint32(m.impFuncs)
	w.funcs = func(i uint32) uint32 {
		if i >= imports {
			i++ // refuel comes before it
		}
		return i
	}
	w.refuel = imports
	w.fuel, w.depth, w.refused = uint32(len(m.globals)), uint32(len(m.globals))+1, uint32(len(m.globals))+2
	v := &verdict{}
	v.module(m)
	w.firstMover = uint32(len(m.funcs)) + 1
	bodies, err := m.bodies(w, v)
	if err != nil {
		return nil, err
	}
	out.Resettable, out.Why = v.why == "", v.why

	// From here on the module is the result, but for function indexes, which the encoder maps.
	void := m.blockOf(nil)
	if void < 0 {
		void = len(m.types)
		m.types = append(m.types, funcType{})
	}
	m.imports = append(m.imports, imported{module: out.RefuelModule, name: out.RefuelName, kind: kindFunc, typ: uint32(void)})
	m.exportState(out, prefix)
	var added []nameEntry
	for i, v := range w.movers {
		m.funcs = append(m.funcs, uint32(len(m.types)))
		bodies = append(bodies, w.moverBody(v))
		added = append(added, nameEntry{w.firstMover + uint32(i), out.RefuelModule + ".move"})
	}
	if len(w.movers) > 0 {
		m.types = append(m.types, moverType())
	}
	if m.start >= 0 {
		// Were the function itself exported, ref.func might name it, which it must not unless the module declares it.
		out.Start = prefix + "start"
		m.exports = append(m.exports, export{out.Start, kindFunc, uint32(len(m.funcs))})
		m.funcs = append(m.funcs, uint32(void))
		bodies = append(bodies, callBody(w.funcs(uint32(m.start))))
		m.start = -1
	}
	if opt.EmptyData {
		out.Data = m.takeData()
	}
	added = append(added, nameEntry{imports, out.RefuelModule + "." + refuelName})
	if out.Start != "" {
		added = append(added, nameEntry{uint32(len(m.funcs)), out.RefuelModule + ".start"})
	}
	m.customs = adjustCustoms(m.customs, w.funcs, added)
	out.Wasm = (&encoder{m: m, funcs: w.funcs, bodies: bodies}).encode()
	return out, nil
}

// bodies rewrites all functions.
func (m *module) bodies(w *meter, v *verdict) ([][]byte, error) {
	out := make([][]byte, 0, len(m.code)+1)
	w.types = map[string]uint32{}
	for i, t := range m.types {
		if len(t.params) == 0 {
			w.types[string(t.results)] = uint32(i)
		}
	}
	var added []funcType // kept apart, for the module must not see them
	p := &planner{m: m}
	for _, g := range m.globals {
		if g.mutable {
			p.effort.mutables++
		}
	}
	for i, s := range m.code {
		index := m.impFuncs + i
		t := m.typeOf(index)
		r := &reader{b: m.wasm, pos: s.pos, end: s.end}
		if size := s.end - s.pos; size > maxBody {
			r.fail(ErrLimit, s.pos, fmt.Sprintf("its code has %d bytes, at most %d are supported", size, maxBody))
		}
		var decls []byte
		groups, locals := m.readLocals(r, len(t.params), &decls)
		start := r.pos
		v.function = index
		plan := p.function(r, t, locals, v)
		if r.err != nil {
			r.err.Func, r.err.Name = index, m.functionName(index)
			return nil, r.err
		}
		if _, ok := w.types[string(t.results)]; !ok && len(t.results) > 1 && plan.wraps() {
			w.types[string(t.results)] = uint32(len(m.types) + len(added))
			added = append(added, funcType{results: t.results})
		}
		r.pos = start
		out = append(out, w.function(r, plan, t, groups, decls))
	}
	m.types = append(m.types, added...)
	return out, nil
}

// blockOf returns the index of the type () -> results, -1 when there is none.
func (m *module) blockOf(results []byte) int {
	return slices.IndexFunc(m.types, func(t funcType) bool { return len(t.params) == 0 && slices.Equal(t.results, results) })
}

// exportState adds the globals for fuel, depth and refused growth and the exports of all mutable globals.
func (m *module) exportState(out *Module, prefix string) {
	add := func(name string, i int) string {
		m.exports = append(m.exports, export{prefix + name, kindGlobal, uint32(i)})
		return prefix + name
	}
	for i, g := range m.globals {
		if g.mutable && i >= m.impGlobals {
			out.Globals = append(out.Globals, Global{Export: add(fmt.Sprintf("global_%d", i), i), Type: g.typ, Index: uint32(i)})
		}
	}
	counter := global{typ: I64, mutable: true, init: constExpr{op: opI64Const}}
	out.Fuel, out.Depth = add("fuel", len(m.globals)), add("depth", len(m.globals)+1)
	out.Refused = add("refused", len(m.globals)+2)
	m.globals = append(m.globals, counter, counter, counter)
}

// limit applies the limits of opt.
func (m *module) limit(opt Options, out *Module, w *meter) error {
	w.maxMemory = maxPages
	if len(m.mems) > 0 {
		l := &m.mems[0]
		if l.hasMax {
			w.maxMemory = l.max
		}
		if m.impMems == 0 {
			if opt.MaxPages > 0 {
				if l.min > opt.MaxPages {
					return &Error{Func: -1, Err: ErrLimit, What: fmt.Sprintf("the module needs %d pages of memory, %d are allowed", l.min, opt.MaxPages)}
				}
				w.maxMemory = min(w.maxMemory, opt.MaxPages)
				l.hasMax, l.max = true, min(w.maxMemory+1, maxPages)
			}
			out.Memory = &Memory{Min: l.min, Max: w.maxMemory, Declared: maxPages}
			if l.hasMax {
				out.Memory.Declared = l.max
			}
		}
	}
	for i := range m.tables {
		t := &m.tables[i]
		if i >= m.impTables && opt.MaxElements > 0 {
			if t.min > opt.MaxElements {
				return &Error{Func: -1, Err: ErrLimit, What: fmt.Sprintf("table %d needs %d elements, %d are allowed", i, t.min, opt.MaxElements)}
			}
			if !t.hasMax || t.max > opt.MaxElements {
				t.hasMax, t.max = true, opt.MaxElements
			}
		}
		w.maxTable = append(w.maxTable, ^uint32(0))
		if t.hasMax {
			w.maxTable[i] = t.max
		}
	}
	return nil
}

// misfit describes the first active segment that is beyond the end of its table or memory.
func (m *module) misfit() string {
	beyond := func(kind string, i int, offset constExpr, n int, size uint64, of string) string {
		if offset.op == opGlobalGet && !m.globals[offset.a].mutable {
			offset = m.globals[offset.a].init // none where it is imported
		}
		at := uint64(uint32(offset.n))
		if offset.op != opI32Const || at+uint64(n) <= size {
			return ""
		}
		return fmt.Sprintf("%s segment %d is to be written to %d to %d of %s, which has %d", kind, i, at, at+uint64(n), of, size)
	}
	for i, x := range m.elems {
		if t := int(x.table); x.flags&elemInactive == 0 && t >= m.impTables && t < len(m.tables) {
			if why := beyond("element", i, x.offset, len(x.funcs)+len(x.exprs), uint64(m.tables[t].min), fmt.Sprintf("table %d", t)); why != "" {
				return why
			}
		}
	}
	for i, d := range m.datas {
		if d.flags != dataPassive && m.impMems == 0 && len(m.mems) > 0 {
			if why := beyond("data", i, d.offset, len(d.bytes), uint64(m.mems[0].min)<<16, "the memory"); why != "" {
				return why
			}
		}
	}
	return ""
}

// emptyData stands for an active segment that has been written: it keeps its place, and is as empty as it would be then.
func emptyData() data { return data{offset: constExpr{op: opI32Const}} }

// takeData removes the active segments that are certain to be written and returns them.
func (m *module) takeData() []Segment {
	if len(m.mems) == 0 || m.impMems > 0 {
		return nil
	}
	size := int64(m.mems[0].min) << 16
	var out []Segment
	for i := range m.datas {
		d := &m.datas[i]
		if d.flags == dataPassive || d.offset.op != opI32Const {
			continue
		}
		offset := uint32(int32(d.offset.n))
		if int64(offset)+int64(len(d.bytes)) > size {
			return out // the instantiation fails here, and what comes later is not written
		}
		out = append(out, Segment{offset, d.bytes})
		*d = emptyData()
	}
	return out
}

func (m *module) withImage(pages uint32) ([]byte, error) {
	fail := func(kind error, what string) ([]byte, error) {
		return nil, &Error{Func: -1, Err: kind, What: what}
	}
	if len(m.mems) == 0 || m.impMems > 0 {
		return fail(ErrUnsupported, "an image needs a memory that is the module's own")
	}
	switch l := &m.mems[0]; {
	case pages < l.min:
		return fail(ErrLimit, fmt.Sprintf("an image of %d pages is smaller than the memory's minimum of %d", pages, l.min))
	case l.hasMax && pages > l.max, pages > maxPages:
		return fail(ErrLimit, fmt.Sprintf("an image of %d pages is larger than the memory's maximum", pages))
	default:
		l.min = pages
	}
	for i := range m.datas {
		if d := &m.datas[i]; d.flags != dataPassive {
			*d = emptyData()
		}
	}
	m.start = -1
	return (&encoder{m: m, funcs: func(i uint32) uint32 { return i }}).encode(), nil
}
