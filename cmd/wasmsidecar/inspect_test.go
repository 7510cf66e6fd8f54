package main

import (
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// A module's names neither speak to the terminal nor look like lines of the inspection.
func TestInspectionOfNames(t *testing.T) {
	t.Parallel()
	const name = "a\x1b[31m\r\nmodules:\n  evil\u202e\xffé"
	var b strings.Builder
	i := &runtime.Inspection{
		Name: name, ABI: runtime.ABIPull, Exports: []runtime.Func{{Name: name, Type: "() -> ()"}},
		Producers: []runtime.Producer{{Field: name, Name: name}}, Sections: []runtime.Section{{Name: name}},
	}
	if err := printInspection(&b, "m.wasm", i); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\nmodules:\n"); n != 1 || strings.ContainsAny(b.String(), "\x1b\r\u202e") {
		t.Errorf("%d lines \"modules:\" in %q", n, b.String())
	}
	if want := `a\x1b[31m\r\nmodules:\n  evil\u202e` + "\ufffdé() -> ()"; !strings.Contains(b.String(), want) {
		t.Errorf("no %q in %q", want, b.String())
	}
}
