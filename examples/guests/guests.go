// Package guests holds the example guests as bytes, for tests and demonstrations. Each has its source in the directory of its
// name; build.sh makes those that are committed, and plain `go build` makes the others, which BuildGo does for tests.
package guests

import (
	"embed"
	"fmt"
	"path"
	"strings"
)

//go:embed *.wasm
var files embed.FS

// Names lists the committed guests in alphabetical order.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // of an embedded directory
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), path.Ext(e.Name())))
	}
	return names
}

// Bytes returns a copy of the guest of that name. It panics when there is none.
func Bytes(name string) []byte {
	b, err := files.ReadFile(name + ".wasm")
	if err != nil {
		panic(fmt.Sprintf("guests: there is no committed guest %q; there are %s", name, strings.Join(Names(), ", ")))
	}
	return b
}
