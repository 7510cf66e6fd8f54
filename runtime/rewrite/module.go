package rewrite

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// Section ids, in no order; see sectionOrder.
const (
	secCustom    = 0
	secType      = 1
	secImport    = 2
	secFunction  = 3
	secTable     = 4
	secMemory    = 5
	secGlobal    = 6
	secExport    = 7
	secStart     = 8
	secElement   = 9
	secCode      = 10
	secData      = 11
	secDataCount = 12
	secTag       = 13
)

// sectionOrder is the order in which sections stand in a module.
func sectionOrder() []byte {
	return []byte{secType, secImport, secFunction, secTable, secMemory, secGlobal, secExport, secStart, secElement, secDataCount, secCode, secData}
}

// Kinds of imports and exports.
const (
	kindFunc   = 0
	kindTable  = 1
	kindMemory = 2
	kindGlobal = 3
)

// maxPages is the number of pages that 32 bits can address.
const maxPages = 65536

const headerSize = 8

// module is a parsed module. Whatever the rewriter changes is decoded and written anew; code is decoded when it is rewritten.
type module struct {
	wasm    []byte
	types   []funcType
	imports []imported
	funcs   []uint32 // types of all functions, the imported ones first
	tables  []table  // all tables, the imported ones first
	mems    []limits // all memories
	globals []global // all globals, the imported ones first
	exports []export
	start   int // function index, -1 for none
	elems   []element
	code    []span
	datas   []data
	customs []custom

	hasDataCount bool
	dataCount    uint32

	impFuncs, impTables, impMems, impGlobals int

	typeSizes int    // parameters and results of all types
	elements  uint64 // of all element segments
}

type (
	funcType struct{ params, results []byte }
	imported struct {
		module, name string
		kind         byte
		typ          uint32 // of a function
		table        table
		memory       limits
		global       global
	}
	limits struct {
		min, max uint32
		hasMax   bool
	}
	table struct {
		typ ValueType
		limits
	}
	global struct {
		typ     ValueType
		mutable bool
		init    constExpr
	}
	export struct {
		name  string
		kind  byte
		index uint32
	}
	element struct {
		flags  uint32
		table  uint32
		offset constExpr
		typ    byte // element kind or reference type, with flags that have it
		funcs  []uint32
		exprs  []constExpr
	}
	data struct {
		flags  uint32 // 1 is passive
		offset constExpr
		bytes  []byte
	}
	custom struct {
		after byte // the section behind which it stands
		name  string
		body  []byte // without the name
		pos   int
	}
	span struct{ pos, end int }
)

// constExpr is a constant expression of one instruction.
type constExpr struct {
	op  opcode
	n   int64  // number
	a   uint32 // index
	raw []byte // other constants, reference type
}

// numFuncs returns the number of functions, the imported ones included.
func (m *module) numFuncs() int { return len(m.funcs) }

func parse(wasm []byte) (*module, error) {
	m := &module{wasm: wasm, start: -1}
	r := &reader{b: wasm, end: len(wasm)}
	if magic := r.bytes(4); r.err != nil || string(magic) != "\x00asm" {
		return nil, &Error{Func: -1, What: "not a WebAssembly binary", Err: ErrMalformed}
	}
	switch version := r.bytes(4); {
	case r.err == nil && string(version) == "\x0d\x00\x01\x00":
		return nil, &Error{Offset: 4, Func: -1, What: "a component, not a core module", Err: ErrUnsupported}
	case r.err != nil || string(version) != "\x01\x00\x00\x00":
		return nil, &Error{Offset: 4, Func: -1, What: "not a core module of version 1", Err: ErrMalformed}
	}
	m.sections(r)
	if r.err == nil && len(m.code) != len(m.funcs)-m.impFuncs {
		r.fail(ErrMalformed, len(wasm), fmt.Sprintf("%d functions have %d bodies", len(m.funcs)-m.impFuncs, len(m.code)))
	}
	if r.err == nil && m.hasDataCount && uint64(m.dataCount) != uint64(len(m.datas)) {
		r.fail(ErrMalformed, len(wasm), fmt.Sprintf("%d data segments were announced as %d", len(m.datas), m.dataCount))
	}
	if r.err == nil && len(m.code)*(len(m.types)+len(m.globals)) > maxSquare {
		r.fail(ErrLimit, 0, fmt.Sprintf("%d functions with %d types and %d globals", len(m.code), len(m.types), len(m.globals)))
	}
	if r.err != nil {
		return nil, r.err
	}
	return m, nil
}

