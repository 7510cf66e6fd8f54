//go:build unix

package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// privateDir makes dir if it is not there and says why it, or what is in it, must not be trusted with machine code; nil if it
// may.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if err := private(dir, st); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		st, err := entry.Info()
		if err != nil {
			return err
		}
		if err := private(filepath.Join(dir, entry.Name()), st); err != nil {
			return err
		}
	}
	return nil
}

func private(path string, st os.FileInfo) error {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to this process's user %d; choose another directory", path, sys.Uid, os.Geteuid())
	}
	if st.Mode()&os.ModeSymlink == 0 && st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s may be written by others (mode %04o), who could run code in this process; chmod 700 %s", path, st.Mode().Perm(), path)
	}
	return nil
}
