//go:build !linux || !(amd64 || arm64)

package runtime

import "errors"

// newMapped is for Linux.
func newMapped() (memories, error) { return nil, errors.New("not on this system") }
