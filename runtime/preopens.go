package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/wasmsidecar/wasmsidecar/runtime/wasi"
)

// Dir grants a guest that uses WASI the files below a directory.
type Dir struct {
	Dir   string // of the host
	As    string // where the guest finds it, as an absolute path; empty: / and the directory's name
	Write bool   // it may be changed
}

// preopens opens what is granted. closeAll closes it. A directory that is replaced later is not noticed: the guest keeps the old one.
func (e *Engine) preopens(dirs []Dir) (out []wasi.Preopen, err error) {
	defer func() {
		if err != nil {
			closeAll(out)
			out = nil
		}
	}()
	seen := map[string]bool{}
	for _, d := range dirs {
		real, err := filepath.Abs(d.Dir)
		if err == nil {
			real, err = filepath.EvalSymlinks(real)
		}
		if err != nil {
			return out, fmt.Errorf("allow.files: %w", err)
		}
		if why := e.unfit(real, d.Write); why != "" {
			return out, fmt.Errorf("allow.files: %s %s; name a directory that holds the guest's files and nothing else", d.Dir, why)
		}
		name := d.As
		if name == "" {
			name = "/" + filepath.Base(real)
		}
		switch {
		case !path.IsAbs(name) || path.Clean(name) != name || strings.ContainsRune(name, 0) || len(name) > 1024:
			return out, fmt.Errorf("allow.files: %q is no path for a guest; write an absolute one, such as /data", name)
		case seen[name]:
			return out, fmt.Errorf("allow.files: two directories as %s; give each its own path (as)", name)
		}
		seen[name] = true
		info, err := os.Stat(real)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is no directory", d.Dir)
		}
		if err != nil {
			return out, fmt.Errorf("allow.files: %w", err)
		}
		root, err := os.OpenRoot(real)
		if err != nil {
			return out, fmt.Errorf("allow.files: %w", err)
		}
		out = append(out, wasi.Preopen{Name: name, Root: root, Write: d.Write})
	}
	return out, nil
}

// unfit says why a directory is not given to any guest: what is in it is the system's, or code that this process will run.
func (e *Engine) unfit(dir string, write bool) string {
	if dir == filepath.VolumeName(dir)+string(filepath.Separator) {
		return "is the root of everything"
	}
	for _, system := range []string{"/proc", "/sys", "/dev"} {
		if below(dir, system) {
			return "belongs to the system"
		}
	}
	if e.cfg.CacheDir == "" || !write {
		return ""
	}
	cache, err := filepath.Abs(e.cfg.CacheDir)
	if err == nil {
		cache, err = filepath.EvalSymlinks(cache)
	}
	if err == nil && (below(dir, cache) || below(cache, dir)) {
		return "holds the compiled modules (cache.dir)"
	}
	return ""
}

// below says whether dir is parent or is in it.
func below(dir, parent string) bool {
	rel, err := filepath.Rel(parent, dir)
	return err == nil && filepath.IsLocal(rel)
}

func closeAll(ps []wasi.Preopen) error {
	var errs []error
	for _, p := range ps {
		errs = append(errs, p.Root.Close())
	}
	return errors.Join(errs...)
}
