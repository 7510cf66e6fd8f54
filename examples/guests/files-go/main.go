// Command files-go reads every file of a directory, which its stdin names, after a copy of each.
//
//	GOOS=wasip1 GOARCH=wasm go build -trimpath -ldflags='-s -w' -o files-go.wasm ./examples/guests/files-go
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	name, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	dir := string(name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	copies := filepath.Join(dir, "copies", "of", "all")
	if err := os.MkdirAll(copies, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		to := filepath.Join(copies, e.Name())
		if err := os.WriteFile(to, b, 0o644); err != nil {
			return err
		}
		if err := os.Rename(to, to+"~"); err != nil {
			return err
		}
		if b, err = os.ReadFile(to + "~"); err != nil {
			return err
		}
		fmt.Printf("%s: %s", e.Name(), b)
	}
	return os.RemoveAll(filepath.Join(dir, "copies"))
}
