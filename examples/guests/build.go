package guests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// TB is what BuildGo needs of a testing.TB.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

var built sync.Map // name → func() ([]byte, error)

// BuildGo returns an example guest that is written in Go, built once per process: such guests are too large to commit and
// change with every release of Go. Names that end in -reactor are built as libraries that export handle, others as programs.
func BuildGo(t TB, name string) []byte {
	t.Helper()
	once, _ := built.LoadOrStore(name, sync.OnceValues(func() ([]byte, error) { return build(name) }))
	b, err := once.(func() ([]byte, error))()
	if err != nil {
		t.Fatalf("build guest %s: %v", name, err)
	}
	return b
}

func build(name string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, name+".wasm")
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out}
	if strings.HasSuffix(name, "-reactor") {
		args = append(args, "-buildmode=c-shared")
	}
	cmd := exec.Command("go", append(args, "github.com/wasmsidecar/wasmsidecar/examples/guests/"+name)...)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, b)
	}
	return os.ReadFile(out)
}