func (m *module) sections(r *reader) {
	order := sectionOrder()
	last := -1 // place in order
	after := byte(secCustom)
	for r.more() {
		at := r.pos
		id := r.u8()
		s := r.sub(r.u32())
		if r.err != nil {
			return
		}
		switch {
		case id == secCustom:
			c := custom{after: after, name: s.name(), pos: s.pos}
			if !utf8.ValidString(c.name) {
				s.fail(ErrMalformed, c.pos, "a custom section's name is not UTF-8")
			}
			c.body = s.bytes(uint32(s.end - s.pos))
			if m.customs = append(m.customs, c); len(m.customs) > maxCustoms {
				s.fail(ErrLimit, at, fmt.Sprintf("more than %d custom sections", maxCustoms))
			}
		case id == secTag:
			r.fail(ErrUnsupported, at, "a tag section belongs to exception handling")
			return
		default:
			place := slices.Index(order, id)
			if place < 0 || place <= last {
				r.fail(ErrMalformed, at, fmt.Sprintf("section %d is unknown or out of order", id))
				return
			}
			last, after = place, id
			m.section(&s, id)
		}
		if s.err == nil && s.pos != s.end {
			s.fail(ErrMalformed, s.pos, fmt.Sprintf("section %d is longer than its contents", id))
		}
		if s.err != nil {
			r.err = s.err
			return
		}
	}
}

func (m *module) section(r *reader, id byte) {
	switch id {
	case secStart:
		m.start = int(r.index(len(m.funcs), "function"))
		if t := m.typeOf(m.start); r.err == nil && len(t.params)+len(t.results) > 0 {
			r.fail(ErrMalformed, r.pos, "the start function has parameters or results")
		}
		return
	case secDataCount:
		m.hasDataCount, m.dataCount = true, r.u32()
		return
	}
	start := r.pos
	n := r.u32()
	if most := maxOf(id); n > most {
		r.fail(ErrLimit, start, fmt.Sprintf("section %d has %d entries, at most %d are supported", id, n, most))
	}
	for ; n > 0 && r.err == nil; n-- {
		switch id {
		case secType:
			m.readType(r)
		case secImport:
			m.readImport(r)
		case secFunction:
			m.funcs = append(m.funcs, r.index(len(m.types), "type"))
		case secTable:
			m.tables = append(m.tables, m.readTable(r))
		case secMemory:
			m.addMemory(r)
		case secGlobal:
			g := m.readGlobalType(r)
			g.init = m.readConst(r)
			m.globals = append(m.globals, g)
		case secExport:
			m.readExport(r)
		case secElement:
			m.readElement(r)
		case secCode:
			s := r.sub(r.u32())
			m.code = append(m.code, span{s.pos, s.end})
		case secData:
			m.readData(r)
		}
	}
}

// typeOf returns the type of a function.
func (m *module) typeOf(index int) funcType {
	if index >= len(m.funcs) {
		return funcType{}
	}
	return m.types[m.funcs[index]]
}

func (m *module) valueType(r *reader) ValueType {
	start := r.pos
	switch t := ValueType(r.u8()); t {
	case I32, I64, F32, F64, V128, FuncRef, ExternRef:
		return t
	default:
		if t >= 0x62 && t < 0x80 {
			r.fail(ErrUnsupported, start, fmt.Sprintf("value type 0x%02x belongs to garbage collection or exception handling", byte(t)))
		} else {
			r.fail(ErrMalformed, start, fmt.Sprintf("unknown value type 0x%02x", byte(t)))
		}
		return 0
	}
}

