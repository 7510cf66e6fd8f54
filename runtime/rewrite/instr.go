package rewrite

import "fmt"

// instr is a decoded instruction. What it holds is written anew rather than copied, so that whoever reads the result sees the
// instructions that were metered, however they were encoded.
type instr struct {
	op     opcode
	start  int
	shape  shape
	a, b   uint32   // indexes, alignment and offset
	n      int64    // number, or block type as the format writes it
	raw    []byte   // constants, value types
	lane   byte     // lane
	labels []uint32 // br_table; the default is the last; valid until the next call of next
}

// blockEmpty is the block type without parameters and results.
const blockEmpty = -64

// next decodes an instruction. Index spaces that the rewriter extends are checked; the others are left to the engine.
func (m *module) next(r *reader, in *instr) {
	labels := in.labels[:0]
	*in = instr{op: opcode(r.u8()), start: r.pos - 1}
	if in.op == 0xfc || in.op == 0xfd {
		prefix := in.op
		sub := r.u32()
		if sub > 0xff {
			what := fmt.Sprintf("unknown instruction 0x%02x %d", uint16(prefix), sub)
			if prefix == 0xfd {
				what = fmt.Sprintf("vector instruction %d belongs to relaxed SIMD", sub)
			}
			r.fail(ErrUnsupported, in.start, what)
			return
		}
		in.op = prefix<<8 | opcode(sub)
	}
	if r.err != nil {
		return
	}
	var ok bool
	if in.shape, ok = shapeOf(in.op); !ok {
		what, kind := refuseOpcode(in.op)
		r.fail(kind, in.start, what)
		return
	}
	switch in.shape.imm {
	case immBlock:
		in.n = m.blockType(r)
	case immLabel, immLocal:
		in.a = r.u32() // checked where the function is known
	case immTargets:
		n := r.u32()
		for i := uint32(0); i < n && r.err == nil; i++ {
			labels = append(labels, r.u32())
		}
		in.labels = append(labels, r.u32())
		return
	case immFunc:
		in.a = r.index(m.numFuncs(), "function")
	case immIndirect:
		in.a = r.index(len(m.types), "type")
		in.b = r.index(len(m.tables), "table")
	case immTypes:
		for n := r.u32(); n > 0 && r.err == nil; n-- {
			in.raw = append(in.raw, byte(m.valueType(r)))
		}
	case immGlobal:
		in.a = r.index(len(m.globals), "global")
	case immTable:
		in.a = r.index(len(m.tables), "table")
	case immMemarg, immMemLane:
		m.memarg(r, in)
	case immMemory:
		m.memoryIndex(r)
	case immMemories:
		m.memoryIndex(r)
		m.memoryIndex(r)
	case immI32:
		in.n = r.signed(32)
	case immI64:
		in.n = r.signed(64)
	case immRaw4:
		in.raw = r.bytes(4)
	case immRaw8:
		in.raw = r.bytes(8)
	case immRaw16:
		in.raw = r.bytes(16)
	case immRefType:
		in.raw = []byte{byte(m.refType(r))}
	case immSegMemory:
		in.a = r.u32()
		m.memoryIndex(r)
	case immSegment:
		in.a = r.u32()
	case immSegTable:
		in.a = r.u32()
		in.b = r.index(len(m.tables), "table")
	case immTables:
		in.a = r.index(len(m.tables), "table")
		in.b = r.index(len(m.tables), "table")
	case immLane:
		in.lane = r.u8()
	case immNone:
	}
	in.labels = labels
}

func (m *module) memarg(r *reader, in *instr) {
	start := r.pos
	in.a = r.u32()
	if in.a&0x40 != 0 && in.a < 0x80 {
		r.fail(ErrUnsupported, start, "several memories")
		return
	}
	in.b = r.u32()
	if in.shape.imm == immMemLane {
		in.lane = r.u8()
	}
}

func (m *module) memoryIndex(r *reader) {
	start := r.pos
	if i := r.u8(); i != 0 { // a byte, not a number
		r.fail(ErrUnsupported, start, "several memories")
	}
}

// blockType returns a negative number for a value type or none, else the index of a type.
func (m *module) blockType(r *reader) int64 {
	start := r.pos
	n := r.signed(33)
	switch {
	case r.err != nil:
	case n == blockEmpty:
		if r.pos != start+1 {
			r.fail(ErrMalformed, start, "block type is longer than one byte")
		}
	case n >= int64(len(m.types)):
		r.fail(ErrMalformed, start, "there is no such type")
	case n < 0:
		r.pos = start
		m.valueType(r)
	}
	return n
}

// arity returns how many parameters and results a block has.
func (m *module) arity(blockType int64) (params, results int) {
	switch {
	case blockType == blockEmpty:
		return 0, 0
	case blockType < 0:
		return 0, 1
	}
	t := m.types[blockType]
	return len(t.params), len(t.results)
}

// appendInstr writes in. Function indexes are those of the result.
func appendInstr(b []byte, in *instr) []byte {
	b = appendOp(b, in.op)
	switch in.shape.imm {
	case immBlock, immI32, immI64:
		b = appendSigned(b, in.n)
	case immLabel, immFunc, immLocal, immGlobal, immTable, immSegment:
		b = appendU32(b, in.a)
	case immTargets:
		b = appendLen(b, len(in.labels)-1)
		for _, l := range in.labels {
			b = appendU32(b, l)
		}
	case immIndirect, immSegTable, immTables:
		b = appendU32(appendU32(b, in.a), in.b)
	case immTypes:
		b = append(appendLen(b, len(in.raw)), in.raw...)
	case immMemarg:
		b = appendU32(appendU32(b, in.a), in.b)
	case immMemLane:
		b = append(appendU32(appendU32(b, in.a), in.b), in.lane)
	case immMemory:
		b = append(b, 0)
	case immMemories:
		b = append(b, 0, 0)
	case immRaw4, immRaw8, immRaw16, immRefType:
		b = append(b, in.raw...)
	case immSegMemory:
		b = append(appendU32(b, in.a), 0)
	case immLane:
		b = append(b, in.lane)
	case immNone:
	}
	return b
}

func appendOp(b []byte, op opcode) []byte {
	if op > 0xff {
		return appendU32(append(b, byte(op>>8)), uint32(op&0xff))
	}
	return append(b, byte(op))
}
