package rewrite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

// build puts sections together.
func build(sections ...[]byte) []byte {
	return append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Join(sections, nil)...)
}

func section(id byte, items ...[]byte) []byte {
	body := bytes.Join(items, nil)
	if id != 0 && id != 8 && id != 12 {
		body = append(binary.AppendUvarint(nil, uint64(len(items))), body...)
	}
	return append(binary.AppendUvarint([]byte{id}, uint64(len(body))), body...)
}

// name is a name with its length, and what follows it.
func name(s string, rest ...byte) []byte { return append(append([]byte{byte(len(s))}, s...), rest...) }

// body is a function's body, given without its last end.
func body(locals []byte, code ...byte) []byte {
	if locals == nil {
		locals = []byte{0}
	}
	b := append(append(bytes.Clone(locals), code...), 0x0b)
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

var (
	void     = []byte{0x60, 0, 0}
	i32ToI32 = []byte{0x60, 1, 0x7f, 1, 0x7f}
	page     = section(5, []byte{0, 1})
	table8   = section(4, []byte{0x70, 0, 8})
)

// function is a module whose function 0 is exported as f.
func function(typ []byte, extra [][]byte, code ...byte) []byte {
	return build(section(1, typ), section(3, []byte{0}), bytes.Join(extra, nil), section(7, name("f", 0, 0)), section(10, body(nil, code...)))
}

func mustRewrite(t testing.TB, wasm []byte, opt rewrite.Options) *rewrite.Module {
	t.Helper()
	out, err := rewrite.Rewrite(wasm, opt)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A run without a trap burns one for each instruction that it executed, and what its operands cost.
func TestFuel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		wasm []byte
		arg  uint64
		fuel int64
	}{
		{"nothing", function(i32ToI32, nil, 0x20, 0), 0, 1},
		{"nop and blocks are free", function(i32ToI32, nil, 0x01, 0x02, 0x40, 0x0b, 0x20, 0), 0, 1},
		{"straight line", function(i32ToI32, nil, 0x20, 0, 0x41, 1, 0x6a), 0, 3},
		{"then", function(i32ToI32, nil, 0x20, 0, 0x04, 0x7f, 0x41, 1, 0x05, 0x41, 1, 0x41, 2, 0x6a, 0x0b), 1, 3},
		{"else", function(i32ToI32, nil, 0x20, 0, 0x04, 0x7f, 0x41, 1, 0x05, 0x41, 1, 0x41, 2, 0x6a, 0x0b), 0, 5},
		{"if not taken", function(i32ToI32, nil, 0x20, 0, 0x04, 0x40, 0x41, 1, 0x1a, 0x0b, 0x20, 0), 0, 3},
		{"if taken", function(i32ToI32, nil, 0x20, 0, 0x04, 0x40, 0x41, 1, 0x1a, 0x0b, 0x20, 0), 1, 5},
		// loop: local.get, i32.const, i32.sub, local.tee, br_if
		{"loop", function(i32ToI32, nil, 0x03, 0x40, 0x20, 0, 0x41, 1, 0x6b, 0x22, 0, 0x0d, 0, 0x0b, 0x20, 0), 10, 51},
		{"branch out", function(i32ToI32, nil, 0x02, 0x40, 0x20, 0, 0x0d, 0, 0x41, 1, 0x1a, 0x0b, 0x20, 0), 1, 3},
		{"branch not taken", function(i32ToI32, nil, 0x02, 0x40, 0x20, 0, 0x0d, 0, 0x41, 1, 0x1a, 0x0b, 0x20, 0), 0, 5},
		{"return", function(i32ToI32, nil, 0x20, 0, 0x04, 0x40, 0x41, 1, 0x0f, 0x0b, 0x41, 1, 0x41, 2, 0x6a), 1, 4},
		{"table of branches", function(i32ToI32, nil, 0x02, 0x40, 0x02, 0x40, 0x20, 0, 0x0e, 1, 0, 1, 0x0b, 0x41, 1, 0x0f, 0x0b, 0x41, 2), 0, 4},
		{"table of branches, default", function(i32ToI32, nil, 0x02, 0x40, 0x02, 0x40, 0x20, 0, 0x0e, 1, 0, 1, 0x0b, 0x41, 1, 0x0f, 0x0b, 0x41, 2), 5, 3},
		{"fill", function(i32ToI32, [][]byte{page}, 0x41, 0, 0x41, 1, 0x20, 0, 0xfc, 11, 0, 0x20, 0), 800, 5 + 100},
		{"copy", function(i32ToI32, [][]byte{page}, 0x41, 0, 0x41, 1, 0x20, 0, 0xfc, 10, 0, 0, 0x20, 0), 807, 5 + 100},
		{"grow", function(i32ToI32, [][]byte{page}, 0x20, 0, 0x40, 0), 3, 2 + 3*rewrite.GrowCost},
		{"grow too far", function(i32ToI32, [][]byte{page}, 0x20, 0, 0x40, 0), 65536, 2},
		{"grow by minus one", function(i32ToI32, [][]byte{page}, 0x20, 0, 0x40, 0), 0xffffffff, 2},
		{"grow a table", function(i32ToI32, [][]byte{table8}, 0xd0, 0x70, 0x20, 0, 0xfc, 15, 0), 100, 3 + 100},
		{"fill a table", function(i32ToI32, [][]byte{table8}, 0x41, 0, 0xd0, 0x70, 0x20, 0, 0xfc, 17, 0, 0x20, 0), 8, 5 + 8},
		{"call", build(section(1, i32ToI32), section(3, []byte{0}, []byte{0}), section(7, name("f", 0, 0)),
			section(10, body(nil, 0x20, 0, 0x10, 1), body(nil, 0x20, 0))), 0, 3},
		{"host call", build(section(1, i32ToI32), section(2, append(name("env"), name("h", 0, 0)...)), section(3, []byte{0}), section(7, name("f", 0, 1)),
			section(10, body(nil, 0x20, 0, 0x10, 0))), 0, 2 + rewrite.HostCallCost},
	} {
		for engine, cfg := range engines() {
			t.Run(tc.name+"/"+engine, func(t *testing.T) {
				t.Parallel()
				// Slices smaller and larger than what is burnt come to the same.
				for _, slice := range []int64{1, 50, 1 << 40} {
					h := newHost(t, cfg, &rewrite.Options{})
					h.slice = slice
					stub(t, h, tc.wasm)
					m, err := h.instantiate(tc.wasm, "")
					if err != nil {
						t.Fatal(err)
					}
					if _, err := h.call(m, "f", tc.arg); err != nil {
						t.Fatal(err)
					}
					if got := h.burnt(); got != tc.fuel {
						t.Errorf("slices of %d: burnt %d, want %d", slice, got, tc.fuel)
					}
				}
			})
		}
	}
}

