package rewrite

// piece is how many bytes of memory one instruction may write. What is longer is done by a function that is added, piece by piece, and asks
// refuel before each whether it may go on: a gigabyte takes the better part of a second. Tables are too small for that to matter.
const piece = 1 << 20

// mover is what such a function does.
type mover struct {
	op      opcode // opMemoryFill, opMemoryCopy or opMemoryInit
	segment uint32 // of opMemoryInit
}

// moverType is the type of the functions: destination, source or value, number of bytes -> how many are left for the instruction, none or, where
// it is going to trap, all.
func moverType() funcType {
	return funcType{params: []byte{byte(I32), byte(I32), byte(I32)}, results: []byte{byte(I32)}}
}

// mover returns the index in the result of the function that does m.
func (w *meter) mover(m mover) uint32 {
	for i, have := range w.movers {
		if have == m {
			return w.firstMover + uint32(i)
		}
	}
	w.movers = append(w.movers, m)
	return w.firstMover + uint32(len(w.movers)-1)
}

// move charges for an instruction that writes memory and makes it write no more than can be done in one go.
func (w *meter) move(in *instr) {
	w.local(opLocalSet, w.size)
	w.local(opLocalSet, w.size+2)
	w.local(opLocalSet, w.size+1)
	w.dynamic(opI64ShrU, 3, func() {
		// Whatever is longer than the fuel that is granted at a time comes here.
		if datas := w.m.datas; in.op == opMemoryInit && (int(in.a) >= len(datas) || len(datas[in.a].bytes) <= piece) {
			return
		}
		w.local(opLocalGet, w.size)
		w.i32(piece)
		w.op(opI32GtU)
		w.begin(opIf)
		w.operands()
		m := mover{op: in.op}
		if in.op == opMemoryInit {
			m.segment = in.a
		}
		w.out = appendU32(appendOp(w.out, opCall), w.mover(m))
		w.local(opLocalSet, w.size)
		if w.plan.cached() {
			w.global(opGlobalGet, w.fuel)
			w.local(opLocalSet, w.spent)
		}
		w.op(opEnd)
	})
	w.operands()
}

// operands pushes the operands that move has put away.
func (w *meter) operands() {
	w.local(opLocalGet, w.size+1)
	w.local(opLocalGet, w.size+2)
	w.local(opLocalGet, w.size)
}

// moverBody writes one of the functions. Nothing is written when not all can be, and where source and destination overlap, copies begin at
// the end that is not yet needed.
func (w *meter) moverBody(m mover) []byte {
	const to, from, left, now = 0, 1, 2, 3
	w.out = append([]byte{1, 1}, byte(I32)) // one more local
	end := func(start uint32) {
		w.local(opLocalGet, start)
		w.op(opI64ExtendU)
		w.local(opLocalGet, left)
		w.op(opI64ExtendU)
		w.op(opI64Add)
	}
	size := func() {
		w.out = append(appendOp(w.out, opMemorySize), 0)
		w.op(opI64ExtendU)
		w.i64(16)
		w.op(opI64Shl)
		w.op(opI64GtU)
	}
	end(to)
	size()
	switch m.op {
	case opMemoryCopy:
		end(from)
		size()
		w.op(opI32Or)
	case opMemoryInit:
		end(from)
		w.i64(int64(len(w.m.datas[m.segment].bytes)))
		w.op(opI64GtU)
		w.op(opI32Or)
	}
	w.begin(opIf)
	w.local(opLocalGet, left)
	w.op(opReturn)
	w.op(opEnd)
	add := func(l uint32, by opcode) {
		w.local(opLocalGet, l)
		w.local(opLocalGet, now)
		w.op(by)
		w.local(opLocalSet, l)
	}
	at := func(l uint32, offset bool) {
		w.local(opLocalGet, l)
		if offset {
			w.local(opLocalGet, left)
			w.op(opI32Add)
		}
	}
	pieces := func(backwards bool) {
		w.begin(opLoop)
		w.local(opLocalGet, left)
		w.begin(opIf)
		w.out = appendU32(appendOp(w.out, opCall), w.refuel)
		w.local(opLocalGet, left)
		w.i32(piece)
		w.local(opLocalGet, left)
		w.i32(piece)
		w.op(opI32LtU)
		w.op(opSelect)
		w.local(opLocalSet, now)
		add(left, opI32Sub)
		at(to, backwards)
		at(from, backwards && m.op == opMemoryCopy)
		w.local(opLocalGet, now)
		in := instr{op: m.op, a: m.segment}
		in.shape, _ = shapeOf(m.op)
		w.out = appendInstr(w.out, &in)
		if !backwards {
			add(to, opI32Add)
			if m.op != opMemoryFill {
				add(from, opI32Add)
			}
		}
		w.out = appendU32(appendOp(w.out, opBr), 1)
		w.op(opEnd)
		w.op(opEnd)
	}
	if m.op == opMemoryCopy {
		w.local(opLocalGet, to)
		w.local(opLocalGet, from)
		w.op(opI32GtU)
		w.begin(opIf)
		pieces(true)
		w.op(opElse)
		pieces(false)
		w.op(opEnd)
	} else {
		pieces(false)
	}
	w.i32(0)
	return appendOp(w.out, opEnd)
}
