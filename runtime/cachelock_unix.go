//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package runtime

import (
	"errors"
	"os"
	"syscall"
)

// lockShared and lockExclusive lock a file until it is closed, or the process ends; errInUse when that would have to wait.
func lockShared(f *os.File) error    { return lockFile(f, syscall.LOCK_SH) }
func lockExclusive(f *os.File) error { return lockFile(f, syscall.LOCK_EX) }

func lockFile(f *os.File, how int) error {
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errInUse
	}
	return err
}
