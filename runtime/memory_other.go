//go:build !linux || !(amd64 || arm64)

package runtime

import "errors"

// newMapped is for Linux.
func newMapped() (memories, error) { return nil, errors.New("not on this system") }

// What is written to a memory is not known here.
func forgetWritten(memory) bool { return false }
func countWritten(memory) int   { return -1 }
