package runtime_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// granted makes a directory with a file and grants it to the guest that is being loaded.
func granted(t *testing.T, write bool) (string, func(*runtime.ModuleConfig)) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "box")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("words"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, func(c *runtime.ModuleConfig) { c.Allow.Files = []runtime.Dir{{Dir: dir, As: "/box", Write: write}} }
}

// open descriptors of the process.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if errors.Is(err, os.ErrNotExist) {
		return 0 // another system
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A program uses the files that it was granted, at each level; every job finds its preopens and none of what others left open.
func TestGrantedFiles(t *testing.T) { // alone: it counts the process's descriptors
	for _, level := range []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFrozen, runtime.IsolationFresh} {
		for _, interpreter := range []bool{false, true} {
			dir, grant := granted(t, true)
			e, _ := open(t)
			m := load(t, e, "files", grant, func(c *runtime.ModuleConfig) {
				c.Isolation, c.Interpreter, c.Limits.Files, c.Limits.FileBytes = level, interpreter, 4, 100<<10
			})
			run := func(in string) (string, error) {
				r, err := m.Run(t.Context(), newJob(in))
				if err != nil {
					return "", err
				}
				return string(r.Body), nil
			}
			var before int
			for i := range 20 {
				if out, err := run("copy /box/in /box/out"); err != nil || out != "words" {
					t.Fatalf("%s: %q, %v", level, out, err)
				}
				if b, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(b) != "words" {
					t.Fatalf("%s: %q, %v", level, b, err)
				}
				_, err := run("hoard /box/in")
				wantKind(t, err, job.KindLimit, "over the limit of 4 open at once (limits.files)")
				_, err = run("fill /box/full")
				wantKind(t, err, job.KindLimit, "over the limit of 102400 bytes written (limits.file_bytes)")
				_, err = run("copy /box/../in /box/out")
				wantKind(t, err, job.KindDenied, "leads out of /box")
				_, err = run("copy /etc/passwd")
				wantKind(t, err, job.KindTrap, "exit code 66: cannot read")
				if i == 1 {
					before = descriptors(t)
				}
			}
			if after := descriptors(t); after > before+2 {
				t.Errorf("%s: %d descriptors are open, %d were after the first jobs", level, after, before)
			}
			if info, err := os.Stat(filepath.Join(dir, "full")); err != nil || info.Size() > 100<<10 || info.Size() < 90<<10 {
				t.Errorf("%s: %d bytes were written: %v", level, info.Size(), err)
			}
			if m.Pure() {
				t.Error("a module that may write files is pure")
			}
		}
	}
}

// What is granted for reading only is not written, and without a grant there are no files.
func TestFilesNotGranted(t *testing.T) {
	t.Parallel()
	_, grant := granted(t, false)
	e, _ := open(t)
	m := load(t, e, "files", grant)
	if r, err := m.Run(t.Context(), newJob("copy /box/in")); err != nil || string(r.Body) != "wordswords" {
		t.Errorf("%v, %v", r, err)
	}
	_, err := m.Run(t.Context(), newJob("copy /box/in /box/out"))
	wantKind(t, err, job.KindDenied, "/box may only be read")
	m = load(t, e, "files")
	_, err = m.Run(t.Context(), newJob("copy /box/in"))
	wantKind(t, err, job.KindTrap, "cannot read")
}

// A route tightens what may be written.
func TestFilesWithin(t *testing.T) {
	t.Parallel()
	_, grant := granted(t, true)
	e, _ := open(t)
	m := load(t, e, "files", grant)
	tight := m.Limits()
	tight.Files, tight.FileBytes = 1, 5000
	_, err := m.Within(tight).Run(t.Context(), newJob("hoard /box/in"))
	wantKind(t, err, job.KindLimit, "over the limit of 1 open")
	_, err = m.Within(tight).Run(t.Context(), newJob("fill /box/full"))
	wantKind(t, err, job.KindLimit, "over the limit of 5000 bytes")
}

// What cannot be granted is refused when the module is loaded.
func TestBadGrants(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cache := filepath.Join(dir, "cache")
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self", filepath.Join(dir, "self")); err != nil {
		t.Fatal(err)
	}
	e, _ := open(t, func(c *runtime.Config) { c.CacheDir = cache })
	for _, tt := range []struct {
		dirs []runtime.Dir
		text string
	}{
		{[]runtime.Dir{{Dir: filepath.Join(dir, "none")}}, "no such file"},
		{[]runtime.Dir{{Dir: file}}, "is no directory"},
		{[]runtime.Dir{{Dir: "/"}}, "is the root of everything"},
		{[]runtime.Dir{{Dir: "/proc"}}, "belongs to the system"},
		{[]runtime.Dir{{Dir: filepath.Join(dir, "self")}}, "belongs to the system"},
		{[]runtime.Dir{{Dir: "/dev/shm"}}, "belongs to the system"},
		{[]runtime.Dir{{Dir: cache, Write: true}}, "holds the compiled modules"},
		{[]runtime.Dir{{Dir: dir, Write: true}}, "holds the compiled modules"},
		{[]runtime.Dir{{Dir: dir, As: "data"}}, "no path for a guest"},
		{[]runtime.Dir{{Dir: dir, As: "/x"}, {Dir: dir, As: "/x"}}, "two directories as /x"},
	} {
		_, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "files", Wasm: guests.Bytes("files"), Allow: runtime.Allow{Files: tt.dirs}})
		wantKind(t, err, job.KindInvalid, "allow.files: ", tt.text)
	}
}

// Programs in Go find their files by the names they know.
func TestGoFiles(t *testing.T) {
	t.Parallel()
	dir, grant := granted(t, true)
	e, _ := open(t)
	m := loadBytes(t, e, "files-go", guests.BuildGo(t, "files-go"), grant, func(c *runtime.ModuleConfig) { c.Interpreter = true })
	for range 2 {
		r, err := m.Run(t.Context(), newJob("/box"))
		if err != nil || string(r.Body) != "in: words" {
			t.Errorf("%v, %v", r, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("it left %v, %v", entries, err)
	}
}
