package runtime

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// diskCache keeps machine code between starts. Each code has a directory of its own, an entry, named after the SHA-256 of what
// was compiled. In it are
//
//   - the compiler's files, in a directory that the compiler makes;
//   - beside each of them a file that ends in .sum and holds its SHA-256, for the compiler's own checksum does not cover all
//     that it believes;
//   - the file lock, held shared by every process that uses the entry, and exclusively by the one that removes it. When it was
//     last modified is when the entry was last used.
//
// Processes may share the directory. What else is in it is left alone.
type diskCache struct {
	dir  string
	most int64 // bytes; 0: no bound
	log  *slog.Logger
}

const (
	lockName = "lock"
	sumEnd   = ".sum"
	// abandoned is how old a file that is still being written must be for its writer to be gone.
	abandoned = time.Hour
)

var entryName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// openDiskCache makes dir if it is not there. It refuses a directory that others could write machine code into.
func openDiskCache(dir string, most int64, log *slog.Logger) (*diskCache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := privateDir(dir); err != nil {
		return nil, err
	}
	return &diskCache{dir, most, log}, nil
}

// entry is the directory of one code, which is not removed before close.
type entry struct {
	dir  string
	lock *os.File
}

// open returns the entry for what was compiled from wasm, made if it is not there. What is damaged in it is gone.
func (d *diskCache) open(wasm []byte) (*entry, error) {
	sum := sha256.Sum256(wasm)
	e := &entry{dir: filepath.Join(d.dir, hex.EncodeToString(sum[:]))}
	if err := e.take(); err != nil {
		return nil, fmt.Errorf("open %s: %w", e.dir, err)
	}
	now := time.Now()
	err := os.Chtimes(filepath.Join(e.dir, lockName), now, now)
	if err == nil {
		err = e.check(d.log)
	}
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// take makes the entry's directory and locks it. Where somebody removes it at the same time it is made again.
func (e *entry) take() error {
	err := errors.New("it is being removed")
	for range 100 {
		if err := os.Mkdir(e.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if e.lock, err = lockEntry(e.dir, lockShared); err == nil {
			return nil
		}
		if !errors.Is(err, errInUse) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		time.Sleep(10 * time.Millisecond) // a removal is a few system calls
	}
	return err
}

// lockEntry opens the lock of the entry in dir and takes it; errInUse when that would have to wait.
func lockEntry(dir string, lock func(*os.File) error) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err = lock(f); err == nil {
		var held, there os.FileInfo
		if held, err = f.Stat(); err == nil {
			there, err = os.Stat(path)
		}
		if err == nil && !os.SameFile(held, there) {
			err = errInUse // it was removed while the lock was waited for, and made anew
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// errInUse says that somebody else holds a lock.
var errInUse = errors.New("another process is using it")

func (e *entry) close() { _ = e.lock.Close() } // which unlocks it

// files calls f with those of the compiler's files, and of the files beside them, whose name is wanted.
func (e *entry) files(wanted func(name string) bool, f func(path string, st fs.FileInfo) error) error {
	return walkEntry(e.dir, func(path string, st fs.FileInfo) error {
		if path == e.dir || filepath.Dir(path) == e.dir || st.IsDir() || !wanted(st.Name()) {
			return nil
		}
		return f(path, st)
	})
}

func isCode(name string) bool { return filepath.Ext(name) == "" }

// check removes code that is not what was written, and what writers left behind. It refuses an entry that others may write to.
func (e *entry) check(log *slog.Logger) error {
	err := walkEntry(e.dir, func(path string, st fs.FileInfo) error { return private(path, st) })
	if err != nil {
		return err
	}
	return e.files(func(string) bool { return true }, func(path string, st fs.FileInfo) error {
		switch {
		case isCode(st.Name()):
			sum, err := sumOf(path)
			if err != nil {
				return err
			}
			want, err := os.ReadFile(path + sumEnd)
			if err == nil && string(want) == sum {
				return nil
			}
			if err == nil {
				log.Warn("compiled module on disk is damaged; it is compiled again", "file", path)
			}
			return removeFile(path) // one without a sum was not finished
		case strings.HasSuffix(st.Name(), sumEnd):
			if _, err := os.Lstat(strings.TrimSuffix(path, sumEnd)); errors.Is(err, fs.ErrNotExist) {
				return removeFile(path)
			}
		case time.Since(st.ModTime()) > abandoned:
			return removeFile(path)
		}
		return nil
	})
}

// holds reports whether there is code.
func (e *entry) holds() bool {
	found := false
	err := e.files(isCode, func(string, fs.FileInfo) error {
		found = true
		return nil
	})
	return found && err == nil
}

// seal writes the sums of code that has none.
func (e *entry) seal() error {
	return e.files(isCode, func(path string, _ fs.FileInfo) error {
		if _, err := os.Lstat(path + sumEnd); err == nil {
			return nil
		}
		sum, err := sumOf(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another process took it for unfinished, and writes it again
		}
		if err != nil {
			return err
		}
		f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
		if err != nil {
			return err
		}
		_, err = f.WriteString(sum)
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), path+sumEnd)
		}
		if err != nil {
			_ = os.Remove(f.Name())
		}
		return err
	})
}

// clear removes all code.
func (e *entry) clear() error {
	return e.files(func(string) bool { return true }, func(path string, _ fs.FileInfo) error { return removeFile(path) })
}

// sumOf is the SHA-256 of a file in hex.
func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// walkEntry calls f with everything in an entry that is not gone meanwhile, the entry itself included.
func walkEntry(dir string, f func(path string, st fs.FileInfo) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st fs.FileInfo
		if err == nil {
			st, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return f(path, st)
	})
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// evict removes the entries that were not used for the longest time until the rest is no larger than the bound. Those in use
// stay, so that what is used now may be more.
func (d *diskCache) evict() error {
	if d.most == 0 {
		return nil
	}
	type candidate struct {
		dir  string
		size int64
		used time.Time // zero: it was never finished
	}
	names, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	var all []candidate
	var total int64
	for _, name := range names {
		if !name.IsDir() || !entryName.MatchString(name.Name()) {
			continue
		}
		c := candidate{dir: filepath.Join(d.dir, name.Name())}
		err := walkEntry(c.dir, func(path string, st fs.FileInfo) error {
			if st.Mode().IsRegular() {
				c.size += st.Size()
			}
			if path == filepath.Join(c.dir, lockName) {
				c.used = st.ModTime()
			}
			return nil
		})
		if err != nil {
			d.log.Debug("entry of the compilation cache cannot be read", "dir", c.dir, "err", err)
			continue
		}
		total += c.size
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b candidate) int { return a.used.Compare(b.used) })
	for _, c := range all {
		if total <= d.most {
			return nil
		}
		switch err := removeEntry(c.dir, c.used); {
		case err == nil:
			total -= c.size
			d.log.Debug("compiled module on disk is removed", "dir", c.dir, "size", c.size, "used", c.used)
		case !errors.Is(err, errInUse):
			d.log.Warn("compiled module on disk cannot be removed", "dir", c.dir, "err", err)
		}
	}
	return nil
}

// removeEntry removes an entry unless somebody uses it, or has done so after the time at which it was last seen to be used, and
// then it returns errInUse.
func removeEntry(dir string, used time.Time) error {
	lock, err := lockEntry(dir, lockExclusive)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else has removed it
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	st, err := lock.Stat()
	if err != nil {
		return err
	}
	if !used.IsZero() && st.ModTime().After(used) {
		return errInUse
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name.Name() != lockName {
			if err := os.RemoveAll(filepath.Join(dir, name.Name())); err != nil {
				return err
			}
		}
	}
	if err := removeFile(filepath.Join(dir, lockName)); err != nil {
		return err
	}
	// Somebody may be about to use it, and has made its lock again.
	_ = os.Remove(dir)
	return nil
}
