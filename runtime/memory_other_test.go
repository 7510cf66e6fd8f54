//go:build !linux || !(amd64 || arm64)

package runtime

func variants(memories) map[string]memories { return nil }
