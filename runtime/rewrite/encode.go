package rewrite

// encoder writes a module. funcs maps function indexes; code writes a function's body.
type encoder struct {
	m      *module
	funcs  func(uint32) uint32
	bodies [][]byte // in place of the module's own, when not nil
}

func (e *encoder) encode() []byte {
	m := e.m
	out := make([]byte, 0, len(m.wasm)+len(m.wasm)/4)
	out = append(out, m.wasm[:headerSize]...)
	out = e.customs(out, secCustom)
	var buf []byte
	for _, id := range sectionOrder() {
		if body := e.section(buf[:0], id); body != nil {
			out = appendLen(append(out, id), len(body))
			out = append(out, body...)
			buf = body
		}
		out = e.customs(out, id)
	}
	return out
}

func (e *encoder) customs(out []byte, after byte) []byte {
	for _, c := range e.m.customs {
		if c.after == after {
			body := append(appendName(nil, c.name), c.body...)
			out = appendLen(append(out, secCustom), len(body))
			out = append(out, body...)
		}
	}
	return out
}

// section appends a section's body to b, nil when the module does not need it.
func (e *encoder) section(b []byte, id byte) []byte {
	m := e.m
	switch id {
	case secStart:
		if m.start < 0 {
			return nil
		}
		return appendU32(b, e.funcs(uint32(m.start)))
	case secDataCount:
		if !m.hasDataCount {
			return nil
		}
		return appendU32(b, m.dataCount)
	}
	n := m.count(id)
	if n == 0 {
		return nil
	}
	b = appendLen(b, n)
	switch id {
	case secType:
		for _, t := range m.types {
			b = append(appendLen(append(b, 0x60), len(t.params)), t.params...)
			b = append(appendLen(b, len(t.results)), t.results...)
		}
	case secImport:
		for _, i := range m.imports {
			b = appendImport(b, i)
		}
	case secFunction:
		for _, t := range m.funcs[m.impFuncs:] {
			b = appendU32(b, t)
		}
	case secTable:
		for _, t := range m.tables[m.impTables:] {
			b = appendLimits(append(b, byte(t.typ)), t.limits)
		}
	case secMemory:
		for _, l := range m.mems[m.impMems:] {
			b = appendLimits(b, l)
		}
	case secGlobal:
		for _, g := range m.globals[m.impGlobals:] {
			b = e.appendConst(appendGlobalType(b, g), g.init)
		}
	case secExport:
		for _, x := range m.exports {
			if x.kind == kindFunc {
				x.index = e.funcs(x.index)
			}
			b = appendU32(append(appendName(b, x.name), x.kind), x.index)
		}
	case secElement:
		for _, x := range m.elems {
			b = e.appendElement(b, x)
		}
	case secCode:
		for i := range n {
			b = e.appendBody(b, i)
		}
	case secData:
		for _, d := range m.datas {
			if b = appendU32(b, d.flags); d.flags == 0 {
				b = e.appendConst(b, d.offset)
			}
			b = append(appendLen(b, len(d.bytes)), d.bytes...)
		}
	}
	return b
}

// count returns how many entries a section has.
func (m *module) count(id byte) int {
	switch id {
	case secType:
		return len(m.types)
	case secImport:
		return len(m.imports)
	case secFunction, secCode:
		return len(m.funcs) - m.impFuncs
	case secTable:
		return len(m.tables) - m.impTables
	case secMemory:
		return len(m.mems) - m.impMems
	case secGlobal:
		return len(m.globals) - m.impGlobals
	case secExport:
		return len(m.exports)
	case secElement:
		return len(m.elems)
	case secData:
		return len(m.datas)
	}
	return 0
}

func (e *encoder) appendBody(b []byte, i int) []byte {
	body := e.bodies
	if body == nil {
		s := e.m.code[i]
		return append(appendLen(b, s.end-s.pos), e.m.wasm[s.pos:s.end]...)
	}
	return append(appendLen(b, len(body[i])), body[i]...)
}

func appendImport(b []byte, i imported) []byte {
	b = append(appendName(appendName(b, i.module), i.name), i.kind)
	switch i.kind {
	case kindFunc:
		b = appendU32(b, i.typ)
	case kindTable:
		b = appendLimits(append(b, byte(i.table.typ)), i.table.limits)
	case kindMemory:
		b = appendLimits(b, i.memory)
	case kindGlobal:
		b = appendGlobalType(b, i.global)
	}
	return b
}

func appendLimits(b []byte, l limits) []byte {
	if !l.hasMax {
		return appendU32(append(b, 0), l.min)
	}
	return appendU32(appendU32(append(b, 1), l.min), l.max)
}

func appendGlobalType(b []byte, g global) []byte {
	b = append(b, byte(g.typ), 0)
	if g.mutable {
		b[len(b)-1] = 1
	}
	return b
}

func (e *encoder) appendConst(b []byte, c constExpr) []byte {
	b = appendOp(b, c.op)
	switch c.op {
	case opI32Const, opI64Const:
		b = appendSigned(b, c.n)
	case opGlobalGet:
		b = appendU32(b, c.a)
	case opRefFunc:
		b = appendU32(b, e.funcs(c.a))
	default:
		b = append(b, c.raw...)
	}
	return append(b, byte(opEnd))
}

func (e *encoder) appendElement(b []byte, x element) []byte {
	b = appendU32(b, x.flags)
	if x.flags&elemInactive == 0 {
		if x.flags&elemExplicit != 0 {
			b = appendU32(b, x.table)
		}
		b = e.appendConst(b, x.offset)
	}
	if x.flags&(elemInactive|elemExplicit) != 0 {
		b = append(b, x.typ)
	}
	if x.flags&elemExprs != 0 {
		b = appendLen(b, len(x.exprs))
		for _, c := range x.exprs {
			b = e.appendConst(b, c)
		}
		return b
	}
	b = appendLen(b, len(x.funcs))
	for _, f := range x.funcs {
		b = appendU32(b, e.funcs(f))
	}
	return b
}
