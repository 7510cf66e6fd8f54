package rewrite

import "fmt"

const (
	// freeCost is the cost up to which a function without calls is not checked when it is entered: such functions only end.
	freeCost = 64
	// maxRun is the cost up to which code runs on without a check. Without loops and recursion it would end by itself, but large
	// functions, or very many that return one after the other, take their time.
	maxRun = 1024
	// cacheFrom is the number of regions above which a function keeps fuel in a local.
	cacheFrom = 3
)

// region is a stretch of code that is entered only at its start.
type region struct {
	pos   int // offset of the first instruction
	cost  int64
	check bool
}

// plan is what one pass over a function's body finds out.
type plan struct {
	regions []region // by pos; the first is the function's entry
	total   int64
	locals  uint32 // parameters included
	height  int    // most operands at a time
	calls   bool
	looped  bool // the function begins with a loop, which checks at once
	wrapped bool // the body needs a label of its own: it returns or branches to the function's end
	bulk    bool // needs a local for an operand
	checks  bool // needs a local for fuel
}

// weight is the depth that a call of the function costs. Compilers keep values of very large frames more than once.
func (p *plan) weight() int64 {
	values := int64(p.locals) + int64(p.height)
	return 1 + values/FrameValues + max(0, values-largeFrame)/FrameValues*3
}

const largeFrame = 256

// cached reports whether fuel is kept in a local between calls, which pays from a few regions on.
func (p *plan) cached() bool { return len(p.regions) > cacheFrom }

// wraps reports whether the body becomes a block, for something to be done at its end.
func (p *plan) wraps() bool { return p.wrapped && (p.calls || p.cached()) }

// block is an open block in a function's body.
type block struct {
	op       opcode // opBlock also for the function itself
	params   int
	results  int
	base     int   // operands below the block
	live     bool  // it can be entered
	targeted bool  // something branches to its end
	run      int64 // most that can have run without a check on a branch to its end
	before   int64 // the same where it was opened
}

// planner makes plans. It is used for one function after another.
type planner struct {
	m      *module
	blocks []block
	height int
	live   bool
	plan   plan
	cur    int   // the region that is being counted, -1 in code that cannot be reached
	run    int64 // most that can have run without a check on the way here
	effort effort
}

// readLocals reads the declarations of locals and returns how many locals there are, parameters included.
func (m *module) readLocals(r *reader, params int, decls *[]byte) (groups, locals uint32) {
	start := r.pos
	sum := uint64(params)
	groups = r.u32()
	for n := groups; n > 0 && r.err == nil; n-- {
		count := r.u32()
		t := m.valueType(r)
		sum += uint64(count)
		*decls = append(appendU32(*decls, count), byte(t))
	}
	if r.err == nil && sum > maxLocals {
		r.fail(ErrLimit, start, fmt.Sprintf("%d locals, at most %d are supported", sum, maxLocals))
	}
	if r.err != nil {
		return 0, 0
	}
	return groups, uint32(sum)
}

// function plans the body that r is about to read, after its locals. It checks labels, locals and that blocks are closed, and
// notes in v what stands against a reset.
func (p *planner) function(r *reader, t funcType, locals uint32, v *verdict) *plan {
	p.plan = plan{regions: p.plan.regions[:0], locals: locals}
	p.blocks = append(p.blocks[:0], block{op: opBlock, results: len(t.results), live: true})
	p.height, p.live, p.run = 0, true, 0
	p.enter(r.pos, true)
	p.effort.begin(locals)
	var in instr
	for r.err == nil && len(p.blocks) > 0 {
		p.m.next(r, &in)
		if r.err != nil {
			break
		}
		p.weigh(r, &in)
		p.instr(r, &in)
		v.instr(p.m, &in)
		if p.cur >= 0 && p.plan.regions[p.cur].cost > maxRun && len(p.blocks) > 0 {
			p.enter(r.pos, true)
		}
	}
	if r.err == nil && r.pos != r.end {
		r.fail(ErrMalformed, r.pos, "code after the function's end")
	}
	p.settle()
	return &p.plan
}

// settle decides which checks are made.
func (p *planner) settle() {
	for i := range p.plan.regions {
		p.plan.total += p.plan.regions[i].cost
	}
	entry := &p.plan.regions[0]
	if p.plan.looped || !p.plan.calls && p.plan.total <= freeCost {
		entry.check = false
	}
	for i := range p.plan.regions {
		p.plan.checks = p.plan.checks || p.plan.regions[i].check
	}
	p.plan.checks = p.plan.checks || p.plan.bulk
}

// enter begins a region.
func (p *planner) enter(pos int, check bool) {
	if !p.live {
		p.cur = -1
		return
	}
	if check = check || p.run > maxRun; check {
		p.run = 0
		p.effort.blocks += 2 // weigh sees whether they are too many
	}
	p.plan.regions = append(p.plan.regions, region{pos: pos, check: check})
	p.cur = len(p.plan.regions) - 1
}

