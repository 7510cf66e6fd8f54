// Package module turns references to WebAssembly modules into verified bytes.
//
// A reference is a path or a file:// URL of a file, or of a directory in which the module's own name is looked for. Bytes are
// hashed, and refused when they are not the ones that were pinned. What a module is and whether it can run is for package
// runtime to say. References over the network (http, https, s3, oci) are known as such and refused: this version has none.
package module

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Ref is a reference to a module.
type Ref struct {
	Name   string // the module's name in the configuration
	Source string // where it is
	SHA256 string // what its bytes must hash to, in hex; empty: any
}

// Binary is a module's bytes as they were found.
type Binary struct {
	Wasm   []byte
	Digest string // SHA-256 in lower-case hex
	Path   string // the file they came from
}

// Config is what a Source needs.
type Config struct {
	Base    string // relative paths begin here; empty: the working directory
	MaxSize int64  // the largest file that is read, in bytes; 0: 64 MiB
}

// Source finds modules. It may be used by many goroutines.
type Source struct{ cfg Config }

// New returns a Source. It opens nothing.
func New(cfg Config) (*Source, error) {
	if cfg.MaxSize < 0 {
		return nil, errors.New("module source: the largest size is below zero")
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = 64 << 20
	}
	return &Source{cfg}, nil
}

// ErrNotFound is in the chain of an error about a file that is not there.
var ErrNotFound = errors.New("not found")

// Fetch returns the bytes that ref names. Every call reads them again.
func (s *Source) Fetch(ctx context.Context, ref Ref) (*Binary, error) {
	b, err := s.fetch(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("module %q: %w", ref.Name, err)
	}
	return b, nil
}

func (s *Source) fetch(ctx context.Context, ref Ref) (*Binary, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	pin, err := parsePin(ref.SHA256)
	if err != nil {
		return nil, err
	}
	path, err := s.path(ref.Source)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, s.explain(path, err)
	}
	b := &Binary{Path: path}
	switch {
	case st.IsDir():
		b.Path, b.Wasm, err = s.inDirectory(path, ref.Name)
	case st.Mode().IsRegular():
		b.Wasm, err = s.readFile(path)
	default:
		err = notRegular(path)
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b.Wasm)
	b.Digest = hex.EncodeToString(sum[:])
	if pin != "" && pin != b.Digest {
		return nil, fmt.Errorf("sha256 of %s is %s, but %s is pinned; either the file was changed or the pin is out of date", b.Path, b.Digest, pin)
	}
	return b, nil
}

// Mark is what a source looked like, for telling cheaply whether it may have changed since.
type Mark struct {
	st fs.FileInfo
	at time.Time
}

// Mark looks at what ref names without reading it. Take it before Fetch, so that no change in between is missed.
func (s *Source) Mark(ref Ref) (Mark, error) {
	path, err := s.path(ref.Source)
	if err != nil {
		return Mark{}, fmt.Errorf("module %q: %w", ref.Name, err)
	}
	m := Mark{at: time.Now()}
	if m.st, err = os.Stat(path); err == nil && m.st.IsDir() {
		path = filepath.Join(path, ref.Name+".wasm")
		m.st, err = os.Stat(path)
	}
	if err != nil {
		return Mark{}, fmt.Errorf("module %q: %w", ref.Name, s.explain(path, err))
	}
	return m, nil
}

// Same reports whether o is the same file, of the same size and time of modification.
func (m Mark) Same(o Mark) bool {
	return m.st != nil && o.st != nil && os.SameFile(m.st, o.st) && m.st.Size() == o.st.Size() && m.st.ModTime().Equal(o.st.ModTime())
}

// coarse is how far apart two changes must be to have different times of modification on any file system.
const coarse = 2 * time.Second

// Certain reports whether a later change would show in a later mark. It would not if the file was modified just before the mark
// was taken.
func (m Mark) Certain() bool { return m.st != nil && m.at.Sub(m.st.ModTime()).Abs() > coarse }

