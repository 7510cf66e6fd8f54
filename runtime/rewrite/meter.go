package rewrite

// meter writes function bodies with what counts fuel and depth.
type meter struct {
	m                    *module
	fuel, depth, refused uint32 // global indexes
	refuel               uint32 // function index in the result
	funcs                func(uint32) uint32
	types                map[string]uint32 // block types () -> results by the results
	maxMemory            uint32            // pages
	maxTable             []uint32          // elements, by table
	movers               []mover           // functions that are to be added
	firstMover           uint32            // index of the first of them in the result

	// of the function being written
	out               []byte
	plan              *plan
	spent, left, size uint32 // locals; behind size are two more where memory is moved
}

// function writes the body that r is about to read. Its locals have been read as groups and decls.
func (w *meter) function(r *reader, p *plan, t funcType, groups uint32, decls []byte) []byte {
	w.out, w.plan = make([]byte, 0, 2*(r.end-r.pos)+48), p
	w.locals(groups, decls)
	if p.calls {
		w.prologue()
	}
	w.charge(p.regions[0], true)
	if p.wraps() {
		w.out = appendSigned(appendOp(w.out, opBlock), w.blockType(t.results))
		w.body(r, true)
		w.out = appendOp(w.out, opEnd)
	} else {
		w.body(r, false)
	}
	if p.cached() {
		w.store()
	}
	if p.calls {
		w.epilogue()
	}
	return appendOp(w.out, opEnd)
}

// locals declares what the counting needs behind the function's own.
func (w *meter) locals(groups uint32, decls []byte) {
	next := w.plan.locals
	var i64s, i32s uint32
	if w.plan.checks || w.plan.cached() {
		w.spent, i64s = next, 1
		next++
	}
	if w.plan.calls {
		w.left = next
		i64s++
		next++
	}
	if w.plan.bulk {
		w.size, i32s = next, 3
	}
	if i64s > 0 {
		groups++
		decls = append(appendU32(decls, i64s), byte(I64))
	}
	if i32s > 0 {
		groups++
		decls = append(appendU32(decls, i32s), byte(I32))
	}
	w.out = append(appendU32(w.out, groups), decls...)
}

// body copies the instructions up to the function's end, which it leaves out.
func (w *meter) body(r *reader, wrapped bool) {
	var in instr
	depth := uint32(0) // open blocks
	regions := w.plan.regions[1:]
	for {
		w.m.next(r, &in)
		switch in.op {
		case opBlock, opLoop, opIf:
			depth++
		case opEnd:
			if depth == 0 {
				return
			}
			depth--
		case opReturn:
			if wrapped {
				in = instr{op: opBr, a: depth, shape: shape{imm: immLabel}}
			}
		case opCall, opRefFunc:
			in.a = w.funcs(in.a)
		case opMemoryGrow:
			w.grow(opMemorySize, 0, w.maxMemory, GrowCost)
		case opTableGrow:
			w.grow(opTableSize, in.a, w.maxTable[in.a], 1)
		case opMemoryInit, opMemoryCopy, opMemoryFill:
			w.move(&in)
		case opTableInit, opTableCopy, opTableFill:
			w.local(opLocalTee, w.size)
			w.dynamic(opI64ShrU, 0, nil)
		}
		leaves := w.plan.cached() && (in.op == opCall || in.op == opCallIndirect || in.op == opUnreachable)
		if leaves {
			w.store()
		}
		w.out = appendInstr(w.out, &in)
		if leaves && in.op != opUnreachable {
			w.global(opGlobalGet, w.fuel)
			w.local(opLocalSet, w.spent)
		}
		if len(regions) > 0 && regions[0].pos == r.pos {
			w.charge(regions[0], false)
			regions = regions[1:]
		}
	}
}

func (w *meter) op(op opcode)                 { w.out = appendOp(w.out, op) }
func (w *meter) local(op opcode, i uint32)    { w.out = appendU32(appendOp(w.out, op), i) }
func (w *meter) i32(n int64)                  { w.out = appendSigned(appendOp(w.out, opI32Const), n) }
func (w *meter) i64(n int64)                  { w.out = appendSigned(appendOp(w.out, opI64Const), n) }
func (w *meter) begin(op opcode)              { w.out = appendSigned(appendOp(w.out, op), blockEmpty) }
func (w *meter) global(op opcode, idx uint32) { w.out = appendU32(appendOp(w.out, op), idx) }

