package runtime

import (
	"context"
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// ABI names how a guest is called.
type ABI string

// The ABIs that guests may speak.
const (
	ABIAuto      ABI = "auto"      // found by Classify; the empty ABI means the same
	ABIPull      ABI = "pull"      // exports handle(); asks the host for its job
	ABICommand   ABI = "command"   // a WASI program: stdin to stdout
	ABIDRASM     ABI = "drasm"     // exports alloc and handle(ptr, len); JSON envelopes
	ABIExtism    ABI = "extism"    // imports extism:host/env; exports functions without parameters
	ABIShallabuf ABI = "shallabuf" // exports run(ptr) ptr; strings that end with a NUL
)

// driver takes one job through one instance.
type driver interface {
	// fits says why a module with these exports cannot be called this way; nil if it can.
	fits(exports []Func, hasMemory bool) error
	// initialize runs what an instance needs once, before its first job.
	initialize(ctx context.Context, in *instance) error
	// reactor says whether an instance can be called for one job after another.
	reactor() bool
	// run calls the guest. What it returns is judged by Module; what the guest said is in c.
	run(ctx context.Context, in *instance, c *host.Call) error
}

// driverOf returns the driver of a known ABI for a module with these exports. function is the export that the configuration
// names; empty: none.
func driverOf(a ABI, function string, exports []Func) (driver, error) {
	if function != "" && a != ABIExtism {
		return nil, fmt.Errorf("function is for Extism plug-ins; this module's abi is %s", a)
	}
	switch a {
	case ABIPull:
		return pull{}, nil
	case ABICommand:
		return command{}, nil
	case ABIDRASM:
		return drasm{}, nil
	case ABIExtism:
		return newExtism(function, exports)
	case ABIShallabuf:
		return shallabuf{}, nil
	}
	return nil, fmt.Errorf("unknown abi %q; want auto, pull, command, drasm, extism or shallabuf", a)
}

// initialize calls _initialize where there is one.
func initialize(ctx context.Context, in *instance) error {
	if in.function(abi.Initialize) == nil {
		return nil
	}
	_, err := in.call(ctx, abi.Initialize)
	return err
}

// exitCode is a guest's own word on how its job went, as a number: what a program exits with, or what handle returns.
type exitCode uint32

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", uint32(e)) }
