//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package jetstream

import (
	"fmt"
	goruntime "runtime"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

type dirLock struct{}

// lockDir refuses: two servers on one directory would destroy it, and nothing here could keep them apart.
func lockDir(string) (*dirLock, error) {
	return nil, fmt.Errorf("cannot be locked on %s; use a NATS server of its own: %w", goruntime.GOOS, transport.ErrUnsupported)
}

func (*dirLock) release() error { return nil }
