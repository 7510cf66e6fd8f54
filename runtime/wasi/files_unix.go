//go:build unix

package wasi

import (
	"io/fs"
	"syscall"
)

// noBlock keeps the opening of what is no file after all, such as a pipe, from waiting for its other end.
const noBlock = syscall.O_NONBLOCK | syscall.O_NOCTTY

// identity is what a file is told from others by, and how many names it has.
func identity(info fs.FileInfo) (device, inode, links uint64) {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(s.Dev), s.Ino, uint64(s.Nlink)
	}
	return 0, 0, 1
}
