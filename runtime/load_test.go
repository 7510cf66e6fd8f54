package runtime_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// moduleOf makes a module of sections; each is its id and its body.
func moduleOf(sections ...string) []byte {
	b := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range sections {
		b = append(b, s[0], byte(len(s)-1))
		b = append(b, s[1:]...)
	}
	return b
}

const (
	typeVoid    = "\x01\x01\x60\x00\x00"                    // type 0: () -> ()
	oneFunction = "\x03\x01\x00"                            // function 0 of type 0
	handleIs0   = "\x07\x01\x06handle\x00\x00"              // export "handle"
	oneBody     = "\x0a\x01\x02\x00\x0b"                    // a body that does nothing
	tableOf2M   = "\x04\x01\x70\x00\x80\x80\x80\x01"        // a table of 2 Mi elements
	fivePages   = "\x05\x01\x00\x05"                        // a memory of 5 pages
	importEnvF  = "\x02\x01\x03env\x01f\x00\x00"            // env.f of type 0
	importMem   = "\x02\x01\x03env\x06memory\x02\x00\x01"   // env.memory
	runI32      = "\x01\x01\x60\x01\x7f\x01\x7f"            // type 0: (i32) -> i32
	runIs0      = "\x07\x01\x03run\x00\x00"                 // export "run"
	bodyI32     = "\x0a\x01\x04\x00\x20\x00\x0b"            // returns its parameter
	importNext2 = "\x02\x01\x0bwasmsidecar\x04next\x00\x00" // wasmsidecar.next with the wrong type
	importNew   = "\x02\x01\x0bwasmsidecar\x03new\x00\x00"  // a function that there is not
	importKV    = "\x02\x01\x0ewasmsidecar_kv\x03get\x00\x00"
	importOld   = "\x02\x01\x0dwasi_unstable\x01f\x00\x00"
)

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	echo := guests.Bytes("echo")
	good := moduleOf(typeVoid, oneFunction, handleIs0, oneBody)
	tests := []struct {
		name   string
		wasm   []byte
		change func(*runtime.ModuleConfig)
		texts  []string
	}{
		{"nothing", nil, nil, []string{"it is empty"}},
		{"text", []byte("\n(module (func))"), nil, []string{"WebAssembly text", "wat2wasm"}},
		{"native program", []byte("\x7fELF\x02\x01"), nil, []string{"native program"}},
		{"gzip", []byte("\x1f\x8b\x08\x00"), nil, []string{"gzip"}},
		{"lfs pointer", []byte("version https://git-lfs.github.com/spec/v1"), nil, []string{"Git LFS"}},
		{"garbage", []byte("hello world"), nil, []string{"invalid magic number 68 65 6c 6c"}},
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), nil, []string{"component", "wasm32-wasip1"}},
		{"version 2", []byte("\x00asm\x02\x00\x00\x00"), nil, []string{"invalid version header"}},
		{"only a magic number", []byte("\x00asm"), nil, []string{"cut off"}},
		{"cut off", echo[:len(echo)-3], nil, []string{"cut off or corrupt"}},
		{"corrupt", append(moduleOf(typeVoid), 10, 1, 5), nil, []string{"compile"}},
		{"no abi", moduleOf(), nil, []string{"no known abi", "found exports no functions", "handle() or handle() i32 (pull)", "_start", "alloc(i32) i32"}},
		{"shallabuf without memory", moduleOf(runI32, oneFunction, runIs0, bodyI32), nil, []string{"abi shallabuf", "export memory is missing"}},
		{"unknown abi", good, func(c *runtime.ModuleConfig) { c.ABI = "exstism" }, []string{`unknown abi "exstism"`, "auto, pull, command, drasm, extism or shallabuf"}},
		{"another abi", good, func(c *runtime.ModuleConfig) { c.ABI = runtime.ABICommand }, []string{"abi command", "export _start() -> () is missing", "handle() -> ()"}},
		{"drasm without alloc", good, func(c *runtime.ModuleConfig) { c.ABI = runtime.ABIDRASM }, []string{"export handle has type () -> (); want (i32, i32) -> i64"}}, // D-11
		{"unknown import", moduleOf(typeVoid, importEnvF, oneFunction, fivePages, "\x07\x01\x06handle\x00\x01", oneBody), nil, []string{"env.f() -> ()", "drasm guests only"}},
		{"no such function", moduleOf(typeVoid, importNew, oneFunction, fivePages, "\x07\x01\x06handle\x00\x01", oneBody), nil, []string{"wasmsidecar.new() -> () (no such function)"}},
		{"wrong type", moduleOf(typeVoid, importNext2, oneFunction, fivePages, "\x07\x01\x06handle\x00\x01", oneBody), nil, []string{"wasmsidecar.next() -> () (the type is () -> i32)"}},
		{"later capability", moduleOf(typeVoid, importKV, oneFunction, fivePages, "\x07\x01\x06handle\x00\x01", oneBody), nil, []string{"a capability that this version does not have"}},
		{"old wasi", moduleOf(typeVoid, importOld, oneFunction, fivePages, "\x07\x01\x06handle\x00\x01", oneBody), nil, []string{"build for wasip1"}},
		{"imports without memory", moduleOf(typeVoid, importNew, oneFunction, "\x07\x01\x06handle\x00\x01", oneBody), nil, []string{"has no memory"}},
		{"imported memory", moduleOf(typeVoid, importMem, oneFunction, handleIs0, oneBody), nil, []string{`imports the memory "env"."memory"`, "only functions"}},
		{"imported global", moduleOf(typeVoid, "\x02\x01\x03env\x01g\x03\x7f\x00", oneFunction, handleIs0, oneBody), nil, []string{`imports the global "env"."g"`}},
		{"17 tables", moduleOf(typeVoid, oneFunction, "\x04\x11"+strings.Repeat("\x70\x00\x00", 17), handleIs0, oneBody), nil, []string{"17 tables"}},
		{"element segment beyond the table", moduleOf(typeVoid, oneFunction, "\x04\x01\x70\x00\x02", handleIs0, "\x09\x01\x00\x41\x01\x0b\x02\x00\x00", oneBody), nil, []string{"cannot be instantiated: element segment 0 is to be written to 1 to 3 of table 0, which has 2"}},
		{"empty element segment beyond the table", moduleOf(typeVoid, oneFunction, "\x04\x01\x70\x00\x02", handleIs0, "\x09\x01\x00\x41\x7f\x0b\x00", oneBody), nil, []string{"element segment 0 is to be written to 4294967295 to 4294967295 of table 0"}},
		{"data segment beyond the memory", moduleOf(typeVoid, oneFunction, fivePages, handleIs0, oneBody, "\x0b\x02\x00\x41\x00\x0b\x01x\x00\x41\xff\xff\x13\x0b\x02xy"), nil, []string{"data segment 1 is to be written to 327679 to 327681 of the memory, which has 327680"}},
		{"large table", moduleOf(typeVoid, oneFunction, tableOf2M, handleIs0, oneBody), nil, []string{"tables of 2097152 elements"}},
		{"minimum above the limit", moduleOf(typeVoid, oneFunction, fivePages, handleIs0, oneBody), func(c *runtime.ModuleConfig) { c.Limits.Memory = 256 << 10 }, []string{"needs 320 KiB of memory", "its limit is 256 KiB", "limits.memory"}},
		{"digest", good, func(c *runtime.ModuleConfig) { c.Digest = strings.Repeat("0", 64) }, []string{"sha256 is", "want 0000"}},
		{"no name", good, func(c *runtime.ModuleConfig) { c.Name = "" }, []string{"no name"}},
		{"no time", good, func(c *runtime.ModuleConfig) { c.Limits.Time = 0 }, []string{"time limit"}},
		{"no memory", good, func(c *runtime.ModuleConfig) { c.Limits.Memory = 0 }, []string{"memory limit"}},
		{"limit below zero", good, func(c *runtime.ModuleConfig) { c.Limits.Log = -1 }, []string{"below zero"}},
		{"http policy", good, func(c *runtime.ModuleConfig) { c.Allow.HTTP = []string{"http://x"} }, []string{`allow.http "http://x"`}},
		{"args of a reactor", good, func(c *runtime.ModuleConfig) { c.Args = []string{"-v"} }, []string{"args are for commands"}},
		{"env name", good, func(c *runtime.ModuleConfig) { c.Env.Vars = map[string]string{"A=B": "x"} }, []string{`env variable "A=B"`}},
		{"config with NUL", good, func(c *runtime.ModuleConfig) { c.Config = map[string]string{"a": "\x00"} }, []string{`config "a" holds a NUL`}},
	}
	e, _ := open(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := runtime.ModuleConfig{Name: "bad", Wasm: tt.wasm, Limits: runtime.DefaultLimits()}
			if tt.change != nil {
				tt.change(&cfg)
			}
			_, err := e.Load(t.Context(), cfg)
			wantKind(t, err, job.KindInvalid, append(tt.texts, "load module")...)
		})
	}
	if m := loadBytes(t, e, "good", good); m != nil {
		if _, err := m.Run(t.Context(), newJob("")); err != nil {
			t.Errorf("the good module that the bad ones are made from: %v", err)
		}
	}
}

