package transport_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Every header that has a name in this package is in the public contract.
func TestHeadersAreDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range []string{"transport.go", "deadletter.go", "fields.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(x ast.Node) bool {
			v, ok := x.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 || !strings.HasPrefix(strings.ToLower(v.Names[0].Name), "header") {
				return true
			}
			header, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			n++
			if header != "baggage" && !strings.Contains(string(doc), "`"+header) {
				t.Errorf("docs/wire.md does not mention %s", header)
			}
			return true
		})
	}
	if n < 40 {
		t.Errorf("only %d headers were found", n)
	}
}
