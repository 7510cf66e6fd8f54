package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "rewrite the expected messages and printed files in testdata")

// testEnv is the environment of the files in testdata.
func testEnv(name string) (string, bool) {
	v, ok := map[string]string{
		"PASSWORD": "hunter2", "BROKERS": "a:9092, b:9092", "N": "7", "EMPTY": "", "SHAPE": "x: [y]", "SIZE": "huge",
	}[name]
	return v, ok
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update rewrites it)\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func files(t *testing.T, pattern string, atLeast int) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) < atLeast {
		t.Fatalf("%s: %d files, want at least %d (%v)", pattern, len(names), atLeast, err)
	}
	return names
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	for _, name := range files(t, "testdata/*.bad.yaml", 45) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse(filepath.Base(name), data, testEnv)
			var bad *Error
			if !errors.As(err, &bad) || c != nil {
				t.Fatalf("got %v, %v; want an *Error alone", c, err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a message shows a secret:\n%v", err)
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".err", []byte(err.Error()+"\n"))
		})
	}
}

func TestGoodFiles(t *testing.T) {
	t.Parallel()
	for _, name := range files(t, "testdata/*.good.yaml", 5) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse(filepath.Base(name), data, testEnv)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".print", c.YAML())
			roundTrip(t, c)
		})
	}
}

// roundTrip proves that what is printed is the configuration itself, secrets aside, and that Complete changes nothing more.
func roundTrip(t *testing.T, c *Config) {
	t.Helper()
	printed := c.YAML()
	again, err := Parse("printed.yaml", printed, nil)
	if err != nil {
		t.Fatalf("what is printed is refused: %v\n%s", err, printed)
	}
	if got := again.YAML(); !bytes.Equal(got, printed) {
		t.Errorf("printed again it differs\ngot:\n%s\nwant:\n%s", got, printed)
	}
	hide(reflect.ValueOf(c).Elem())
	for name, m := range c.Modules {
		at := joinKey("modules", name)
		for key := range m.Config {
			if slices.Contains(c.hidden, joinKey(at+".config", key)) {
				m.Config[key] = "***"
			}
		}
		for i := range m.Args {
			if slices.Contains(c.hidden, fmt.Sprintf("%s.args[%d]", at, i)) {
				m.Args[i] = "***"
			}
		}
	}
	for i, s := range c.Schedules {
		at := fmt.Sprintf("schedules[%d]", i)
		if slices.Contains(c.hidden, at+".body") {
			s.Body = "***"
		}
		for key := range s.Headers {
			if slices.Contains(c.hidden, joinKey(at+".headers", key)) {
				s.Headers[key] = "***"
			}
		}
	}
	c.hidden = nil // nothing of what was printed came from the environment
	if !reflect.DeepEqual(again, c) {
		t.Errorf("parsed again it differs\ngot:  %+v\nwant: %+v", again, c)
	}
	if err := again.Complete(); err != nil || !reflect.DeepEqual(again, c) {
		t.Errorf("Complete changed a complete configuration: %v", err)
	}
}

// hide replaces secrets by what is printed for them.
func hide(v reflect.Value) {
	for i := range v.NumField() {
		switch f := v.Field(i); {
		case f.Kind() == reflect.Struct && f.CanSet():
			hide(f)
		case f.Type() == reflect.TypeFor[Secret]() && f.String() != "":
			f.SetString("***")
		}
	}
}

func TestReference(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../configs/reference.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("reference.yaml", data, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	m := DefaultModule()
	m.Source = "examples/guests/echo.wasm"
	rt := DefaultRoute()
	rt.From, rt.Module, rt.To = "jobs", "echo", "results"
	want.Modules, want.Routes = map[string]*Module{"echo": m}, []*Route{rt}
	s := DefaultSchedule()
	s.Name, s.Cron, s.Route = "nightly", "0 30 2 * * *", "jobs"
	want.Schedules = []*Schedule{s}
	if err := want.Complete(); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("reference.yaml is not Default\ngot:\n%s\nwant:\n%s", got.YAML(), want.YAML())
	}

	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	for _, missing := range missingKeys(doc.Content[0], reflect.TypeFor[Config](), "") {
		t.Errorf("reference.yaml lacks %s", missing)
	}
	for i, line := range strings.Split(string(data), "\n") {
		if len(line) > 150 {
			t.Errorf("reference.yaml:%d is longer than 150", i+1)
		}
	}
}