func (m *module) refType(r *reader) ValueType {
	start := r.pos
	t := m.valueType(r)
	if r.err == nil && t != FuncRef && t != ExternRef {
		r.fail(ErrMalformed, start, fmt.Sprintf("%v is not a reference type", t))
	}
	return t
}

func (m *module) readType(r *reader) {
	start := r.pos
	if form := r.u8(); r.err == nil && form != 0x60 {
		r.fail(ErrUnsupported, start, fmt.Sprintf("type form 0x%02x belongs to garbage collection", form))
		return
	}
	t := funcType{params: m.valueTypes(r), results: m.valueTypes(r)}
	if m.typeSizes += len(t.params) + len(t.results); m.typeSizes > maxTypeSizes {
		r.fail(ErrLimit, start, fmt.Sprintf("the types have more than %d parameters and results together", maxTypeSizes))
	}
	m.types = append(m.types, t)
}

// valueTypes reads the parameters or the results of a type.
func (m *module) valueTypes(r *reader) []byte {
	start := r.pos
	n := r.u32()
	if n > maxTypeSize {
		r.fail(ErrLimit, start, fmt.Sprintf("a type with %d parameters or results, at most %d are supported", n, maxTypeSize))
	}
	var out []byte
	for ; n > 0 && r.err == nil; n-- {
		out = append(out, byte(m.valueType(r)))
	}
	return out
}

func (m *module) readImport(r *reader) {
	i := imported{module: r.name(), name: r.name()}
	start := r.pos
	switch i.kind = r.u8(); i.kind {
	case kindFunc:
		i.typ = r.index(len(m.types), "type")
		m.funcs = append(m.funcs, i.typ)
		m.impFuncs++
	case kindTable:
		i.table = m.readTable(r)
		m.tables = append(m.tables, i.table)
		m.impTables++
	case kindMemory:
		i.memory = m.addMemory(r)
		m.impMems++
	case kindGlobal:
		i.global = m.readGlobalType(r)
		m.globals = append(m.globals, i.global)
		m.impGlobals++
	case 4:
		r.fail(ErrUnsupported, start, "an imported tag belongs to exception handling")
	default:
		r.fail(ErrMalformed, start, fmt.Sprintf("unknown kind of import 0x%02x", i.kind))
	}
	m.imports = append(m.imports, i)
}

func (m *module) readLimits(r *reader) limits {
	start := r.pos
	var l limits
	switch flags := r.u8(); {
	case flags == 0:
		l.min = r.u32()
	case flags == 1:
		l.min, l.hasMax = r.u32(), true
		l.max = r.u32()
	case flags <= 3:
		r.fail(ErrUnsupported, start, "shared memory belongs to threads")
	case flags <= 7:
		r.fail(ErrUnsupported, start, "64-bit memories and tables")
	default:
		r.fail(ErrMalformed, start, fmt.Sprintf("unknown limits 0x%02x", flags))
	}
	if l.hasMax && l.max < l.min {
		r.fail(ErrMalformed, start, "the minimum is above the maximum")
	}
	return l
}

func (m *module) readTable(r *reader) table {
	start := r.pos
	if r.more() && r.b[r.pos] == 0x40 {
		r.fail(ErrUnsupported, start, "a table's initial value belongs to typed function references")
	}
	t := m.refType(r)
	return table{t, m.readLimits(r)}
}

func (m *module) addMemory(r *reader) limits {
	start := r.pos
	l := m.readLimits(r)
	switch {
	case r.err != nil:
	case len(m.mems) > 0:
		r.fail(ErrUnsupported, start, "several memories")
	case l.min > maxPages || l.max > maxPages:
		r.fail(ErrMalformed, start, "memory of more than 65536 pages")
	}
	m.mems = append(m.mems, l)
	return l
}

func (m *module) readGlobalType(r *reader) global {
	g := global{typ: m.valueType(r)}
	start := r.pos
	switch r.u8() {
	case 0:
	case 1:
		g.mutable = true
	default:
		r.fail(ErrMalformed, start, "a global is neither constant nor mutable")
	}
	return g
}

