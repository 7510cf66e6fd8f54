package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// module writes a throw-away module of the given files and runs gotest's parts in it.
func runIn(t *testing.T, files map[string]string, strict bool, kafka string) (ok bool, out string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	r := newReport(&b)
	nested, err := nestedModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append([]string{dir}, nested...) {
		if err := runModule(t.Context(), d, []string{"-timeout=60s", "./..."}, r); err != nil {
			t.Fatal(err)
		}
	}
	ok = r.finish(strict, kafka)
	return ok, b.String()
}

const (
	goMod = "module example.com/m\n\ngo 1.26\n"
	pass  = "package m\n\nimport \"testing\"\n\nfunc TestGood(t *testing.T) {}\n"
	skip  = "package m\n\nimport \"testing\"\n\nfunc TestLazy(t *testing.T) { t.Skip(\"because of rain\") }\n"
	fail  = "package m\n\nimport \"testing\"\n\nfunc TestBad(t *testing.T) { t.Run(\"sub\", func(t *testing.T) { t.Error(\"boom\") }) }\n"
	die   = "package m\n\nimport (\n\"os\"\n\"testing\"\n)\n\nfunc TestDie(t *testing.T) { os.Exit(3) }\n"
	wrong = "package m\n\nfunc f() { undefined() }\n"
)

func TestSummary(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		files  map[string]string
		strict bool
		kafka  string
		ok     bool
		last   string
		says   []string
	}{
		{
			name: "all pass", files: map[string]string{"go.mod": goMod, "a_test.go": pass}, strict: true, kafka: "kafka",
			ok: true, last: "1 passed, 0 failed",
		},
		{
			name: "a failure", files: map[string]string{"go.mod": goMod, "a_test.go": pass, "b_test.go": fail}, kafka: "kafka",
			last: "1 passed, 2 failed", says: []string{"boom", "--- FAIL: example.com/m TestBad/sub"},
		},
		{
			name: "a skip", files: map[string]string{"go.mod": goMod, "a_test.go": pass, "b_test.go": skip}, kafka: "kafka",
			ok: true, last: "1 passed, 0 failed, 1 skipped", says: []string{"example.com/m TestLazy: b_test.go:5: because of rain"},
		},
		{
			name: "a skip where none is allowed", files: map[string]string{"go.mod": goMod, "a_test.go": pass, "b_test.go": skip},
			strict: true, kafka: "kafka", last: "1 passed, 0 failed, 1 skipped", says: []string{"-strict allows none"},
		},
		{
			name: "kfake", files: map[string]string{"go.mod": goMod, "a_test.go": pass}, kafka: "kfake",
			ok: true, last: "1 passed, 0 failed (the Kafka tests ran against kfake, because no Kafka could be had)",
		},
		{
			name: "kfake where Kafka is wanted", files: map[string]string{"go.mod": goMod, "a_test.go": pass}, strict: true, kafka: "kfake",
			last: "1 passed, 0 failed (the Kafka tests ran against kfake, because no Kafka could be had)", says: []string{"wants a real broker"},
		},
		{
			name: "a dying binary", files: map[string]string{"go.mod": goMod, "a_test.go": pass, "b_test.go": die}, kafka: "kafka",
			last: "1 passed, 1 failed", says: []string{"--- FAIL: example.com/m TestDie", "did not end"},
		},
		{
			name: "what does not build", files: map[string]string{"go.mod": goMod, "a_test.go": pass, "b/b.go": wrong, "b/b_test.go": pass},
			kafka: "kafka", last: "1 passed, 1 failed", says: []string{"undefined: undefined", "--- FAIL: example.com/m/b"},
		},
		{
			name: "a nested module", files: map[string]string{
				"go.mod": goMod, "a_test.go": pass, "n/go.mod": goMod, "n/b_test.go": fail, "testdata/n/go.mod": goMod, "testdata/n/b_test.go": fail,
			}, kafka: "kafka", last: "1 passed, 2 failed", says: []string{"boom"},
		},
		{
			name: "a nested module without tests", files: map[string]string{"go.mod": goMod, "a_test.go": pass, "n/go.mod": goMod, "nn/go.mod": goMod, "nn/b_test.go": pass},
			kafka: "kafka", ok: true, last: "2 passed, 0 failed",
		},
		{
			name: "no tests", files: map[string]string{"go.mod": goMod, "a.go": "package m\n"}, kafka: "kafka",
			last: "0 passed, 0 failed", says: []string{"no test passed"},
		},
		{
			name: "a broken go.mod", files: map[string]string{"go.mod": "modul x\n", "a_test.go": pass}, kafka: "kafka",
			last: "0 passed, 1 failed",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ok, out := runIn(t, c.files, c.strict, c.kafka)
			if ok != c.ok {
				t.Errorf("ok = %t, want %t", ok, c.ok)
			}
			lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
			if last := lines[len(lines)-1]; last != c.last {
				t.Errorf("last line %q, want %q", last, c.last)
			}
			for _, s := range c.says {
				if !strings.Contains(out, s) {
					t.Errorf("it does not say %q", s)
				}
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

func TestKeepEnd(t *testing.T) {
	t.Parallel()
	long := append(make([]byte, maxOutput), "the reason"...)
	if got := keepEnd(long); len(got) > maxOutput || !strings.HasSuffix(string(got), "the reason") {
		t.Errorf("%d bytes are kept, and the reason is lost: %q", len(got), got[max(0, len(got)-20):])
	}
}
