//go:build darwin || freebsd || linux

package jetstream

import "syscall"

// space returns how many bytes the disk under dir has left for us, and how many it has; both 0 where that cannot be told.
func space(dir string) (free, total uint64) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0
	}
	block := uint64(st.Bsize)
	return uint64(st.Bavail) * block, st.Blocks * block
}
