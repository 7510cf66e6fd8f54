//go:build !unix

package runtime

import "os"

// privateDir makes dir if it is not there. Who may write to it is for the administrator to say on this system.
func privateDir(dir string) error { return os.MkdirAll(dir, 0o700) }

func private(string, os.FileInfo) error { return nil }
