package runtime

import (
	"context"
	"errors"
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// Why a guest was stopped, for errors.Is. What becomes of the job is said by the job.Kind beside.
var (
	// ErrFuel: limits.fuel is used up. KindLimit.
	ErrFuel = errors.New("out of fuel")
	// ErrDepth: more calls within calls than limits.depth, or than the engine has room for. KindLimit.
	ErrDepth = errors.New("stack overflow")
	// ErrDeadline: the time is up. KindTimeout.
	ErrDeadline = fmt.Errorf("out of time: %w", context.DeadlineExceeded)
	// ErrCanceled: the run was broken off from outside. KindUnavailable.
	ErrCanceled = fmt.Errorf("cancelled: %w", context.Canceled)
	// ErrMemory: the guest crashed after the last memory that it asked for was more than limits.memory, or the host had no room left
	// in it for what the guest wanted kept. KindLimit.
	ErrMemory = host.ErrMemory
	// ErrClosed: the module was closed before the run began. KindUnavailable.
	ErrClosed = errors.New("closed")
	// ErrOutput: the result is larger than limits.output. KindLimit.
	ErrOutput = host.ErrOutput
	// ErrCache: Config.CacheDir cannot be used. An error of New.
	ErrCache = errors.New("open compilation cache")
	// ErrHostCalls: more calls of host functions than limits.host_calls. KindLimit.
	ErrHostCalls = host.ErrCalls
)
