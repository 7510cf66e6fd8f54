package rewrite

// What is charged beside one per instruction.
const (
	// HostCallCost is the fuel that a direct call of an imported function costs.
	HostCallCost = 64
	// GrowCost is the fuel that a page of memory costs when it is asked for.
	GrowCost = 1024
	// FrameValues is the number of values (parameters, locals, operands) in a frame that cost one more unit of depth; beyond 256
	// they cost four.
	FrameValues = 16
)

// ValueType is a value's type as the binary format writes it.
type ValueType byte

// The value types of WebAssembly 2.0.
const (
	I32       ValueType = 0x7f
	I64       ValueType = 0x7e
	F32       ValueType = 0x7d
	F64       ValueType = 0x7c
	V128      ValueType = 0x7b
	FuncRef   ValueType = 0x70
	ExternRef ValueType = 0x6f
)

// String names the type as the text format does.
func (t ValueType) String() string {
	switch t {
	case I32:
		return "i32"
	case I64:
		return "i64"
	case F32:
		return "f32"
	case F64:
		return "f64"
	case V128:
		return "v128"
	case FuncRef:
		return "funcref"
	case ExternRef:
		return "externref"
	}
	return "unknown"
}

// Options say what the rewritten module may do. The zero value meters and changes nothing else.
type Options struct {
	// MaxPages limits the module's own memory to so many pages of 64 KiB; 0 leaves it at what the module declares. A module
	// whose minimum is larger is refused with ErrLimit. See Memory for what is declared.
	MaxPages uint32
	// MaxElements limits each of the module's own tables; 0 leaves them at what the module declares. A module whose minimum is
	// larger is refused with ErrLimit.
	MaxElements uint32
	// EmptyData moves the active data segments with constant offsets that fit into the memory's minimum out of the module and
	// into Module.Data. The host puts them into each new memory before it calls the start function.
	EmptyData bool
}

// Module is a rewritten module and what the host needs to know to run it. Its slices belong to the caller.
type Module struct {
	// Wasm is the binary to compile.
	Wasm []byte

	// RefuelModule and RefuelName name the function of type () -> () that the module imports last. It is called when Fuel or
	// Depth is below zero. When Depth is, it must not return (should it do so, the guest traps as unreachable); otherwise it
	// either returns with Fuel at zero or above or ends the call by a panic. The module's name differs from those of all other
	// imports.
	RefuelModule, RefuelName string

	// Fuel and Depth are the exported names of the mutable i64 globals. Both are zero after instantiation: the host sets Depth
	// before each outermost call, for a trap leaves it lowered, and Fuel as it sees fit. What was burnt is what was granted minus
	// what is left. Pure recursion to a depth of 32768 takes up to 9 MB of wazero's stack.
	Fuel, Depth string

	// Refused is the exported name of a mutable i64 global, which the guest's code sets to the number of pages whenever a growth of
	// memory asks for more than Memory.Max allows, and to zero whenever one does not.
	Refused string

	// Start is the exported name of the start function, of type () -> (), which the host calls after the instantiation;
	// empty without one.
	Start string

	// Globals are the guest's mutable globals, in index order. Imported ones are not among them.
	Globals []Global

	// Memory is the module's own memory, nil when it has none or imports it.
	Memory *Memory

	// Data holds the segments that Options.EmptyData took out, in the order in which they are to be written.
	Data []Segment

	// Uninstantiable says which active segment does not fit into its table or memory, so that every instantiation traps. Engines may let
	// it pass. Empty where all fit or cannot be told to beforehand.
	Uninstantiable string

	// Resettable reports that memory and Globals are all the state an instance has. Why says in a few words why not.
	Resettable bool
	Why        string
}

// Global is a mutable global.
type Global struct {
	Export string // the name under which it is exported
	Type   ValueType
	Index  uint32 // in the guest's index space
}

// Memory describes a module's own memory, in pages of 64 KiB.
type Memory struct {
	// Min is the minimum, as the guest declared it.
	Min uint32
	// Max is the most that the guest can have: the smaller one of its own maximum and Options.MaxPages. The module's code does not
	// grow beyond it.
	Max uint32
	// Declared is the maximum in the binary. With Options.MaxPages it is Max+1, unless that is too large to be declared, so that
	// the host can grow a memory that is full.
	Declared uint32
}

// Segment is a part of the initial memory.
type Segment struct {
	Offset uint32
	Bytes  []byte
}

// Rewrite rewrites a core module. Its errors are of type *Error.
func Rewrite(wasm []byte, opt Options) (*Module, error) {
	m, err := parse(wasm)
	if err != nil {
		return nil, err
	}
	return m.rewrite(opt)
}

// WithImage prepares a module, rewritten or not, for instances that start from an image of pages pages: it declares that as the
// minimum of its memory and empties all active data segments, which leaves them as they are after an instantiation. A start
// section is removed, for what it did is in the image. Its errors are of type *Error.
func WithImage(wasm []byte, pages uint32) ([]byte, error) {
	m, err := parse(wasm)
	if err != nil {
		return nil, err
	}
	return m.withImage(pages)
}
