package runtime_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// cached is an engine over a cache directory, and what it compiled.
type cached struct {
	*runtime.Engine
	log *logs

	mu   sync.Mutex
	warm map[string]bool // of the last compilation of each module
}

func openCached(t *testing.T, dir string, most int64) *cached {
	t.Helper()
	c := &cached{warm: map[string]bool{}}
	c.Engine, c.log = open(t, func(cfg *runtime.Config) {
		cfg.CacheDir, cfg.CacheSize = dir, most
		cfg.Compiled = func(n runtime.Compilation) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.warm[n.Module] = n.Warm
		}
	})
	return c
}

// variant is the guest echo, a little different for each n.
func variant(n int) []byte {
	return append(moduleOf("\x00\x01v"+fmt.Sprintf("%05d", n)), guests.Bytes("echo")[8:]...)
}

// use loads variant n, runs a job and returns whether its code came from the disk.
func (c *cached) use(t *testing.T, n int) bool {
	t.Helper()
	m := c.keep(t, n)
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.warm[m.Name()]
}

// keep is use without the end.
func (c *cached) keep(t *testing.T, n int) *runtime.Module {
	t.Helper()
	m, err := c.Load(t.Context(), runtime.ModuleConfig{Name: fmt.Sprint("v", n), Wasm: variant(n), Limits: small()})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := m.Run(context.WithoutCancel(t.Context()), newJob("x")); err != nil || string(r.Body) != "x" {
		t.Errorf("variant %d: %v, %v", n, r, err)
	}
	return m
}

