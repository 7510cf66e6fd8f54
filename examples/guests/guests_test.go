package guests_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
)

// Each committed guest has its source beside it and is what SHA256SUMS says.
func TestCommitted(t *testing.T) {
	t.Parallel()
	sums, err := os.ReadFile("SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, name := range guests.Names() {
		if source(name) == "" {
			t.Errorf("%s.wasm has no source in %s/", name, name)
		}
		b := guests.Bytes(name)
		sum := sha256.Sum256(b)
		fmt.Fprintf(&want, "%s  %s.wasm\n", hex.EncodeToString(sum[:]), name)
		if len(b) > 16<<10 {
			t.Errorf("%s.wasm has %d bytes; large guests are built rather than committed", name, len(b))
		}
	}
	if string(sums) != want.String() {
		t.Errorf("SHA256SUMS is out of date: run build.sh\n%s", want.String())
	}
}

// source returns the guest's source file; "" when it has none that build.sh knows.
func source(name string) string {
	for _, ext := range []string{".c", ".rs", ".wat", ".ts"} {
		if path := filepath.Join(name, name+ext); exists(path) {
			return path
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// The committed guests are what their sources make, byte for byte. Compilers of another version make other bytes, so a guest
// whose compiler is not the pinned one is not rebuilt here; its bytes are then held by SHA256SUMS alone.
func TestRebuilt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rustc, asc := or("RUSTC", "/usr/bin/rustc"), or("ASC", "asc")
	clang := says("14.0.6", "clang", "--version") && says("LLD 14.0.6", "wasm-ld", "--version")
	libc := clang && says("0.0~git20220510.9886d3d-2", "dpkg-query", "-W", "-f", "${Version}", "wasi-libc")
	tools := map[string]bool{
		".rs":  says("rustc 1.63.0", rustc, "--version") && exists("/usr/lib/rustlib/wasm32-unknown-unknown"),
		".wat": says("1.0.32", "wat2wasm", "--version"),
		".ts":  says("0.28.20", asc, "--version"),
	}
	rebuilt := 0
	for _, name := range guests.Names() {
		path := source(name)
		pinned := tools[filepath.Ext(path)]
		if filepath.Ext(path) == ".c" {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if pinned = clang; bytes.Contains(text, []byte("\nint main")) {
				pinned = libc
			}
		}
		if !pinned {
			t.Logf("%s was not rebuilt: its pinned compiler is not here (see build.sh)", name)
			continue
		}
		if out, err := exec.Command("./build.sh", dir, name).CombinedOutput(); err != nil {
			t.Errorf("build.sh %s: %v\n%s", name, err, out)
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, name+".wasm"))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, guests.Bytes(name)) {
			t.Errorf("%s.wasm is not what %s makes: run build.sh and commit the result", name, path)
		}
		rebuilt++
	}
	t.Logf("%d of %d guests rebuilt", rebuilt, len(guests.Names()))
}

func or(env, otherwise string) string {
	if v := os.Getenv(env); v != "" {
		return v
	}
	return otherwise
}

// says reports whether a command is there and its output holds text.
func says(text, name string, args ...string) bool {
	out, err := exec.Command(name, args...).CombinedOutput()
	return err == nil && strings.Contains(string(out), text)
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"echo", "upper", "adder"} {
		if b := guests.Bytes(name); !bytes.HasPrefix(b, []byte("\x00asm")) {
			t.Errorf("%s is no module", name)
		}
	}
	defer func() {
		if p := fmt.Sprint(recover()); !strings.Contains(p, `no committed guest "none"`) {
			t.Errorf("panic %q", p)
		}
	}()
	guests.Bytes("none")
}
