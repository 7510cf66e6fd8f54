package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse: no file brings the parser down; what is refused has its reasons, and what is taken can be printed and taken again.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yaml", "../../configs/*.yaml"} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			f.Fatalf("no seeds in %s: %v", pattern, err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("fuzz.yaml", data, testEnv)
		if err != nil {
			var bad *Error
			if c != nil || !errors.As(err, &bad) || len(bad.Mistakes) == 0 {
				t.Fatalf("got %v, %v; want an *Error alone", c, err)
			}
			for _, m := range bad.Mistakes {
				if m.Text == "" || len(m.Text) > maxText+len("…") || m.File != "fuzz.yaml" || m.Line < 0 {
					t.Errorf("not a mistake to show: %+v", m)
				}
			}
			return
		}
		if err := c.Complete(); err != nil {
			t.Fatalf("complete, and refused: %v", err)
		}
		printed := c.YAML()
		again, err := Parse("printed.yaml", printed, nil)
		if err != nil {
			t.Fatalf("what is printed is refused: %v\n%s", err, printed)
		}
		if got := again.YAML(); !bytes.Equal(got, printed) {
			t.Errorf("printed again it differs\ngot:\n%s\nwant:\n%s", got, printed)
		}
	})
}

// FuzzExpand: an escaped text comes back as it was, and no value of the environment is expanded again.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "$", "${", "$${", "$$${A}", "a${A}b", "${A:-b}", "${A:-${B}}"} {
		f.Add(s, "v${A}")
	}
	f.Fuzz(func(t *testing.T, s, value string) {
		if got, err := expand(escape(s), nil); got != s || err != nil {
			t.Errorf("%q escaped comes back as %q, %v", s, got, err)
		}
		env := func(string) (string, bool) { return value, true }
		if got, err := expand("<${A}>", env); got != "<"+value+">" || err != nil {
			t.Errorf("%q became %q, %v", value, got, err)
		}
		if got, err := expand(s, env); err == nil && !strings.Contains(s, "${") && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}