// What a guest has no means to see is configured in vain, and the log says so.
func TestWarnsOfTheUnused(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	load(t, e, "upper", func(c *runtime.ModuleConfig) {
		c.Name, c.Config, c.Env.Headers, c.Allow.HTTP = "vain", map[string]string{"a": "b"}, true, []string{"api.example.com"}
	})
	load(t, e, "fetch")
	for _, want := range []string{
		"module has a config but imports nothing", "module has an env but imports nothing", "module is allowed http but imports nothing",
		"module imports http but has no allow.http",
	} {
		if n := strings.Count(l.String(), want); n != 1 {
			t.Errorf("said %d times %q, want once", n, want)
		}
	}
	load(t, e, "env", func(c *runtime.ModuleConfig) { c.Config, c.Env.Headers = map[string]string{"a": "b"}, true })
	load(t, e, "echo", func(c *runtime.ModuleConfig) { c.Config = map[string]string{"a": "b"} })
	load(t, e, "fetch", func(c *runtime.ModuleConfig) { c.Allow.HTTP = []string{"api.example.com"} })
	if n := strings.Count(l.String(), "level=WARN"); n != 4 {
		t.Errorf("%d warnings, want 4", n)
	}
}

// D-16: however many load the same bytes at once, and however many jobs run, it is compiled once.
func TestCompiledOnce(t *testing.T) {
	t.Parallel()
	var compiled atomic.Int64
	e, _ := open(t, func(c *runtime.Config) {
		c.Compiled = func(x runtime.Compilation) {
			if x.Err != nil || x.Duration <= 0 || len(x.Digest) != 64 {
				t.Errorf("compilation %+v", x)
			}
			compiled.Add(1)
		}
	})
	wasm := guests.Bytes("upper")
	modules := make([]*runtime.Module, 100)
	var wg sync.WaitGroup
	for i := range modules {
		wg.Go(func() {
			m, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "upper", Wasm: wasm})
			if err != nil {
				t.Error(err)
				return
			}
			for range 10 {
				if _, err := m.Run(t.Context(), newJob("x")); err != nil {
					t.Error(err)
				}
			}
			modules[i] = m
		})
	}
	wg.Wait()
	if n := compiled.Load(); n != 1 {
		t.Errorf("compiled %d times for 100 loads and 1000 jobs, want once", n)
	}
	// Closing all but one leaves the last in working order; another limit on memory is other code.
	for _, m := range modules[1:] {
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := modules[0].Run(t.Context(), newJob("x")); err != nil {
		t.Error(err)
	}
	load(t, e, "upper", func(c *runtime.ModuleConfig) { c.Limits.Memory = 2 << 20 })
	if n := compiled.Load(); n != 2 {
		t.Errorf("compiled %d times, want 2", n)
	}
}