// missingKeys lists the keys of t that n does not show.
func missingKeys(n *yaml.Node, t reflect.Type, path string) []string {
	switch t.Kind() {
	case reflect.Pointer:
		return missingKeys(n, t.Elem(), path)
	case reflect.Map, reflect.Slice:
		if t.Elem().Kind() == reflect.Pointer && len(n.Content) > 0 {
			return missingKeys(n.Content[len(n.Content)-1], t.Elem(), path)
		}
		return nil
	case reflect.Struct:
	default:
		return nil
	}
	shown := map[string]*yaml.Node{}
	for i := 0; i < len(n.Content); i += 2 {
		shown[n.Content[i].Value] = n.Content[i+1]
	}
	var missing []string
	for i, key := range schemaOf(t).name {
		if shown[key] == nil {
			missing = append(missing, join(path, key))
			continue
		}
		missing = append(missing, missingKeys(shown[key], t.Field(i).Type, join(path, key))...)
	}
	return missing
}

func TestEmptyFileIsDefault(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"", "\n\n", "# nothing\n", "---\n", "{}", "---\n# nothing\n...\n", "\ufeff", "kafka:\nroutes:\nmodules:\n"} {
		got, err := Parse("empty.yaml", []byte(data), nil)
		if err != nil {
			t.Errorf("%q: %v", data, err)
			continue
		}
		if !reflect.DeepEqual(got, Default()) {
			t.Errorf("%q is not Default:\n%s", data, got.YAML())
		}
	}
}

// Default must be complete: what an empty file means depends on nothing else.
func TestDefaultIsComplete(t *testing.T) {
	t.Parallel()
	c := Default()
	if err := c.Complete(); err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("Complete changed Default: %v", err)
	}
	if err := c.NeedRoutes(); err == nil {
		t.Error("NeedRoutes is content without routes")
	}
}

func TestShippedFiles(t *testing.T) {
	t.Parallel()
	for _, name := range files(t, "../../configs/*.yaml", 5) {
		if filepath.Base(name) == "compose.yaml" {
			continue
		}
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse(name, data, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.NeedRoutes(); err != nil {
				t.Error(err)
			}
			roundTrip(t, c)
		})
	}
}

