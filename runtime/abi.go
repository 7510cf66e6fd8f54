package runtime

import (
	"context"
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// ABI names how a guest is called.
type ABI string

// The ABIs that guests may speak.
const (
	ABIAuto    ABI = "auto"    // found by Classify; the empty ABI means the same
	ABIPull    ABI = "pull"    // exports handle(); asks the host for its job
	ABICommand ABI = "command" // a WASI program: stdin to stdout
	ABIDRASM   ABI = "drasm"   // exports alloc and handle(ptr, len); JSON envelopes
)

// driver takes one job through one instance.
type driver interface {
	// fits says why a module with these exports cannot be called this way; nil if it can.
	fits(exports []Func, hasMemory bool) error
	// reactor says whether _initialize is to be called when an instance is made.
	reactor() bool
	// run calls the guest. What it returns is judged by Module; what the guest said is in c.
	run(ctx context.Context, in *instance, c *host.Call) error
}

// driverOf returns the driver of a known ABI.
func driverOf(a ABI) (driver, error) {
	switch a {
	case ABIPull:
		return pull{}, nil
	case ABICommand:
		return command{}, nil
	case ABIDRASM:
		return drasm{}, nil
	}
	return nil, fmt.Errorf("unknown abi %q; want auto, pull, command or drasm", a)
}

// exitCode is a guest's own word on how its job went, as a number: what a program exits with, or what handle returns.
type exitCode uint32

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", uint32(e)) }