// load pushes the fuel that is left, from the local if it is there.
func (w *meter) load(cached bool) {
	if cached {
		w.local(opLocalGet, w.spent)
		return
	}
	w.global(opGlobalGet, w.fuel)
}

// store writes the local back for others to see.
func (w *meter) store() {
	w.local(opLocalGet, w.spent)
	w.global(opGlobalSet, w.fuel)
}

// charge subtracts a region's cost.
func (w *meter) charge(g region, entry bool) {
	cached := w.plan.cached()
	if g.cost == 0 && !g.check && !(cached && entry) {
		return
	}
	w.load(cached && !entry)
	// An empty loop costs something too, else it would never be stopped.
	w.i64(max(g.cost, 1))
	w.op(opI64Sub)
	switch {
	case g.check:
		w.subtracted(nil)
	case cached:
		w.local(opLocalSet, w.spent)
	default:
		w.global(opGlobalSet, w.fuel)
	}
}

// subtracted takes the fuel that is left from the stack and calls refuel when it is negative, and does more then, which may be nil.
func (w *meter) subtracted(more func()) {
	w.local(opLocalTee, w.spent)
	if !w.plan.cached() {
		w.global(opGlobalSet, w.fuel)
		w.local(opLocalGet, w.spent)
	}
	w.i64(0)
	w.op(opI64LtS)
	w.begin(opIf)
	if w.plan.cached() {
		w.store()
	}
	w.out = appendU32(appendOp(w.out, opCall), w.refuel)
	if w.plan.cached() {
		w.global(opGlobalGet, w.fuel)
		w.local(opLocalSet, w.spent)
	}
	if more != nil {
		more()
	}
	w.op(opEnd)
}

// prologue subtracts the function's weight from depth and the entry's cost from fuel. The two are checked apart: what follows a
// call that does not return needs no room on the stack, and of the two only this one is made in every function.
func (w *meter) prologue() {
	w.global(opGlobalGet, w.depth)
	w.i64(w.plan.weight())
	w.op(opI64Sub)
	w.local(opLocalTee, w.left)
	w.global(opGlobalSet, w.depth)
	w.local(opLocalGet, w.left)
	w.i64(0)
	w.op(opI64LtS)
	w.begin(opIf)
	w.out = appendU32(appendOp(w.out, opCall), w.refuel)
	w.op(opUnreachable)
	w.op(opEnd)
}

// epilogue puts depth back to what it was at the entry, whatever calls that were cut short have made of it.
func (w *meter) epilogue() {
	w.local(opLocalGet, w.left)
	w.i64(w.plan.weight())
	w.op(opI64Add)
	w.global(opGlobalSet, w.depth)
}

// dynamic subtracts what the number in the local size costs: op with arg says how much. What more writes is done where refuel was called.
func (w *meter) dynamic(op opcode, arg int64, more func()) {
	w.load(w.plan.cached())
	w.local(opLocalGet, w.size)
	w.op(opI64ExtendU)
	if arg != 0 {
		w.i64(arg)
		w.op(op)
	}
	w.op(opI64Sub)
	w.subtracted(more)
}

// grow charges for a growth within the limit and turns any other into one that fails for certain, of which it makes a note where
// it is memory that was asked for.
func (w *meter) grow(size opcode, index, limit uint32, cost int64) {
	w.local(opLocalTee, w.size)
	w.op(opI64ExtendU)
	w.out = appendU32(appendOp(w.out, size), index)
	w.op(opI64ExtendU)
	w.op(opI64Add)
	w.i64(int64(limit))
	w.op(opI64GtU)
	w.begin(opIf)
	if size == opMemorySize {
		w.local(opLocalGet, w.size)
		w.op(opI64ExtendU)
		w.global(opGlobalSet, w.refused)
	}
	w.i32(-1)
	w.local(opLocalSet, w.size)
	w.op(opElse)
	if size == opMemorySize {
		w.i64(0)
		w.global(opGlobalSet, w.refused)
	}
	if cost == 1 {
		cost = 0 // nothing to multiply by
	}
	w.dynamic(opI64Mul, cost, nil)
	w.op(opEnd)
	w.local(opLocalGet, w.size)
}

func (w *meter) blockType(results []byte) int64 {
	switch len(results) {
	case 0:
		return blockEmpty
	case 1:
		return int64(results[0]) - 0x80
	}
	return int64(w.types[string(results)])
}

// callBody is a function that calls another one of type () -> ().
func callBody(index uint32) []byte {
	out := appendU32(appendOp([]byte{0}, opCall), index)
	return appendOp(out, opEnd)
}