func TestCompleteInCode(t *testing.T) {
	t.Parallel()
	c := Default()
	c.Modules = map[string]*Module{"up": DefaultModule(), "nil": nil}
	rt := DefaultRoute()
	rt.From, rt.Module, rt.Concurrency = "jobs.up", "upp", 0
	c.Routes = []*Route{rt, nil}
	c.Kafka.SASL.Mechanism = "PLAIN"
	err := c.Complete()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`modules.up.source: is missing; name a .wasm file or a directory`,
		`modules.nil: has no value`,
		`routes[0].concurrency: 0 is too small; the least is 1`,
		`routes[0].module: there is no module "upp"; did you mean "up"?`,
		`routes[1]: has no value`,
		`kafka.sasl.password: PLAIN needs one`,
	} {
		if !strings.Contains(err.Error()+"\n", want+"\n") {
			t.Errorf("missing %q in:\n%v", want, err)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("WASMSIDECAR_TEST_GROUP", "g7")
	write := func(name, data string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("configs/a.yaml", "redis: {group: \"${WASMSIDECAR_TEST_GROUP}\"}\n")
	write("configs/b.yaml", "oops: 1\n")
	write("big.yaml", "# "+strings.Repeat("x", MaxFileSize)+"\n")

	c, err := Load("a.yaml")
	if err != nil || c.Redis.Group != "g7" {
		t.Fatalf("found in configs: %v", err)
	}
	write("a.yaml", "redis: {group: here}\n")
	if c, err = Load("a.yaml"); err != nil || c.Redis.Group != "here" {
		t.Errorf("what is here comes before configs: %v", err)
	}
	if _, err = Load("./b.yaml"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path is not looked for in configs: %v", err)
	}
	if _, err = Load("c.yaml"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Join("configs", "c.yaml")) {
		t.Errorf("nothing found: %v", err)
	}
	if _, err = Load("configs"); err == nil {
		t.Error("a directory was read")
	}
	var bad *Error
	if _, err = Load("b.yaml"); !errors.As(err, &bad) || bad.Mistakes[0].File != filepath.Join("configs", "b.yaml") {
		t.Errorf("a mistake names the file that was found: %v", err)
	}
	if _, err = Load("big.yaml"); !errors.As(err, &bad) || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("too large: %v", err)
	}
}

func TestSecret(t *testing.T) {
	t.Parallel()
	c := Default()
	c.Redis.Password, c.Kafka.SASL.Token = "hunter2", "hunter2"
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	log.Info("x", "secret", c.Redis.Password, "config", c)
	fmt.Fprintf(&b, "%v %+v %#v %s %q %x %d", c, c, c, c.Redis.Password, c.Redis.Password, c.Redis.Password, c.Redis.Password)
	fmt.Fprintf(&b, "%v %#v", *c, c.Redis)
	if err := c.Print(&b); err != nil {
		t.Fatal(err)
	}
	text, err := c.Redis.Password.MarshalText()
	b.Write(text)
	if strings.Contains(b.String(), "hunter2") || strings.Contains(b.String(), "68756e74") || err != nil {
		t.Errorf("a secret is shown:\n%s", b.String())
	}
	if !strings.Contains(b.String(), "password: '***'") || c.Redis.Password.Reveal() != "hunter2" || Secret("").String() != "" {
		t.Errorf("secrets print as *** and empty ones as nothing:\n%s", b.String())
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		in   string
		want Size
		out  string
	}{
		{"0", 0, "0B"}, {"0B", 0, "0B"}, {"1", 1, "1B"}, {"64KiB", 64 << 10, "64KiB"}, {"1MB", 1e6, "1MB"}, {"10 GB", 1e10, "10GB"},
		{"1024MiB", 1 << 30, "1GiB"}, {"8191GiB", 8191 << 30, "8191GiB"}, {"1000B", 1000, "1KB"}, {"500KiB", 512000, "500KiB"},
	} {
		got, err := ParseSize(tc.in)
		if err != nil || got != tc.want || got.String() != tc.out {
			t.Errorf("%q: got %d, %q, %v; want %d, %q", tc.in, int64(got), got, err, int64(tc.want), tc.out)
		}
		if again, err := ParseSize(got.String()); again != got || err != nil {
			t.Errorf("%q does not come back: %d, %v", got, int64(again), err)
		}
	}
	for _, in := range []string{"", "-1", "1.5MiB", "64mb", "64 M", "9223372036854775808", "9007199254740992MiB", "MiB", "0x10", "1e3"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q was taken for %d", in, int64(got))
		}
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		in   string
		want Count
		out  string
	}{
		{"0", 0, "0"}, {"1", 1, "1"}, {"999", 999, "999"}, {"1000", 1000, "1K"}, {"100 M", 1e8, "100M"}, {"1500M", 15e8, "1500M"},
		{"5G", 5e9, "5G"}, {"9223372T", 9223372e12, "9223372T"},
	} {
		got, err := ParseCount(tc.in)
		if err != nil || got != tc.want || got.String() != tc.out {
			t.Errorf("%q: got %d, %q, %v; want %d, %q", tc.in, int64(got), got, err, int64(tc.want), tc.out)
		}
		if again, err := ParseCount(got.String()); again != got || err != nil {
			t.Errorf("%q does not come back: %d, %v", got, int64(again), err)
		}
	}
	for _, in := range []string{"", "-1", "1.5G", "5g", "5GB", "9223372036854775808", "9223373T", "M", "0x10", "1e3"} {
		if got, err := ParseCount(in); err == nil {
			t.Errorf("%q was taken for %d", in, int64(got))
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"0": "0s", "0s": "0s", "1500ms": "1.5s", "90s": "1m30s", "60s": "1m", "24h": "24h", "1h10m": "1h10m", "1h0m5s": "1h0m5s", "10m": "10m",
	} {
		d, err := parseDuration(in)
		if err != nil || formatDuration(d) != want {
			t.Errorf("%q: got %q, %v; want %q", in, formatDuration(d), err, want)
		}
		if again, err := time.ParseDuration(formatDuration(d)); again != d || err != nil {
			t.Errorf("%q does not come back", formatDuration(d))
		}
	}
	for _, in := range []string{"", "5", "1.5", "+3", "5 s", "1d", "s", "99999999h"} {
		if d, err := parseDuration(in); err == nil {
			t.Errorf("%q was taken for %s", in, d)
		}
	}
}

func TestExpand(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, want, err string }{
		{"plain $ $$ $x {y}", "plain $ $$ $x {y}", ""},
		{"a${N}b${N}", "a7b7", ""},
		{"${NOPE:-d}${EMPTY:-e}${N:-f}", "de7", ""},
		{"[${EMPTY}]", "[]", ""},
		{"${NOPE:-}", "", ""},
		{"${NOPE:-a:-b}", "a:-b", ""},
		{"$${N} $$${N}", "${N} $${N}", ""},
		{"${SHAPE}", "x: [y]", ""},
		{"${NOPE}", "", "environment variable NOPE is not set; set it, or write ${NOPE:-default}"},
		{"${N", "", "${ without }; write $${ for a plain ${"},
		{"${}", "", "a variable is written ${NAME} or ${NAME:-default}; write $${ for a plain ${"},
		{"${1A}", "", "a variable is written ${NAME} or ${NAME:-default}; write $${ for a plain ${"},
		{"${A-b}", "", "a variable is written ${NAME} or ${NAME:-default}; write $${ for a plain ${"},
		{"${A:-${N}}", "", "a variable is written ${NAME} or ${NAME:-default}; write $${ for a plain ${"},
	} {
		got, err := expand(tc.in, testEnv)
		if text := fmt.Sprint(err); got != tc.want || text != tc.err && (tc.err != "" || err != nil) {
			t.Errorf("%q: got %q, %v; want %q, %q", tc.in, got, err, tc.want, tc.err)
		}
		if back, err := expand(escape(tc.in), nil); back != tc.in || err != nil {
			t.Errorf("%q escaped comes back as %q, %v", tc.in, back, err)
		}
	}
}