func TestInterpreter(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	interpret := func(c *runtime.ModuleConfig) { c.Interpreter = true }
	r, err := load(t, e, "adder", interpret).Run(t.Context(), newJob(`{"a":1,"b":2}`))
	if err != nil || string(r.Body) != `{"sum":3}` {
		t.Errorf("adder: %v, %v", r, err)
	}
	_, err = load(t, e, "recurse", interpret).Run(t.Context(), newJob(""))
	wantKind(t, err, job.KindLimit, "stack overflow")
	_, err = load(t, e, "trap", interpret).Run(t.Context(), newJob(""))
	wantKind(t, err, job.KindTrap, "unreachable")
}

func TestCacheDir(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	fresh := filepath.Join(base, "a", "b")
	file := filepath.Join(base, "file")
	open1 := filepath.Join(base, "open")
	inside := filepath.Join(base, "inside")
	for _, err := range []error{
		os.WriteFile(file, nil, 0o600),
		os.Mkdir(open1, 0o700), os.Chmod(open1, 0o722),
		os.MkdirAll(filepath.Join(inside, "wazero"), 0o700), os.Chmod(filepath.Join(inside, "wazero"), 0o777),
		os.Symlink(base, filepath.Join(base, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ name, dir, err string }{
		{"made", fresh, ""},
		{"file", file, "not a directory"},
		{"open to others", open1, "may be written by others (mode 0722)"},
		{"open inside", inside, "wazero may be written by others"},
		{"link", filepath.Join(base, "link"), "not a directory"},
	}
	if os.Geteuid() == 0 {
		foreign := filepath.Join(base, "foreign")
		if err := os.Mkdir(foreign, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(foreign, 65534, -1); err != nil {
			t.Fatal(err)
		}
		tests = append(tests, struct{ name, dir, err string }{"of another user", foreign, "belongs to user 65534"})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, err := runtime.New(runtime.Config{CacheDir: tt.dir})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v does not say %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer end(t, e)
			load(t, e, "echo")
			st, err := os.Stat(tt.dir)
			if err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("mode %v, %v; want 0700", st.Mode(), err)
			}
			if files, _ := filepath.Glob(filepath.Join(tt.dir, "*", "*")); len(files) == 0 {
				t.Error("nothing was kept")
			}
		})
	}
	// A second engine finds what the first left.
	for range 2 {
		e, err := runtime.New(runtime.Config{CacheDir: fresh})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := load(t, e, "echo").Run(t.Context(), newJob("x")); err != nil {
			t.Error(err)
		}
		if err := e.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// FuzzLoad: no bytes harm the process, neither when they are loaded nor when they are run.
func FuzzLoad(f *testing.F) {
	for _, name := range guests.Names() {
		f.Add(guests.Bytes(name))
	}
	f.Add(moduleOf(typeVoid, oneFunction, tableOf2M, handleIs0, oneBody))
	e, _ := open(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "fuzz", Wasm: b, Limits: small()})
		if err != nil {
			return
		}
		defer end(t, m)
		_, err = m.Run(t.Context(), newJob("x"))
		checkGuestsFault(t, err)
	})
}

func small() runtime.Limits {
	l := runtime.DefaultLimits()
	l.Memory, l.Time = 2<<20, 100*time.Millisecond
	return l
}
