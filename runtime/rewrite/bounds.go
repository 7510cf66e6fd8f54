package rewrite

import "fmt"

// Bounds on what compilers take more than a fixed time or much memory per byte for, so that no module takes minutes or gigabytes
// to compile because of a few bytes. They were found by measuring wazero, and lie above what toolchains make of large programs;
// those of whole modules are what web browsers have, or less. A module beyond one is refused with ErrLimit.
const (
	maxTypes     = 50_000
	maxTypeSize  = 1_000     // parameters, and results, of one type
	maxTypeSizes = 1_000_000 // of all types
	maxFunctions = 200_000
	maxEntries   = 100_000 // imports, exports, globals, element segments, data segments
	maxCustoms   = 10_000
	maxElements  = 1_000_000 // of all element segments
	// Functions times types and globals, all of which are declared in each.
	maxSquare = 200_000_000

	// Those of one function.
	maxBody   = 4 << 20 // bytes
	maxLocals = 50_000  // engines set aside room for all of them as soon as they read the count
	// Basic blocks, with those that the counting of fuel adds: each looks for what comes before it in all of them.
	maxBlocks = 24_000
	// Targets of br_table.
	maxTargets = 32_768
	// Parameters and results of blocks, and what branches carry to them.
	maxCarried = 50_000
	// Parameters and results of calls, and two more for each call.
	maxPassed = 100_000
	// Mutable globals, once per call: they are all read again behind each.
	maxReloads = 2_000_000
	// Operands that lie below a basic block, once per block: they are alive in all of it.
	maxLive = 1_000_000
	// Places where ways meet, once per local that is read behind them: there the local may have one of several values.
	maxMerges = 700_000
	// Loops, once per local that is read in them: the same, and looked at again for each of the others.
	maxLoopMerges = 15_000
)

// maxOf is how many entries a section may have.
func maxOf(section byte) uint32 {
	switch section {
	case secType:
		return maxTypes
	case secFunction, secCode:
		return maxFunctions
	}
	return maxEntries
}

// effort is what the compilation of a function takes time for. It serves one function after another.
type effort struct {
	blocks, targets, carried, passed, reloads, live, merges, loopMerges int

	mutables int    // mutable globals of the module
	seen     []seen // by local
	loops    []int  // when those that are open were opened
	now      int    // grows with each loop and each local that is read, for ever
	joins    int    // places where ways met so far, for ever
	first    int    // of them, those in functions before
}

// seen says when a local was read last.
type seen struct{ at, joins int }

// begin begins a function.
func (e *effort) begin(locals uint32) {
	*e = effort{mutables: e.mutables, seen: e.seen, loops: e.loops[:0], now: e.now, joins: e.joins, first: e.joins}
	if n := int(locals) - len(e.seen); n > 0 {
		e.seen = append(e.seen, make([]seen, n)...)
	}
}

// weigh adds to the effort what in takes, before it is planned. What cannot be reached is not compiled.
func (p *planner) weigh(r *reader, in *instr) {
	e, top := &p.effort, &p.blocks[len(p.blocks)-1]
	if in.op == opEnd && top.live {
		e.joins++
		if top.op == opLoop {
			e.loops = e.loops[:len(e.loops)-1]
		}
	}
	if !p.live {
		return
	}
	add := func(n *int, by, most int, what string) {
		if *n += by; *n > most {
			r.fail(ErrLimit, in.start, fmt.Sprintf("more than %d %s in one function", most, what))
		}
	}
	blocks := func(n int) {
		add(&e.blocks, n, maxBlocks, "basic blocks")
		add(&e.live, n*p.height, maxLive, "operands below basic blocks, counted once per block,")
	}
	carry := func(n int) { add(&e.carried, n, maxCarried, "values that blocks and branches carry") }
	pass := func(t funcType) {
		add(&e.passed, 2+len(t.params)+len(t.results), maxPassed, "calls with their parameters and results")
		add(&e.reloads, e.mutables, maxReloads, "mutable globals, counted once per call,")
	}
	switch in.op {
	case opBlock, opLoop, opIf:
		params, results := p.m.arity(in.n)
		carry(params + results)
		switch in.op {
		case opBlock:
			blocks(1)
		case opLoop:
			blocks(2)
			e.now++
			e.loops = append(e.loops, e.now)
		case opIf:
			blocks(3)
		}
	case opBr:
		carry(p.carried(in.a))
	case opBrIf:
		blocks(1)
		carry(p.carried(in.a))
	case opBrTable:
		add(&e.targets, len(in.labels), maxTargets, "targets of br_table")
		carry(len(in.labels) * p.carried(in.labels[0]))
	case opReturn:
		carry(p.blocks[0].results)
	case opCall:
		pass(p.m.typeOf(int(in.a)))
	case opCallIndirect:
		pass(p.m.types[in.a])
	case opMemoryInit, opMemoryCopy, opMemoryFill, opTableInit, opTableCopy, opTableFill, opMemoryGrow, opTableGrow:
		blocks(6)
	case opLocalGet:
		if in.a >= p.plan.locals {
			return // not for long
		}
		l := &e.seen[in.a]
		add(&e.merges, e.joins-max(l.joins, e.first), maxMerges, "places where ways meet, counted once per local that is read behind them,")
		for i := len(e.loops) - 1; i >= 0 && e.loops[i] > l.at; i-- {
			add(&e.loopMerges, 1, maxLoopMerges, "loops, counted once per local that is read in them,")
		}
		e.now++
		l.at, l.joins = e.now, e.joins
	}
}

// carried is how many values a branch takes along; 0 where there is no such label.
func (p *planner) carried(label uint32) int {
	i := len(p.blocks) - 1 - int(label)
	switch {
	case i < 0:
		return 0
	case p.blocks[i].op == opLoop:
		return p.blocks[i].params
	}
	return p.blocks[i].results
}