// sizeOf is how many bytes the files below dir have.
func sizeOf(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			st, err := d.Info()
			if err == nil {
				n += st.Size()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// age makes everything in the cache look as if it had last been used an hour ago.
func age(t *testing.T, dir string) {
	t.Helper()
	locks, err := filepath.Glob(filepath.Join(dir, "*", "lock"))
	if err != nil || len(locks) == 0 {
		t.Fatal(locks, err)
	}
	for _, l := range locks {
		st, err := os.Stat(l)
		if err != nil {
			t.Fatal(err)
		}
		old := st.ModTime().Add(-time.Hour)
		if err := os.Chtimes(l, old, old); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCacheEvictsTheLeastRecentlyUsed(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	first := openCached(t, dir, 0)
	first.use(t, 0)
	each := sizeOf(t, dir)
	for n := 1; n < 4; n++ {
		age(t, dir)
		first.use(t, n)
	}
	age(t, dir)
	if !first.use(t, 0) {
		t.Error("variant 0 is not on disk although there is no bound")
	}

	second := openCached(t, dir, 4*each+each/2)
	second.use(t, 4) // for which variant 1 has to go
	if n := sizeOf(t, dir); n > 4*each+each/2 {
		t.Errorf("%d bytes are kept; the bound is %d", n, 4*each+each/2)
	}
	for _, n := range []int{0, 2, 3, 4} {
		if !second.use(t, n) {
			t.Errorf("variant %d is not on disk any more", n)
		}
	}
	if second.use(t, 1) {
		t.Error("variant 1 is still on disk")
	}
}

func TestCacheKeepsWhatIsInUse(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	other := openCached(t, dir, 1) // as another process: locks belong to who opened the file
	kept := other.keep(t, 0)
	age(t, dir)
	c := openCached(t, dir, 1)
	c.use(t, 1)
	c.use(t, 2)
	if !c.use(t, 0) {
		t.Error("code in use was removed")
	}
	if c.use(t, 1) {
		t.Error("code that nobody used stayed above the bound")
	}
	end(t, kept)
	c.use(t, 3)
	if c.use(t, 0) {
		t.Error("code is kept although nobody uses it any more")
	}
}

// Engines that share a directory, each of them loading and removing, get in nobody's way.
func TestCacheIsShared(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	var wg sync.WaitGroup
	var engines []*cached
	for range 4 {
		engines = append(engines, openCached(t, dir, 20_000))
	}
	for i, c := range engines {
		wg.Go(func() {
			for n := range 20 {
				c.use(t, (n*(i+1))%7)
			}
		})
	}
	wg.Wait()
	for i, c := range engines {
		if s := c.log.String(); strings.Contains(s, "WARN") {
			t.Errorf("engine %d: %s", i, s)
		}
	}
}

// What else is in the directory is neither read nor removed, and what looks like the cache's own but is not does no harm.
func TestCacheSurvivesGarbage(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	openCached(t, dir, 0).use(t, 0)
	entries, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	a, b, c := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
	outside := filepath.Join(t.TempDir(), "outside")
	for _, err := range []error{
		os.MkdirAll(outside, 0o700), os.WriteFile(filepath.Join(outside, "precious"), []byte("x"), 0o600),
		os.WriteFile(filepath.Join(dir, "note.txt"), make([]byte, 50_000), 0o600),
		os.Mkdir(filepath.Join(dir, "wazero-old"), 0o700), os.WriteFile(filepath.Join(dir, "wazero-old", "f"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, a), nil, 0o600), os.Symlink(outside, filepath.Join(dir, b)), os.Mkdir(filepath.Join(dir, c), 0o700),
		os.WriteFile(filepath.Join(entries[0], "x"), make([]byte, 9), 0o600), os.Mkdir(filepath.Join(entries[0], "y.tmp"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	e := openCached(t, dir, 1)
	e.use(t, 0)
	e.use(t, 1)
	for path, stays := range map[string]bool{
		filepath.Join(outside, "precious"): true, filepath.Join(dir, "note.txt"): true, filepath.Join(dir, "wazero-old", "f"): true,
		filepath.Join(dir, a): true, filepath.Join(dir, b): true, filepath.Join(dir, c): false, entries[0]: false,
	} {
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// An entry that cannot be used costs a compilation and a log line, not the start.
func TestCacheEntryOfNoUse(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	first := openCached(t, dir, 0)
	first.use(t, 0)
	entries, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	for _, tt := range []struct {
		name   string
		damage func() error
		text   string
	}{
		{"open to others", func() error {
			files, err := filepath.Glob(filepath.Join(entries[0], "wazero-*"))
			if err != nil || len(files) != 1 {
				return fmt.Errorf("%v, %w", files, err)
			}
			return os.Chmod(files[0], 0o777)
		}, "may be written by others"},
		{"a file", func() error {
			if err := os.RemoveAll(entries[0]); err != nil {
				return err
			}
			return os.WriteFile(entries[0], nil, 0o600)
		}, "not a directory"},
	} {
		if err := tt.damage(); err != nil {
			t.Fatal(err)
		}
		c := openCached(t, dir, 0)
		if c.use(t, 0) {
			t.Errorf("%s: it was used", tt.name)
		}
		if s := c.log.String(); !strings.Contains(s, "compilation cache cannot be used") || !strings.Contains(s, tt.text) {
			t.Errorf("%s: the log says %q", tt.name, s)
		}
	}
}

// Wherever a byte of the cache is damaged, the module is compiled again, and that is kept.
func TestCacheHeals(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	openCached(t, dir, 0).use(t, 0)
	files, err := filepath.Glob(filepath.Join(dir, "*", "wazero-*", "*"))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(whole); at += 1 + len(whole)/6 {
			broken := append([]byte(nil), whole...)
			broken[at] ^= 0x40
			for what, bytes := range map[string][]byte{"changed": broken, "cut off": whole[:at]} {
				if err := os.WriteFile(file, bytes, 0o600); err != nil {
					t.Fatal(err)
				}
				c := openCached(t, dir, 0)
				if c.use(t, 0) {
					t.Errorf("%s: %s at %d, and used", file, what, at)
				}
				if !strings.Contains(c.log.String(), "is damaged; it is compiled again") {
					t.Errorf("%s: %s at %d, and nothing is said: %s", file, what, at, c.log)
				}
				if !openCached(t, dir, 0).use(t, 0) {
					t.Errorf("%s: %s at %d, and not healed", file, what, at)
				}
			}
		}
	}
}
