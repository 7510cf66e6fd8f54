package rewrite

import "fmt"

// opcode is an instruction's code; those behind the prefixes 0xfc and 0xfd have the prefix in the upper byte.
type opcode uint16

// The opcodes that are written or treated apart.
const (
	opUnreachable  opcode = 0x00
	opNop          opcode = 0x01
	opBlock        opcode = 0x02
	opLoop         opcode = 0x03
	opIf           opcode = 0x04
	opElse         opcode = 0x05
	opEnd          opcode = 0x0b
	opBr           opcode = 0x0c
	opBrIf         opcode = 0x0d
	opBrTable      opcode = 0x0e
	opReturn       opcode = 0x0f
	opCall         opcode = 0x10
	opCallIndirect opcode = 0x11
	opSelect       opcode = 0x1b
	opSelectT      opcode = 0x1c
	opLocalGet     opcode = 0x20
	opLocalSet     opcode = 0x21
	opLocalTee     opcode = 0x22
	opGlobalGet    opcode = 0x23
	opGlobalSet    opcode = 0x24
	opTableGet     opcode = 0x25
	opTableSet     opcode = 0x26
	opMemorySize   opcode = 0x3f
	opMemoryGrow   opcode = 0x40
	opI32Const     opcode = 0x41
	opI64Const     opcode = 0x42
	opF32Const     opcode = 0x43
	opF64Const     opcode = 0x44
	opI32LtU       opcode = 0x49
	opI32GtU       opcode = 0x4b
	opI64LtS       opcode = 0x53
	opI64GtU       opcode = 0x56
	opI32Add       opcode = 0x6a
	opI32Sub       opcode = 0x6b
	opI32Or        opcode = 0x72
	opI64Add       opcode = 0x7c
	opI64Sub       opcode = 0x7d
	opI64Mul       opcode = 0x7e
	opI64Or        opcode = 0x84
	opI64Shl       opcode = 0x86
	opI64ShrU      opcode = 0x88
	opI64ExtendU   opcode = 0xad
	opRefNull      opcode = 0xd0
	opRefFunc      opcode = 0xd2
	opMemoryInit   opcode = 0xfc08
	opDataDrop     opcode = 0xfc09
	opMemoryCopy   opcode = 0xfc0a
	opMemoryFill   opcode = 0xfc0b
	opTableInit    opcode = 0xfc0c
	opElemDrop     opcode = 0xfc0d
	opTableCopy    opcode = 0xfc0e
	opTableGrow    opcode = 0xfc0f
	opTableSize    opcode = 0xfc10
	opTableFill    opcode = 0xfc11
	opV128Const    opcode = 0xfd0c
)

// immediate says what follows an opcode.
type immediate uint8

const (
	immNone      immediate = iota
	immBlock               // block type
	immLabel               // label
	immTargets             // vector of labels and a default
	immFunc                // function index
	immIndirect            // type index, table index
	immTypes               // vector of value types
	immLocal               // local index
	immGlobal              // global index
	immTable               // table index
	immMemarg              // alignment, offset
	immMemory              // memory index
	immI32                 // signed 32-bit number
	immI64                 // signed 64-bit number
	immRaw4                // four bytes
	immRaw8                // eight bytes
	immRaw16               // sixteen bytes
	immRefType             // reference type
	immSegMemory           // data segment, memory
	immSegment             // data or element segment
	immMemories            // memory, memory
	immSegTable            // element segment, table
	immTables              // table, table
	immLane                // lane
	immMemLane             // alignment, offset, lane
)

// shape describes an opcode: its immediates and how many values it takes and leaves. Control instructions, calls and what
// takes its operands from a type leave zeroes here.
type shape struct {
	imm       immediate
	pop, push int
}

// shapeOf returns false for what WebAssembly 2.0 does not have.
func shapeOf(op opcode) (shape, bool) {
	switch op >> 8 {
	case 0xfc:
		return miscShape(op & 0xff)
	case 0xfd:
		return vectorShape(op & 0xff)
	}
	switch {
	case op == opUnreachable, op == opNop, op == opElse, op == opEnd, op == opReturn:
		return shape{immNone, 0, 0}, true
	case op == opBlock, op == opLoop:
		return shape{immBlock, 0, 0}, true
	case op == opIf:
		return shape{immBlock, 1, 0}, true
	case op == opBr:
		return shape{immLabel, 0, 0}, true
	case op == opBrIf:
		return shape{immLabel, 1, 0}, true
	case op == opBrTable:
		return shape{immTargets, 1, 0}, true
	case op == opCall:
		return shape{immFunc, 0, 0}, true
	case op == opCallIndirect:
		return shape{immIndirect, 1, 0}, true
	case op == 0x1a: // drop
		return shape{immNone, 1, 0}, true
	case op == opSelect:
		return shape{immNone, 3, 1}, true
	case op == opSelectT:
		return shape{immTypes, 3, 1}, true
	case op == opLocalGet:
		return shape{immLocal, 0, 1}, true
	case op == opLocalSet:
		return shape{immLocal, 1, 0}, true
	case op == opLocalTee:
		return shape{immLocal, 1, 1}, true
	case op == opGlobalGet:
		return shape{immGlobal, 0, 1}, true
	case op == opGlobalSet:
		return shape{immGlobal, 1, 0}, true
	case op == opTableGet:
		return shape{immTable, 1, 1}, true
	case op == opTableSet:
		return shape{immTable, 2, 0}, true
	case op >= 0x28 && op <= 0x35: // loads
		return shape{immMemarg, 1, 1}, true
	case op >= 0x36 && op <= 0x3e: // stores
		return shape{immMemarg, 2, 0}, true
	case op == opMemorySize:
		return shape{immMemory, 0, 1}, true
	case op == opMemoryGrow:
		return shape{immMemory, 1, 1}, true
	case op == opI32Const:
		return shape{immI32, 0, 1}, true
	case op == opI64Const:
		return shape{immI64, 0, 1}, true
	case op == opF32Const:
		return shape{immRaw4, 0, 1}, true
	case op == opF64Const:
		return shape{immRaw8, 0, 1}, true
	case op == 0x45, op == 0x50, // eqz
		op >= 0x67 && op <= 0x69, op >= 0x79 && op <= 0x7b, // clz, ctz, popcnt
		op >= 0x8b && op <= 0x91, op >= 0x99 && op <= 0x9f, // abs to sqrt
		op >= 0xa7 && op <= 0xc4: // conversions, sign extensions
		return shape{immNone, 1, 1}, true
	case op >= 0x46 && op <= 0xa6: // comparisons, arithmetic
		return shape{immNone, 2, 1}, true
	case op == opRefNull:
		return shape{immRefType, 0, 1}, true
	case op == 0xd1: // ref.is_null
		return shape{immNone, 1, 1}, true
	case op == opRefFunc:
		return shape{immFunc, 0, 1}, true
	}
	return shape{}, false
}

