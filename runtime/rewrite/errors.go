package rewrite

import (
	"errors"
	"fmt"
)

// What an Error wraps.
var (
	// ErrMalformed says that the bytes are not a valid module.
	ErrMalformed = errors.New("malformed module")
	// ErrUnsupported says that the module uses something beyond WebAssembly 2.0.
	ErrUnsupported = errors.New("unsupported feature")
	// ErrLimit says that the module asks for more than Options allow.
	ErrLimit = errors.New("limit exceeded")
)

// Error says what in a module was refused, and where.
type Error struct {
	// Offset is the byte offset in the module.
	Offset int
	// Func is the index of the function, -1 outside of code. Name is its name, as far as the module tells.
	Func int
	Name string
	// What was found.
	What string
	// Err is one of ErrMalformed, ErrUnsupported and ErrLimit.
	Err error
}

// Error says it in one line.
func (e *Error) Error() string {
	where := ""
	if e.Func >= 0 {
		where = fmt.Sprintf("function %d", e.Func)
		if e.Name != "" {
			where += fmt.Sprintf(" (%s)", e.Name)
		}
		where += ", "
	}
	return fmt.Sprintf("rewrite: %soffset 0x%x: %v: %s", where, e.Offset, e.Err, e.What)
}

// Unwrap returns the kind of error.
func (e *Error) Unwrap() error { return e.Err }