// A value from the environment cannot change the shape of the file.
func TestExpandKeepsShape(t *testing.T) {
	t.Parallel()
	c, err := Parse("f.yaml", []byte("modules: {m: {source: m.wasm, config: {k: \"${SHAPE}\"}}}"), testEnv)
	if err != nil || c.Modules["m"].Config["k"] != "x: [y]" {
		t.Errorf("%v", err)
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a.b", "a", false}, {"a.*", "a.b", true}, {"a.*", "a", false}, {"a.>", "a", false},
		{"a.>", "a.b.c", true}, {"*.b", "a.*", true}, {"*.b", "a.c", false}, {">", "x.y", true}, {"a.*.c", "a.b", false}, {"a.*.c", "a.>", true},
	} {
		if overlap(tc.a, tc.b) != tc.want || overlap(tc.b, tc.a) != tc.want {
			t.Errorf("%s and %s: want %v both ways", tc.a, tc.b, tc.want)
		}
	}
}

func TestSuggest(t *testing.T) {
	t.Parallel()
	names := []string{"brokers", "group", "linger"}
	for word, want := range map[string]string{
		"broker": `; did you mean "brokers"?`, "gruop": `; did you mean "group"?`, "Group": `; did you mean "group"?`,
		"zzz": "; known here: brokers, group, linger", strings.Repeat("a", 300): "; known here: brokers, group, linger",
	} {
		if got := suggest(word, names, "known here: "); got != want {
			t.Errorf("%.20s: got %s, want %s", word, got, want)
		}
	}
}