func (p *planner) charge(n int64) {
	if p.cur >= 0 {
		p.plan.regions[p.cur].cost += n
		p.run += n
	}
}

func (p *planner) move(pop, push int) {
	top := &p.blocks[len(p.blocks)-1]
	p.height = max(p.height-pop, top.base) + push
	p.plan.height = max(p.plan.height, p.height)
}

// dead marks the rest of the block as unreachable.
func (p *planner) dead() {
	p.live, p.cur = false, -1
	p.height = p.blocks[len(p.blocks)-1].base
}

// target notes a branch to a label.
func (p *planner) target(r *reader, in *instr, label uint32) {
	if uint64(label) >= uint64(len(p.blocks)) {
		r.fail(ErrMalformed, in.start, fmt.Sprintf("there is no label %d", label))
		return
	}
	i := len(p.blocks) - 1 - int(label)
	if i == 0 {
		p.plan.wrapped = true
	}
	if p.live {
		p.blocks[i].targeted = true
		p.blocks[i].run = max(p.blocks[i].run, p.run)
	}
}

func (p *planner) instr(r *reader, in *instr) {
	p.move(in.shape.pop, in.shape.push)
	switch in.op {
	case opNop:
	case opBlock, opLoop, opIf:
		p.open(r, in)
	case opElse:
		p.otherwise(r, in)
	case opEnd:
		p.end(r)
	case opBr, opBrIf, opBrTable, opReturn, opUnreachable:
		p.charge(1)
		p.branch(r, in)
	case opCall:
		t := p.m.typeOf(int(in.a))
		p.call(t)
		if int(in.a) < p.m.impFuncs {
			p.charge(HostCallCost)
		}
	case opCallIndirect:
		p.call(p.m.types[in.a])
	case opLocalGet, opLocalSet, opLocalTee:
		p.charge(1)
		if in.a >= p.plan.locals {
			r.fail(ErrMalformed, in.start, fmt.Sprintf("there is no local %d", in.a))
		}
	case opMemoryGrow, opMemoryInit, opMemoryCopy, opMemoryFill, opTableInit, opTableCopy, opTableFill, opTableGrow:
		p.charge(1)
		p.plan.bulk = true
	default:
		p.charge(1)
	}
}

func (p *planner) call(t funcType) {
	p.charge(1)
	p.run += freeCost
	p.plan.calls = true
	p.move(len(t.params), len(t.results))
}

func (p *planner) branch(r *reader, in *instr) {
	switch in.op {
	case opBr:
		p.target(r, in, in.a)
	case opBrIf:
		p.target(r, in, in.a)
		p.enter(r.pos, false)
		return
	case opBrTable:
		for _, l := range in.labels {
			p.target(r, in, l)
		}
	case opReturn:
		p.plan.wrapped = true
	}
	p.dead()
}

func (p *planner) open(r *reader, in *instr) {
	params, results := p.m.arity(in.n)
	if in.op == opIf {
		p.charge(1)
	}
	p.move(params, 0)
	p.blocks = append(p.blocks, block{op: in.op, params: params, results: results, base: p.height, live: p.live, before: p.run})
	if in.op == opLoop && p.cur == 0 && !p.plan.calls {
		p.plan.looped = true
	}
	p.move(0, params)
	if in.op != opBlock {
		p.enter(r.pos, in.op == opLoop)
	}
}

func (p *planner) otherwise(r *reader, in *instr) {
	top := &p.blocks[len(p.blocks)-1]
	if top.op != opIf {
		r.fail(ErrMalformed, in.start, "else without if")
		return
	}
	// Whoever comes to the end of the first arm is behind the end.
	if p.live {
		top.targeted, top.run = true, max(top.run, p.run)
	}
	top.op, p.run = opElse, top.before
	p.live = top.live
	p.height = top.base
	p.move(0, top.params)
	p.enter(r.pos, false)
}

func (p *planner) end(r *reader) {
	top := p.blocks[len(p.blocks)-1]
	p.blocks = p.blocks[:len(p.blocks)-1]
	p.height = top.base
	if len(p.blocks) == 0 {
		return
	}
	p.move(0, top.results)
	joined := top.live && (top.targeted && top.op != opLoop || top.op == opIf || top.op == opElse)
	switch {
	case joined && top.op == opElse && !top.targeted:
		// The second arm alone comes here, so what follows belongs to it.
	case joined:
		if !p.live {
			p.run = 0
		}
		if top.op == opIf {
			p.run = max(p.run, top.before)
		}
		p.live, p.run = true, max(p.run, top.run)
		p.enter(r.pos, false)
	}
}