// miscShape is shapeOf behind the prefix 0xfc.
func miscShape(sub opcode) (shape, bool) {
	switch op := sub | 0xfc00; op {
	case opMemoryInit:
		return shape{immSegMemory, 3, 0}, true
	case opDataDrop, opElemDrop:
		return shape{immSegment, 0, 0}, true
	case opMemoryCopy:
		return shape{immMemories, 3, 0}, true
	case opMemoryFill:
		return shape{immMemory, 3, 0}, true
	case opTableInit:
		return shape{immSegTable, 3, 0}, true
	case opTableCopy:
		return shape{immTables, 3, 0}, true
	case opTableGrow:
		return shape{immTable, 2, 1}, true
	case opTableSize:
		return shape{immTable, 0, 1}, true
	case opTableFill:
		return shape{immTable, 3, 0}, true
	}
	return shape{immNone, 1, 1}, sub <= 7 // saturating conversions
}

// vectorShape is shapeOf behind the prefix 0xfd.
func vectorShape(sub opcode) (shape, bool) {
	switch {
	case sub <= 0x0a, sub == 0x5c, sub == 0x5d: // loads
		return shape{immMemarg, 1, 1}, true
	case sub == 0x0b: // store
		return shape{immMemarg, 2, 0}, true
	case sub == opV128Const&0xff:
		return shape{immRaw16, 0, 1}, true
	case sub == 0x0d: // shuffle
		return shape{immRaw16, 2, 1}, true
	case sub >= 0x0f && sub <= 0x14: // splat
		return shape{immNone, 1, 1}, true
	case sub >= 0x15 && sub <= 0x22: // lanes
		switch sub {
		case 0x17, 0x1a, 0x1c, 0x1e, 0x20, 0x22: // replace
			return shape{immLane, 2, 1}, true
		}
		return shape{immLane, 1, 1}, true
	case sub == 0x52: // bitselect
		return shape{immNone, 3, 1}, true
	case sub >= 0x54 && sub <= 0x57: // load lane
		return shape{immMemLane, 2, 1}, true
	case sub >= 0x58 && sub <= 0x5b: // store lane
		return shape{immMemLane, 2, 0}, true
	}
	switch sub {
	case 0x9a, 0xa2, 0xa5, 0xa6, 0xaf, 0xb0, 0xb2, 0xb3, 0xb4, 0xbb, 0xc2, 0xc5, 0xc6, 0xcf, 0xd0, 0xd2, 0xd3, 0xd4, 0xe2, 0xee:
		return shape{}, false // holes, some of which relaxed SIMD once filled
	case 0x4d, 0x53, 0x5e, 0x5f, 0x60, 0x61, 0x62, 0x63, 0x64, 0x67, 0x68, 0x69, 0x6a, 0x74, 0x75, 0x7a, 0x7c, 0x7d, 0x7e, 0x7f,
		0x80, 0x81, 0x83, 0x84, 0x87, 0x88, 0x89, 0x8a, 0x94, 0xa0, 0xa1, 0xa3, 0xa4, 0xa7, 0xa8, 0xa9, 0xaa,
		0xc0, 0xc1, 0xc3, 0xc4, 0xc7, 0xc8, 0xc9, 0xca, 0xe0, 0xe1, 0xe3, 0xec, 0xed, 0xef,
		0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff:
		return shape{immNone, 1, 1}, true
	}
	return shape{immNone, 2, 1}, true
}

// refuseOpcode says what an opcode that shapeOf does not know belongs to.
func refuseOpcode(op opcode) (what string, kind error) {
	belongs := ""
	switch {
	case op == 0x12, op == 0x13:
		belongs = "tail calls"
	case op >= 0x06 && op <= 0x0a, op == 0x18, op == 0x19, op == 0x1f:
		belongs = "exception handling"
	case op == 0x14, op == 0x15, op >= 0xd3 && op <= 0xd6:
		belongs = "typed function references or garbage collection"
	case op == 0xfb:
		belongs = "garbage collection"
	case op == 0xfe:
		belongs = "threads"
	default:
		return fmt.Sprintf("unknown instruction 0x%02x", uint16(op)), ErrUnsupported
	}
	return fmt.Sprintf("instruction 0x%02x belongs to %s", uint16(op), belongs), ErrUnsupported
}
