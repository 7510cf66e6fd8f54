package module_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/module"
)

// fixture is a directory with modules, a secret beside it, and a link that leads out.
func fixture(t *testing.T) (dir string) {
	t.Helper()
	base := t.TempDir()
	dir = filepath.Join(base, "modules")
	for _, err := range []error{
		os.Mkdir(dir, 0o755),
		os.Mkdir(filepath.Join(dir, "sub.wasm"), 0o755),
		os.WriteFile(filepath.Join(base, "secret.wasm"), []byte("secret"), 0o600),
		os.WriteFile(filepath.Join(dir, "echo.wasm"), []byte("echo"), 0o600),
		os.WriteFile(filepath.Join(dir, "upper.wasm"), []byte("upper"), 0o600),
		os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("notes"), 0o600),
		os.WriteFile(filepath.Join(dir, "large.wasm"), make([]byte, 2000), 0o600),
		os.Symlink(filepath.Join(base, "secret.wasm"), filepath.Join(dir, "link.wasm")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// D-16: modules from files and directories, their digests pinned and verified.
func TestFetch(t *testing.T) {
	t.Parallel()
	dir := fixture(t)
	tests := []struct {
		name string
		ref  module.Ref
		want string
		err  string // part of the error; empty for none
	}{
		{"file", module.Ref{Name: "a", Source: dir + "/echo.wasm"}, "echo", ""},
		{"relative to base", module.Ref{Name: "a", Source: "echo.wasm"}, "echo", ""},
		{"file url", module.Ref{Name: "a", Source: "file://" + dir + "/echo.wasm"}, "echo", ""},
		{"directory", module.Ref{Name: "upper", Source: dir}, "upper", ""},
		{"directory with slash", module.Ref{Name: "upper", Source: dir + "/"}, "upper", ""},
		{"pinned", module.Ref{Name: "a", Source: "echo.wasm", SHA256: digest("echo")}, "echo", ""},
		{"pinned in upper case", module.Ref{Name: "a", Source: "echo.wasm", SHA256: strings.ToUpper(digest("echo"))}, "echo", ""},
		{"pinned with prefix", module.Ref{Name: "a", Source: "echo.wasm", SHA256: "sha256:" + digest("echo")}, "echo", ""},
		{"pinned otherwise", module.Ref{Name: "a", Source: "echo.wasm", SHA256: digest("upper")}, "", "is pinned"},
		{"pin too short", module.Ref{Name: "a", Source: "echo.wasm", SHA256: "9f86"}, "", "64 hex digits"},
		{"no source", module.Ref{Name: "a"}, "", "source is empty"},
		{"no file", module.Ref{Name: "a", Source: "eco.wasm"}, "", "not found; the directory has echo, large, link, upper"},
		{"no directory", module.Ref{Name: "a", Source: "x/y/z.wasm"}, "", "there is no directory"},
		{"not in directory", module.Ref{Name: "lower", Source: dir}, "", "not found; the directory has"},
		{"too large", module.Ref{Name: "large", Source: dir}, "", "more than 1000 bytes"},
		{"a directory by name", module.Ref{Name: "sub", Source: dir}, "", "not a regular file"},
		{"climbing out", module.Ref{Name: "../secret", Source: dir}, "", "is not made of"},
		{"linking out", module.Ref{Name: "link", Source: dir}, "", "escapes"},
		{"http", module.Ref{Name: "a", Source: "https://example.com/a.wasm"}, "", "https is not supported in this version"},
		{"oci", module.Ref{Name: "a", Source: "oci://registry/a:1"}, "", "oci is not supported in this version"},
		{"unknown scheme", module.Ref{Name: "a", Source: "gopher://x"}, "", `unknown scheme "gopher"`},
		{"file url with host", module.Ref{Name: "a", Source: "file://etc/a.wasm"}, "", "write file:///path"},
	}
	s, err := module.New(module.Config{Base: dir, MaxSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, err := s.Fetch(t.Context(), tt.ref)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), tt.ref.Name) {
					t.Fatalf("error %v does not say %q of %q", err, tt.err, tt.ref.Name)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(b.Wasm) != tt.want || b.Digest != digest(tt.want) || filepath.Ext(b.Path) != ".wasm" {
				t.Errorf("got %q, digest %s, path %s", b.Wasm, b.Digest, b.Path)
			}
		})
	}
}