// path turns a source into a path.
func (s *Source) path(source string) (string, error) {
	if source == "" {
		return "", errors.New("source is empty; name a file or a directory")
	}
	scheme, rest, ok := strings.Cut(source, "://")
	switch {
	case !ok:
		return s.absolute(source), nil
	case scheme == "file":
		u, err := url.Parse(source)
		if err != nil {
			return "", fmt.Errorf("source %q: %w", source, err)
		}
		if u.Host != "" && u.Host != "localhost" {
			return "", fmt.Errorf("source %q names the host %q; write file:///path for a path on this machine", source, u.Host)
		}
		return filepath.FromSlash(u.Path), nil
	case slices.Contains([]string{"http", "https", "s3", "gs", "azblob", "oci", "nats"}, scheme):
		return "", fmt.Errorf("source %q: %s is not supported in this version; download the module and name the file", source, scheme)
	}
	return "", fmt.Errorf("source %q: unknown scheme %q (of %q); name a file, a directory or a file:// URL", source, scheme, rest)
}

func (s *Source) absolute(path string) string {
	path = filepath.FromSlash(path)
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(s.cfg.Base, path)
}

// inDirectory reads <name>.wasm in dir. The name may come from a message, so nothing outside of dir is ever opened.
func (s *Source) inDirectory(dir, name string) (string, []byte, error) {
	if err := CheckName(name); err != nil {
		return "", nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = root.Close() }()
	file := name + ".wasm"
	path := filepath.Join(dir, file)
	// Opening a pipe would wait for its writer, so what it is comes first.
	st, err := root.Stat(file)
	if err == nil && !st.Mode().IsRegular() {
		return "", nil, notRegular(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		names, _ := List(dir)
		return "", nil, fmt.Errorf("%s: %w; the directory has %s", path, ErrNotFound, some(names))
	}
	if err != nil {
		return "", nil, err
	}
	f, err := root.Open(file)
	if err != nil {
		return "", nil, err
	}
	b, err := s.read(f, path)
	return path, b, err
}

func (s *Source) readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return s.read(f, path)
}

// read reads all of f and closes it.
func (s *Source) read(f *os.File, path string) ([]byte, error) {
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, s.cfg.MaxSize+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > s.cfg.MaxSize {
		return nil, fmt.Errorf("%s has more than %d bytes", path, s.cfg.MaxSize)
	}
	return b, nil
}

func notRegular(path string) error { return fmt.Errorf("%s is not a regular file", path) }

// explain says what is there instead of a file that is not.
func (s *Source) explain(path string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	names, lerr := List(dir)
	if lerr != nil {
		return fmt.Errorf("%s: %w; there is no directory %s either", path, ErrNotFound, dir)
	}
	return fmt.Errorf("%s: %w; the directory has %s", path, ErrNotFound, some(names))
}

// CheckName says whether name can be a module's: letters, digits, dots, underscores and dashes, not beginning with a dot or a
// dash, at most 128 bytes.
func CheckName(name string) error {
	ok := name != "" && len(name) <= 128 && name[0] != '.' && name[0] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
	}
	if !ok {
		return fmt.Errorf("module name %.150q is not made of 1 to 128 letters, digits, dots, underscores and dashes", name)
	}
	return nil
}

// List returns the names of the modules in a directory, sorted: its files that end in .wasm and whose names CheckName takes.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".wasm"); ok && !e.IsDir() && CheckName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

func some(names []string) string {
	const most = 10
	switch {
	case len(names) == 0:
		return "no modules (*.wasm)"
	case len(names) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// parsePin brings a pinned digest into the form of Binary.Digest.
func parsePin(pin string) (string, error) {
	if pin == "" {
		return "", nil
	}
	p := strings.ToLower(strings.TrimPrefix(pin, "sha256:"))
	if b, err := hex.DecodeString(p); err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("sha256 %q is not 64 hex digits; sha256sum FILE prints them", pin)
	}
	return p, nil
}
