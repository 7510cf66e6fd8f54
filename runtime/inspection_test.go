package runtime_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// section is a custom section.
func section(name, body string) string {
	return "\x00" + string(rune(len(name))) + name + body
}

func TestInspect(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	body := moduleOf(typeVoid, oneFunction, "\x05\x01\x01\x02\x05", handleIs0, oneBody,
		section("name", "\x00\x05\x04lamp"),
		section("producers", "\x02\x08language\x01\x03Zig\x040.15\x03sdk\x01\x04wasi\x00"),
		section("notes", "abc"))
	i, err := e.Inspect(t.Context(), body)
	if err != nil {
		t.Fatal(err)
	}
	i.Digest = ""
	want := &runtime.Inspection{
		Size: len(body), Name: "lamp", ABI: runtime.ABIPull, Why: "it exports handle()",
		Imports: []runtime.Func{}, Exports: []runtime.Func{{Name: "handle", Type: "() -> ()"}}, Capabilities: []runtime.Capability{},
		Memory: &runtime.MemoryNeeds{Min: 128 << 10, Max: 320 << 10}, Isolation: runtime.IsolationReset, NotFrozen: "only programs (abi command) are",
		Producers: []runtime.Producer{{Field: "language", Name: "Zig", Version: "0.15"}, {Field: "sdk", Name: "wasi"}},
		Sections:  []runtime.Section{{Name: "name", Size: 7}, {Name: "producers", Size: 31}, {Name: "notes", Size: 3}},
	}
	if !reflect.DeepEqual(i, want) {
		t.Errorf("got  %+v\nwant %+v", i, want)
	}
}

// Of an Extism plug-in it is told by which function it is called.
func TestInspectExtism(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	i, err := e.Inspect(t.Context(), guests.Bytes("upper-extism"))
	if err != nil || i.ABI != runtime.ABIExtism || i.Function != "shout" || !i.Runs() {
		t.Errorf("%+v, %v", i, err)
	}
}

// The ABI is the one that the module gets when it is loaded, whatever that is.
func TestInspectAgreesWithLoad(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	for _, name := range guests.Names() {
		i, err := e.Inspect(t.Context(), guests.Bytes(name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		abi, why := load(t, e, name).ABI()
		if i.ABI != abi || i.Why != why || !i.Runs() {
			t.Errorf("%s is inspected as %q (%s, %s), and loaded as %q (%s)", name, i.ABI, i.Why, i.Problem, abi, why)
		}
	}
}

// clockThenRead is a program that asks for the time before it reads.
func clockThenRead() []byte {
	const wasi = "\x16wasi_snapshot_preview1"
	return moduleOf("\x01\x03\x60\x00\x00\x60\x03\x7f\x7e\x7f\x01\x7f\x60\x04\x7f\x7f\x7f\x7f\x01\x7f",
		"\x02\x02"+wasi+"\x0eclock_time_get\x00\x01"+wasi+"\x07fd_read\x00\x02",
		oneFunction, "\x05\x01\x00\x01", "\x07\x02\x06_start\x00\x02\x06memory\x02\x00",
		"\x0a\x01\x16\x00\x41\x00\x42\x00\x41\x00\x10\x00\x1a\x41\x00\x41\x00\x41\x01\x41\x08\x10\x01\x1a\x0b")
}

func TestInspectTellsWhatIsFrozen(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	for _, tt := range []struct {
		name              string
		wasm              []byte
		frozen, freezable bool
		why               string
	}{
		{"reads first", guests.Bytes("upper-c"), true, false, ""},
		{"looks at the clock first", clockThenRead(), false, true, "reads the clock or draws random numbers"},
		{"ends without a read", moduleOf(typeVoid, oneFunction, "\x05\x01\x00\x01", "\x07\x02\x06_start\x00\x00\x06memory\x02\x00", oneBody), false, false, "does not read stdin"},
		{"is no program", guests.Bytes("upper"), false, false, "only programs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			i, err := e.Inspect(t.Context(), tt.wasm)
			if err != nil {
				t.Fatal(err)
			}
			if i.Frozen != tt.frozen || i.Freezable != tt.freezable || !strings.Contains(i.NotFrozen, tt.why) || tt.frozen == (i.NotFrozen != "") {
				t.Errorf("%+v", i)
			}
		})
	}
}

// Whatever is cut off a module, or put in its place, is an error or an inspection.
func TestInspectSurvives(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	whole := guests.Bytes("upper")
	for n := range whole {
		if i, err := e.Inspect(t.Context(), whole[:n]); err == nil && i.Runs() {
			t.Errorf("the first %d of %d bytes are said to run", n, len(whole))
		}
		broken := append([]byte(nil), whole...)
		broken[n] ^= 0xff
		if _, err := e.Inspect(t.Context(), broken); err != nil && err.Error() == "" {
			t.Errorf("byte %d: an error without a word", n)
		}
	}
	hostile := section("producers", "\xff\xff\xff\xff\x0f\x01a\xff\xff\xff\xff\x0f\x01b\x01c")
	i, err := e.Inspect(t.Context(), moduleOf(typeVoid, oneFunction, handleIs0, oneBody, hostile))
	if err != nil || len(i.Producers) != 1 {
		t.Errorf("%+v, %v", i, err)
	}
}