func TestFetchNotFound(t *testing.T) {
	t.Parallel()
	s, _ := module.New(module.Config{Base: t.TempDir()})
	if _, err := s.Fetch(t.Context(), module.Ref{Name: "a", Source: "a.wasm"}); !errors.Is(err, module.ErrNotFound) {
		t.Errorf("error %v is not ErrNotFound", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Fetch(ctx, module.Ref{Name: "a", Source: "a.wasm"}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v is not context.Canceled", err)
	}
	if _, err := module.New(module.Config{MaxSize: -1}); err == nil {
		t.Error("a size below zero was taken")
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	names, err := module.List(fixture(t))
	if want := []string{"echo", "large", "link", "upper"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("got %v, %v; want %v", names, err, want)
	}
	if _, err := module.List(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error for a directory that is not there")
	}
}

// FuzzReference: no name, source or pin leads out of a directory or makes Fetch panic.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"echo", "../secret", "..", "a/b", `a\b`, "file://x", "sha256:00", "%2e%2e/secret", "\x00"} {
		f.Add(s, "", "")
		f.Add("echo", s, s)
	}
	base := f.TempDir()
	dir := filepath.Join(base, "modules")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(base, "secret.wasm"), []byte("secret"), 0o600)); err != nil {
		f.Fatal(err)
	}
	s, err := module.New(module.Config{Base: dir, MaxSize: 1000})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name, source, pin string) {
		if b, err := s.Fetch(t.Context(), module.Ref{Name: name, Source: dir, SHA256: pin}); err == nil {
			t.Errorf("name %q found %s", name, b.Path)
		}
		_, _ = s.Fetch(t.Context(), module.Ref{Name: name, Source: source, SHA256: pin})
	})
}

func ExampleSource_Fetch() {
	dir, err := os.MkdirTemp("", "modules")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.WriteFile(filepath.Join(dir, "echo.wasm"), []byte("\x00asm\x01\x00\x00\x00"), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	s, err := module.New(module.Config{Base: dir})
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := s.Fetch(context.Background(), module.Ref{Name: "echo", Source: "echo.wasm"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(b.Digest[:16], len(b.Wasm))
	// Output: 93a44bbb96c75121 8
}

// A mark changes when a file is replaced or rewritten, and says when it might not.
func TestMark(t *testing.T) {
	t.Parallel()
	dir := fixture(t)
	s, err := module.New(module.Config{Base: dir})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "echo.wasm")
	at := func(when time.Time) {
		t.Helper()
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
	for name, ref := range map[string]module.Ref{"file": {Name: "a", Source: "echo.wasm"}, "directory": {Name: "echo", Source: dir}} {
		mark := func() module.Mark {
			t.Helper()
			m, err := s.Mark(ref)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("echo")
		if mark().Certain() {
			t.Errorf("%s: a file that was just written could change without a trace", name)
		}
		past := time.Now().Add(-time.Hour)
		at(past)
		first := mark()
		if !first.Same(mark()) || !first.Certain() {
			t.Errorf("%s: the same file looks different", name)
		}
		write("ECHO")
		if first.Same(mark()) {
			t.Errorf("%s: a file that was rewritten looks the same", name)
		}
		write("larger")
		at(past)
		if first.Same(mark()) {
			t.Errorf("%s: a larger file looks the same", name)
		}
		write("echo")
		at(past)
		if !first.Same(mark()) {
			t.Errorf("%s: the file of before looks different", name)
		}
		if err := errors.Join(os.WriteFile(file+".new", []byte("ECHO"), 0o600), os.Chtimes(file+".new", past, past), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
		if first.Same(mark()) {
			t.Errorf("%s: a file that took its place looks the same", name)
		}
		if (module.Mark{}).Same(module.Mark{}) {
			t.Error("two marks of nothing are the same")
		}
	}
	for _, ref := range []module.Ref{{Name: "a", Source: "none.wasm"}, {Name: "none", Source: dir}} {
		if _, err := s.Mark(ref); !errors.Is(err, module.ErrNotFound) {
			t.Errorf("%v: %v", ref, err)
		}
	}
}
