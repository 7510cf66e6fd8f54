package rewrite_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

// script is a test of the specification as wast2json writes it.
type script struct {
	Commands []struct {
		Type       string      `json:"type"`
		Line       int         `json:"line"`
		Name       string      `json:"name"`
		Filename   string      `json:"filename"`
		As         string      `json:"as"`
		ModuleType string      `json:"module_type"`
		Text       string      `json:"text"`
		Expected   []specValue `json:"expected"`
		Action     struct {
			Type   string      `json:"type"`
			Module string      `json:"module"`
			Field  string      `json:"field"`
			Args   []specValue `json:"args"`
		} `json:"action"`
	} `json:"commands"`
}

type specValue struct {
	Type  string `json:"type"`
	Lane  string `json:"lane_type"`
	Value any    `json:"value"`
}

// bits returns the value as wazero wants it; false for a pattern such as any NaN.
func (v specValue) bits() ([]uint64, bool) {
	if lanes, ok := v.Value.([]any); ok {
		width, _ := strconv.Atoi(v.Lane[1:])
		out := make([]uint64, 2)
		for i, l := range lanes {
			n, ok := number(l.(string))
			if !ok {
				return nil, false
			}
			if width < 64 {
				n &= 1<<width - 1
			}
			out[i*width/64] |= n << (i * width % 64)
		}
		return out, true
	}
	s, _ := v.Value.(string)
	switch {
	case v.Value == nil:
		return nil, false
	case s == "null":
		return []uint64{0}, true
	}
	n, ok := number(s)
	switch {
	case v.Type == "externref":
		n++ // zero is null
	case strings.HasSuffix(v.Type, "32"):
		n &= 1<<32 - 1
	}
	return []uint64{n}, ok
}

func number(s string) (uint64, bool) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return n, true
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return uint64(n), err == nil
}

// play runs a script and returns what happened, one line per command.
func play(t *testing.T, h *host, file string) []string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s script
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(file)
	base, err := os.ReadFile(filepath.Join(wazeroTests(t), "spectest", "testdata", "spectest.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.instantiate(base, "spectest"); err != nil {
		t.Fatal(err)
	}
	load := func(file, name string) (api.Module, error) {
		wasm, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return h.instantiate(wasm, name)
	}
	var out []string
	mods := map[string]api.Module{}
	var last api.Module
	for i, c := range s.Commands {
		m := last
		if c.Action.Module != "" {
			m = mods[c.Action.Module]
		}
		say := func(what string) { out = append(out, fmt.Sprintf("line %d: %s: %s", c.Line, c.Type, what)) }
		switch c.Type {
		case "module":
			name := ""
			if i+1 < len(s.Commands) && s.Commands[i+1].Type == "register" {
				name = s.Commands[i+1].As
			}
			m, err := load(c.Filename, name)
			if err != nil {
				t.Errorf("line %d: module: %v", c.Line, err)
				return out
			}
			if last = m; c.Name != "" {
				mods[c.Name] = m
			}
		case "register":
		case "assert_malformed", "assert_invalid", "assert_unlinkable", "assert_uninstantiable":
			if c.ModuleType == "text" {
				continue
			}
			m, err := load(c.Filename, "")
			// wazero lets this one pass, so that a script can go on to look at the functions that it left in tables.
			pass := c.Type == "assert_uninstantiable" && c.Text == "out of bounds table access"
			if (err == nil) != pass {
				t.Errorf("line %d: %s: got %v", c.Line, c.Type, err)
			}
			_ = m
			say(strconv.FormatBool(err == nil))
		case "assert_return", "action", "assert_trap", "assert_exhaustion":
			if c.Action.Type == "get" {
				say(fmt.Sprint(m.ExportedGlobal(c.Action.Field).Get()))
				continue
			}
			var args []uint64
			for _, a := range c.Action.Args {
				b, ok := a.bits()
				if !ok {
					t.Fatalf("line %d: argument %v", c.Line, a)
				}
				args = append(args, b...)
			}
			res, err := h.call(m, c.Action.Field, args...)
			if traps := c.Type == "assert_trap" || c.Type == "assert_exhaustion"; (err != nil) != traps {
				t.Errorf("line %d: %s %s: got %v", c.Line, c.Type, c.Action.Field, err)
			} else if !traps {
				i := 0
				for _, e := range c.Expected {
					want, ok := e.bits()
					for k := range want {
						got := res[i+k]
						if strings.HasSuffix(e.Type, "32") {
							got &= 1<<32 - 1
						}
						if ok && got != want[k] {
							t.Errorf("line %d: %s: result %d is %x, want %x", c.Line, c.Action.Field, i+k, got, want[k])
						}
					}
					if i++; e.Type == "v128" {
						i++
					}
				}
			}
			say(outcome(m, c.Action.Field, res, err))
		default:
			t.Errorf("line %d: unknown command %s", c.Line, c.Type)
		}
	}
	return out
}

// The specification's tests give the same results and traps plain and rewritten, and those that they ask for.
func TestSpecification(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"v1", "v2"} {
		files, err := filepath.Glob(filepath.Join(wazeroTests(t), "spectest", version, "testdata", "*.json"))
		if err != nil || len(files) < 50 {
			t.Fatalf("%d scripts: %v", len(files), err)
		}
		for _, file := range files {
			for name, cfg := range engines() {
				if name == "compiler" && (raceEnabled || version == "v1") {
					continue // v2 holds nearly all of v1; the race detector slows the compiler, and the rewriter shares nothing
				}
				t.Run(version+"/"+strings.TrimSuffix(filepath.Base(file), ".json")+"/"+name, func(t *testing.T) {
					t.Parallel()
					testScript(t, file, cfg.WithCoreFeatures(features(version)))
				})
			}
		}
	}
}

func features(version string) api.CoreFeatures {
	if version == "v1" {
		return api.CoreFeaturesV1
	}
	return api.CoreFeaturesV2
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing"
}

func testScript(t *testing.T, file string, cfg wazero.RuntimeConfig) {
	plain := play(t, newHost(t, cfg, nil), file)
	for _, opt := range []rewrite.Options{{}, {EmptyData: true}} {
		h := newHost(t, cfg, &opt)
		got := play(t, h, file)
		for i := range max(len(plain), len(got)) {
			if i >= len(plain) || i >= len(got) || plain[i] != got[i] {
				t.Errorf("%+v: command %d differs:\nplain     %q\nrewritten %q", opt, i, at(plain, i), at(got, i))
				break
			}
		}
	}
}