// Whatever runs for ever is stopped, and the instance can be called again.
func TestStops(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		wasm []byte
		want error
	}{
		{"empty loop", function(void, nil, 0x03, 0x40, 0x0c, 0, 0x0b), errFuel},
		{"loop in a loop", function(void, nil, 0x03, 0x40, 0x03, 0x40, 0x0c, 1, 0x0b, 0x0b), errFuel},
		{"loop over a table", function(void, nil, 0x03, 0x40, 0x41, 0, 0x0e, 0, 0, 0x0b), errFuel},
		{"recursion", function(void, nil, 0x10, 0), errDepth},
		{"indirect recursion", build(section(1, void), section(3, []byte{0}), section(4, []byte{0x70, 0, 1}), section(7, name("f", 0, 0)),
			section(9, []byte{0, 0x41, 0, 0x0b, 1, 0}), section(10, body(nil, 0x41, 0, 0x11, 0, 0))), errDepth},
		{"filling", function(void, [][]byte{page}, 0x03, 0x40, 0x41, 0, 0x41, 0, 0x41, 0x80, 0x80, 0x02, 0xfc, 11, 0, 0x0c, 0, 0x0b), errFuel},
		{"growing a table", function(void, [][]byte{table8}, 0xd0, 0x70, 0x41, 0x80, 0x80, 0x80, 0x01, 0xfc, 15, 0, 0x1a), errFuel},
	} {
		for engine, cfg := range engines() {
			t.Run(tc.name+"/"+engine, func(t *testing.T) {
				t.Parallel()
				h := newHost(t, cfg, &rewrite.Options{})
				h.limit = 100_000 // ten slices
				m, err := h.instantiate(tc.wasm, "")
				if err != nil {
					t.Fatal(err)
				}
				for range 3 {
					if _, err := h.call(m, "f"); !errors.Is(err, tc.want) {
						t.Fatalf("got %v, want %v", err, tc.want)
					}
					h.spent = 0
					counter(m, "__wasmsidecar_fuel").Set(0)
				}
			})
		}
	}
}

