package sidecar

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// Where nobody said where compiled modules are to be kept, a home that cannot be written, or none, costs a log line and no more.
func TestNoPlaceForTheCache(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "wasmsidecar")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil { // past the umask
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, home, cache string
		cfg               config.Cache
		lines             int
		fails             bool
	}{
		{"a home", t.TempDir(), "", config.Cache{}, 0, false},
		{"no home", "", "", config.Cache{}, 1, false},
		{"a home that cannot be written", file, "", config.Cache{}, 1, false},
		{"a directory that others can write to", "", filepath.Dir(open), config.Cache{}, 1, false},
		{"cache: off", "", "", config.Cache{Off: true}, 0, false},
		{"cache.dir", "", "", config.Cache{Dir: filepath.Join(t.TempDir(), "code")}, 0, false},
		{"a cache.dir that cannot be made", "", "", config.Cache{Dir: filepath.Join(file, "code")}, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("HOME", tc.home)
			t.Setenv("XDG_CACHE_HOME", tc.cache)
			var log bytes.Buffer
			cfg := config.Default()
			cfg.Cache = tc.cfg
			e, err := newEngine(cfg, runtime.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
			if (err != nil) != tc.fails {
				t.Fatal(err)
			}
			if got := strings.Count(log.String(), "compiled modules are not kept"); got != tc.lines || strings.Count(log.String(), "\n") != tc.lines {
				t.Errorf("logged %s", log.String())
			}
			if e != nil {
				if err := e.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