// readConst reads a constant expression, which without the proposals beyond 2.0 is one instruction.
func (m *module) readConst(r *reader) constExpr {
	start := r.pos
	c := constExpr{op: opcode(r.u8())}
	switch c.op {
	case opI32Const:
		c.n = r.signed(32)
	case opI64Const:
		c.n = r.signed(64)
	case opF32Const:
		c.raw = r.bytes(4)
	case opF64Const:
		c.raw = r.bytes(8)
	case 0xfd:
		c.op = opV128Const
		if sub := r.u32(); sub != uint32(opV128Const&0xff) && r.err == nil {
			r.fail(ErrMalformed, start, fmt.Sprintf("vector instruction %d in a constant expression", sub))
		}
		c.raw = r.bytes(16)
	case opGlobalGet:
		c.a = r.index(len(m.globals), "global")
	case opRefNull:
		c.raw = []byte{byte(m.refType(r))}
	case opRefFunc:
		c.a = r.index(len(m.funcs), "function")
	default:
		r.fail(ErrMalformed, start, fmt.Sprintf("instruction 0x%02x in a constant expression", uint16(c.op)))
	}
	start = r.pos
	if end := r.u8(); r.err == nil && end != byte(opEnd) {
		r.fail(ErrUnsupported, start, "constant expressions of more than one instruction belong to extended constant expressions")
	}
	return c
}

func (m *module) readExport(r *reader) {
	e := export{name: r.name()}
	start := r.pos
	switch e.kind = r.u8(); e.kind {
	case kindFunc:
		e.index = r.index(len(m.funcs), "function")
	case kindTable:
		e.index = r.index(len(m.tables), "table")
	case kindMemory:
		e.index = r.index(len(m.mems), "memory")
	case kindGlobal:
		e.index = r.index(len(m.globals), "global")
	default:
		r.fail(ErrMalformed, start, fmt.Sprintf("unknown kind of export 0x%02x", e.kind))
	}
	m.exports = append(m.exports, e)
}

// An element segment's flags.
const (
	elemInactive = 1 // passive or declared
	elemExplicit = 2 // with a table index, or declared
	elemExprs    = 4 // expressions instead of function indexes
)

func (m *module) readElement(r *reader) {
	start := r.pos
	e := element{flags: r.u32()}
	if e.flags > 7 {
		r.fail(ErrMalformed, start, "unknown element segment")
		return
	}
	if e.flags&elemInactive == 0 {
		if e.flags&elemExplicit != 0 {
			e.table = r.index(len(m.tables), "table")
		}
		e.offset = m.readConst(r)
	}
	if e.flags&(elemInactive|elemExplicit) != 0 {
		start = r.pos
		if e.flags&elemExprs != 0 {
			e.typ = byte(m.refType(r))
		} else if e.typ = r.u8(); e.typ != 0 {
			r.fail(ErrMalformed, start, "unknown kind of element")
		}
	}
	n := r.u32()
	if m.elements += uint64(n); m.elements > maxElements {
		r.fail(ErrLimit, start, fmt.Sprintf("the element segments have more than %d elements together", maxElements))
	}
	for ; n > 0 && r.err == nil; n-- {
		if e.flags&elemExprs != 0 {
			e.exprs = append(e.exprs, m.readConst(r))
		} else {
			e.funcs = append(e.funcs, r.index(len(m.funcs), "function"))
		}
	}
	m.elems = append(m.elems, e)
}

// dataPassive is the flag of a passive data segment.
const dataPassive = 1

func (m *module) readData(r *reader) {
	start := r.pos
	d := data{flags: r.u32()}
	switch d.flags {
	case 0:
		d.offset = m.readConst(r)
	case dataPassive:
	case 2:
		if memory := r.u32(); memory != 0 {
			r.fail(ErrUnsupported, start, "several memories")
		}
		d.flags = 0
		d.offset = m.readConst(r)
	default:
		r.fail(ErrMalformed, start, "unknown data segment")
	}
	d.bytes = r.bytes(r.u32())
	m.datas = append(m.datas, d)
}