// A host that returns although depth is below zero ends the call all the same.
func TestDepthCannotBeIgnored(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer func() { _ = rt.Close(ctx) }()
	out := mustRewrite(t, function(void, nil, 0x10, 0), rewrite.Options{})
	if _, err := rt.NewHostModuleBuilder(out.RefuelModule).NewFunctionBuilder().WithFunc(func() {}).Export(out.RefuelName).Instantiate(ctx); err != nil {
		t.Fatal(err)
	}
	m, err := rt.Instantiate(ctx, out.Wasm)
	if err != nil {
		t.Fatal(err)
	}
	counter(m, out.Fuel).Set(1 << 40)
	counter(m, out.Depth).Set(5)
	_, err = m.ExportedFunction("f").Call(ctx)
	if err == nil || !strings.Contains(err.Error(), "unreachable") {
		t.Fatalf("got %v", err)
	}
}

// Large frames cost more depth than small ones.
func TestFrameWeight(t *testing.T) {
	t.Parallel()
	for locals, want := range map[uint32]int{0: depthLimit, 15: depthLimit, 16: depthLimit / 2, 160: depthLimit / 11} {
		decl := append(binary.AppendUvarint([]byte{1}, uint64(locals)), 0x7e)
		wasm := build(section(1, void), section(3, []byte{0}), section(6, []byte{0x7f, 1, 0x41, 0, 0x0b}), section(7, name("f", 0, 0), name("n", 3, 0)),
			section(10, body(decl, 0x23, 0, 0x41, 1, 0x6a, 0x24, 0, 0x10, 0)))
		h := newHost(t, wazero.NewRuntimeConfigInterpreter(), &rewrite.Options{})
		m, err := h.instantiate(wasm, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.call(m, "f"); !errors.Is(err, errDepth) {
			t.Fatal(err)
		}
		// Two operands are counted with the locals.
		if got := int(m.ExportedGlobal("n").Get()); got != want && locals != 15 {
			t.Errorf("%d locals: %d calls, want %d", locals, got, want)
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	grow := func(limits ...byte) []byte {
		return function(i32ToI32, [][]byte{section(5, limits)}, 0x20, 0, 0x40, 0)
	}
	for _, tc := range []struct {
		name     string
		limits   []byte
		max      uint32
		want     rewrite.Memory
		grow     uint64 // succeeds
		growMore bool   // the host can grow what is full
	}{
		{"unlimited", []byte{0, 1}, 0, rewrite.Memory{Min: 1, Max: 65536, Declared: 65536}, 2, true},
		{"own maximum", []byte{1, 1, 3}, 0, rewrite.Memory{Min: 1, Max: 3, Declared: 3}, 2, false},
		{"limit", []byte{0, 1}, 3, rewrite.Memory{Min: 1, Max: 3, Declared: 4}, 2, true},
		{"limit above own maximum", []byte{1, 1, 3}, 5, rewrite.Memory{Min: 1, Max: 3, Declared: 4}, 2, true},
		{"limit below own maximum", []byte{1, 1, 5}, 3, rewrite.Memory{Min: 1, Max: 3, Declared: 4}, 2, true},
		{"largest", []byte{0, 1}, 65536, rewrite.Memory{Min: 1, Max: 65536, Declared: 65536}, 2, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			wasm := grow(tc.limits...)
			out := mustRewrite(t, wasm, rewrite.Options{MaxPages: tc.max})
			if *out.Memory != tc.want {
				t.Errorf("got %+v, want %+v", *out.Memory, tc.want)
			}
			h := newHost(t, wazero.NewRuntimeConfigInterpreter(), &rewrite.Options{MaxPages: tc.max})
			m, err := h.instantiate(wasm, "")
			if err != nil {
				t.Fatal(err)
			}
			beyond := uint64(tc.want.Max)
			for _, g := range []struct{ by, want uint64 }{{beyond, 1<<32 - 1}, {1<<32 - 1, 1<<32 - 1}, {tc.grow, 1}, {beyond - tc.grow, 1<<32 - 1}, {0, 1 + tc.grow}} {
				if res, err := h.call(m, "f", g.by); err != nil || res[0] != g.want {
					t.Errorf("grow by %d: got %v, %v, want %d", g.by, res, err, g.want)
				}
				refused := uint64(0)
				if g.want == 1<<32-1 {
					refused = g.by
				}
				if got := counter(m, out.Refused).Get(); got != refused {
					t.Errorf("grow by %d: %d pages are noted as refused, want %d", g.by, got, refused)
				}
			}
			if _, ok := m.Memory().Grow(1); ok != tc.growMore {
				t.Errorf("the host could grow it: %v", ok)
			}
		})
	}
	if _, err := rewrite.Rewrite(grow(0, 4), rewrite.Options{MaxPages: 3}); !errors.Is(err, rewrite.ErrLimit) {
		t.Errorf("minimum above the limit: %v", err)
	}
}

func TestTableLimit(t *testing.T) {
	t.Parallel()
	wasm := function(i32ToI32, [][]byte{table8}, 0xd0, 0x70, 0x20, 0, 0xfc, 15, 0)
	h := newHost(t, wazero.NewRuntimeConfigInterpreter(), &rewrite.Options{MaxElements: 10})
	m, err := h.instantiate(wasm, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []struct{ by, want uint64 }{{3, 1<<32 - 1}, {1<<32 - 1, 1<<32 - 1}, {2, 8}, {1, 1<<32 - 1}} {
		if res, err := h.call(m, "f", g.by); err != nil || res[0] != g.want {
			t.Errorf("grow by %d: got %v, %v, want %d", g.by, res, err, g.want)
		}
	}
	if _, err := rewrite.Rewrite(wasm, rewrite.Options{MaxElements: 7}); !errors.Is(err, rewrite.ErrLimit) {
		t.Errorf("minimum above the limit: %v", err)
	}
}

// The start function does not run by itself, and when it does it is metered.
func TestStart(t *testing.T) {
	t.Parallel()
	wasm := build(section(1, void), section(3, []byte{0}), section(8, []byte{0}), section(10, body(nil, 0x03, 0x40, 0x0c, 0, 0x0b)))
	h := newHost(t, wazero.NewRuntimeConfigInterpreter(), &rewrite.Options{})
	h.limit = 100_000
	if _, err := h.instantiate(wasm, ""); !errors.Is(err, errFuel) {
		t.Errorf("got %v", err)
	}
}

// What data segments wrote can be written by the host, or be in an image.
func TestDataAndImage(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	// The start function writes 7 to 100 and sets the global; f reads from an address.
	wasm := build(section(1, void, i32ToI32), section(3, []byte{0}, []byte{1}), page, section(6, []byte{0x7f, 1, 0x41, 1, 0x0b}),
		section(7, name("f", 0, 1)), section(8, []byte{0}),
		section(10, body(nil, 0x41, 0xe4, 0, 0x41, 7, 0x36, 2, 0, 0x41, 9, 0x24, 0), body(nil, 0x20, 0, 0x28, 2, 0, 0x23, 0, 0x6a)),
		section(11, append([]byte{0, 0x41, 8, 0x0b}, name("abcd")...), append([]byte{1}, name("kept")...), append([]byte{0, 0x41, 10, 0x0b}, name("xy")...)))
	out := mustRewrite(t, wasm, rewrite.Options{EmptyData: true, MaxPages: 4})
	if len(out.Data) != 2 || out.Data[0].Offset != 8 || string(out.Data[0].Bytes) != "abcd" || out.Data[1].Offset != 10 || string(out.Data[1].Bytes) != "xy" {
		t.Fatalf("got %v", out.Data)
	}
	if bytes.Contains(out.Wasm, []byte("abcd")) || !bytes.Contains(out.Wasm, []byte("kept")) {
		t.Error("the wrong segments were emptied")
	}
	if len(out.Globals) != 1 || out.Globals[0].Type != rewrite.I32 || out.Globals[0].Index != 0 || !out.Resettable {
		t.Errorf("got %+v", out)
	}
	h := newHost(t, wazero.NewRuntimeConfigInterpreter(), &rewrite.Options{EmptyData: true, MaxPages: 4})
	m, err := h.instantiate(wasm, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []uint64{uint64(binary.LittleEndian.Uint32([]byte("abxy"))) + 9, 7 + 9}
	check := func(m reader, where string) {
		t.Helper()
		for i, at := range []uint64{8, 100} {
			if res, err := m.call(at); err != nil || res != want[i] {
				t.Errorf("%s: at %d: got %d, %v, want %d", where, at, res, err, want[i])
			}
		}
	}
	check(func(at uint64) (uint64, error) { r, err := h.call(m, "f", at); return first(r), err }, "data")
	image, _ := m.Memory().Read(0, 1<<16)
	image = bytes.Clone(image)
	value := m.ExportedGlobal(out.Globals[0].Export).Get()

	second, err := rewrite.WithImage(out.Wasm, 2)
	if err != nil {
		t.Fatal(err)
	}
	m2, err := h.rt.InstantiateWithConfig(ctx, second, wazero.NewModuleConfig().WithName("second"))
	if err != nil {
		t.Fatal(err)
	}
	if m2.Memory().Size() != 2<<16 {
		t.Errorf("memory of %d bytes", m2.Memory().Size())
	}
	if b, _ := m2.Memory().Read(0, 2<<16); !bytes.Equal(b, make([]byte, 2<<16)) {
		t.Error("memory is not empty before the image")
	}
	m2.Memory().Write(0, image)
	counter(m2, out.Globals[0].Export).Set(value)
	counter(m2, out.Depth).Set(10)
	check(func(at uint64) (uint64, error) {
		r, err := m2.ExportedFunction("f").Call(ctx, at)
		return first(r), err
	}, "image")

	for pages, want := range map[uint32]error{0: rewrite.ErrLimit, 6: rewrite.ErrLimit} {
		if _, err := rewrite.WithImage(out.Wasm, pages); !errors.Is(err, want) {
			t.Errorf("image of %d pages: %v", pages, err)
		}
	}
	if _, err := rewrite.WithImage(function(void, nil), 1); !errors.Is(err, rewrite.ErrUnsupported) {
		t.Errorf("image without a memory: %v", err)
	}
}

type reader func(uint64) (uint64, error)

func (f reader) call(at uint64) (uint64, error) { return f(at) }

func first(r []uint64) uint64 {
	if len(r) == 0 {
		return 0
	}
	return r[0]
}

// Functions keep their names in stack traces, whatever moved them.
func TestNames(t *testing.T) {
	t.Parallel()
	names := append([]byte{0, 2}, name("m")...)
	funcs := bytes.Join([][]byte{{2, 0}, name("imported"), {1}, name("crash")}, nil)
	names = append(append(names, 1, byte(len(funcs))), funcs...)
	locals := bytes.Join([][]byte{{1, 1, 1, 0}, name("x")}, nil)
	names = append(append(names, 2, byte(len(locals))), locals...)
	wasm := build(section(1, i32ToI32), section(2, append(name("env"), name("h", 0, 0)...)), section(3, []byte{0}), section(7, name("f", 0, 1)),
		section(10, body(nil, 0x00)), section(0, name("producers"), []byte("me")), section(0, name(".debug_info"), []byte("gone")), section(0, name("name"), names))
	out := mustRewrite(t, wasm, rewrite.Options{})
	for what, want := range map[string]bool{"producers": true, ".debug_info": false, "imported": true} {
		if bytes.Contains(out.Wasm, []byte(what)) != want {
			t.Errorf("%s is there: %v", what, !want)
		}
	}
	h := newHost(t, wazero.NewRuntimeConfigInterpreter(), &rewrite.Options{})
	stub(t, h, wasm)
	m, err := h.instantiate(wasm, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = h.call(m, "f", 1); err == nil || !strings.Contains(err.Error(), "m.crash(") {
		t.Errorf("got %v", err)
	}
}

// What is added takes no name that the module uses.
func TestNameClash(t *testing.T) {
	t.Parallel()
	wasm := build(section(1, void), section(2, append(name("wasmsidecar_meter"), name("refuel", 0, 0)...)), section(3, []byte{0}),
		section(7, name("__wasmsidecar_fuel", 0, 1)), section(10, body(nil)))
	out := mustRewrite(t, wasm, rewrite.Options{})
	if out.RefuelModule != "wasmsidecar_meter_" || out.Fuel != "___wasmsidecar_fuel" {
		t.Errorf("got %q, %q", out.RefuelModule, out.Fuel)
	}
}

func TestResettable(t *testing.T) {
	t.Parallel()
	elem := section(9, append([]byte{1, 0}, 1, 0))
	global := func(typ byte, init ...byte) []byte { return section(6, append(append([]byte{typ, 1}, init...), 0x0b)) }
	zero := []byte{0xfd, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	drop := build(section(1, void), section(3, []byte{0}), page, section(7, name("f", 0, 0)), section(12, []byte{1}),
		section(10, body(nil, 0xfc, 9, 0)), section(11, append([]byte{1}, name("x")...)))
	dropElem := build(section(1, void), section(3, []byte{0}), table8, section(7, name("f", 0, 0)), elem, section(10, body(nil, 0xfc, 13, 0)))
	for _, tc := range []struct {
		name string
		wasm []byte
		why  string // empty for can be reset
	}{
		{"nothing", function(void, nil), ""},
		{"memory", function(void, [][]byte{page}, 0x41, 0, 0x41, 0, 0x36, 2, 0), ""},
		{"number", function(void, [][]byte{global(0x7e, 0x42, 0)}, 0x42, 1, 0x24, 0), ""},
		{"vector that is read", function(void, [][]byte{global(0x7b, zero...)}, 0x23, 0, 0x1a), ""},
		{"vector", function(void, [][]byte{global(0x7b, zero...)}, 0x23, 0, 0x24, 0), "function 0 (f) sets a global of type v128"},
		{"reference", function(void, [][]byte{global(0x70, 0xd0, 0x70)}, 0x23, 0, 0x24, 0), "function 0 (f) sets a global of type funcref"},
		{"table.set", function(void, [][]byte{table8}, 0x41, 0, 0xd0, 0x70, 0x26, 0), "function 0 (f) changes a table"},
		{"table.get", function(void, [][]byte{table8}, 0x41, 0, 0x25, 0, 0x1a), ""},
		{"table.fill", function(void, [][]byte{table8}, 0x41, 0, 0xd0, 0x70, 0x41, 0, 0xfc, 17, 0), "function 0 (f) changes a table"},
		{"data.drop", drop, "function 0 (f) drops a data segment"},
		{"elem.drop", dropElem, "function 0 (f) drops an element segment"},
		{"imported memory", build(section(2, append(name("e"), name("m", 2, 0, 1)...))), "it imports its memory"},
		{"imported table", build(section(2, append(name("e"), name("m", 1, 0x70, 0, 1)...))), "it imports a table"},
		{"imported global", build(section(2, append(name("e"), name("m", 3, 0x7f, 1)...))), "it imports a mutable global"},
		{"imported constant", build(section(2, append(name("e"), name("m", 3, 0x7f, 0)...))), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			out := mustRewrite(t, tc.wasm, rewrite.Options{})
			if out.Resettable != (tc.why == "") || out.Why != tc.why {
				t.Errorf("got %v, %q, want %q", out.Resettable, out.Why, tc.why)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	code := func(code ...byte) []byte { return function(void, nil, code...) }
	for _, tc := range []struct {
		name string
		wasm []byte
		kind error
		what string
		fn   int
	}{
		{"nothing", nil, rewrite.ErrMalformed, "not a WebAssembly binary", -1},
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), rewrite.ErrUnsupported, "a component", -1},
		{"version", []byte("\x00asm\x02\x00\x00\x00"), rewrite.ErrMalformed, "version 1", -1},
		{"order", build(section(3), section(1)), rewrite.ErrMalformed, "out of order", -1},
		{"twice", build(section(1), section(1)), rewrite.ErrMalformed, "out of order", -1},
		{"tags", build(section(1, void), section(13, []byte{0, 0})), rewrite.ErrUnsupported, "exception handling", -1},
		{"struct type", build(section(1, []byte{0x5f, 0})), rewrite.ErrUnsupported, "garbage collection", -1},
		{"typed reference", build(section(1, []byte{0x60, 1, 0x64, 0, 0})), rewrite.ErrUnsupported, "garbage collection", -1},
		{"shared memory", build(section(5, []byte{3, 1, 1})), rewrite.ErrUnsupported, "threads", -1},
		{"64-bit memory", build(section(5, []byte{4, 1})), rewrite.ErrUnsupported, "64-bit", -1},
		{"two memories", build(section(5, []byte{0, 1}, []byte{0, 1})), rewrite.ErrUnsupported, "several memories", -1},
		{"extended constants", build(section(6, []byte{0x7f, 0, 0x41, 1, 0x41, 1, 0x6a, 0x0b})), rewrite.ErrUnsupported, "extended constant", -1},
		{"table with a value", build(section(4, []byte{0x40, 0, 0x70, 0, 1, 0xd0, 0x70, 0x0b})), rewrite.ErrUnsupported, "typed function references", -1},
		{"bodies", build(section(1, void), section(3, []byte{0})), rewrite.ErrMalformed, "1 functions have 0 bodies", -1},
		{"tail call", code(0x12, 0), rewrite.ErrUnsupported, "tail calls", 0},
		{"try", code(0x06, 0x40, 0x0b), rewrite.ErrUnsupported, "exception handling", 0},
		{"throw", code(0x08, 0), rewrite.ErrUnsupported, "exception handling", 0},
		{"try_table", code(0x1f, 0x40, 0, 0x0b), rewrite.ErrUnsupported, "exception handling", 0},
		{"call_ref", code(0x14, 0), rewrite.ErrUnsupported, "typed function references", 0},
		{"struct.new", code(0xfb, 0, 0), rewrite.ErrUnsupported, "garbage collection", 0},
		{"atomics", code(0xfe, 3, 0), rewrite.ErrUnsupported, "threads", 0},
		{"relaxed SIMD", code(0xfd, 0x80, 2), rewrite.ErrUnsupported, "relaxed SIMD", 0},
		{"unknown vector", code(0xfd, 0x9a, 1), rewrite.ErrUnsupported, "unknown instruction 0xfd9a", 0},
		{"unknown", code(0xff), rewrite.ErrUnsupported, "unknown instruction 0xff", 0},
		{"unknown misc", code(0xfc, 18), rewrite.ErrUnsupported, "unknown instruction 0xfc12", 0},
		{"memory 1", function(void, [][]byte{page}, 0x3f, 1, 0x1a), rewrite.ErrUnsupported, "several memories", 0},
		{"memory 1 in a load", function(void, [][]byte{page}, 0x41, 0, 0x28, 0x42, 1, 0, 0x1a), rewrite.ErrUnsupported, "several memories", 0},
		{"locals", build(section(1, void), section(3, []byte{0}), section(7, name("f", 0, 0)), section(10, body([]byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x7f}))), rewrite.ErrLimit, "locals", 0},
		// What is added would be within reach of these.
		{"added global", code(0x23, 0, 0x1a), rewrite.ErrMalformed, "no such global", 0},
		{"added local", code(0x20, 0, 0x1a), rewrite.ErrMalformed, "no local 0", 0},
		{"added function", code(0x10, 1), rewrite.ErrMalformed, "no such function", 0},
		{"added function reference", code(0xd2, 1, 0x1a), rewrite.ErrMalformed, "no such function", 0},
		{"added type", code(0x02, 1, 0x0b), rewrite.ErrMalformed, "no such type", 0},
		{"added label", code(0x0c, 1), rewrite.ErrMalformed, "no label 1", 0},
		{"added label in a table", code(0x41, 0, 0x0e, 0, 1), rewrite.ErrMalformed, "no label 1", 0},
		{"code after the end", code(0x0b, 0x10, 0), rewrite.ErrMalformed, "after the function's end", 0},
		{"not closed", code(0x02, 0x40), rewrite.ErrMalformed, "unexpected end", 0},
		{"else", code(0x05), rewrite.ErrMalformed, "else without if", 0},
		{"exported", build(section(1, void), section(7, name("f", 0, 0))), rewrite.ErrMalformed, "no such function", -1},
		{"start with parameters", build(section(1, i32ToI32), section(3, []byte{0}), section(8, []byte{0}), section(10, body(nil, 0x20, 0))), rewrite.ErrMalformed, "start function", -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := rewrite.Rewrite(tc.wasm, rewrite.Options{})
			var e *rewrite.Error
			if !errors.As(err, &e) || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.what) || e.Func != tc.fn {
				t.Fatalf("got %v", err)
			}
			if tc.fn == 0 && (e.Name != "f" || e.Offset < 20 || !strings.Contains(err.Error(), fmt.Sprintf("function 0 (f), offset 0x%x", e.Offset))) {
				t.Errorf("got %v", err)
			}
		})
	}
}
