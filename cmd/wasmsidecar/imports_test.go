package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"strings"
	"testing"
)

const modulePath = "github.com/wasmsidecar/wasmsidecar/"

// floors is the house: a package imports only from lower floors. A pattern ends in * where every room below it is meant.
var floors = [][]string{
	{"pkg/job", "pkg/abi", "pkg/cron", "internal/crash", "internal/deadline"},
	{"pkg/config", "pkg/event", "pkg/store", "pkg/transport", "runtime/rewrite", "runtime/wasi"},
	{"pkg/store/internal/*"}, // what the stores share among themselves
	{
		"router", "middleware", "runtime/host", "pkg/transport/*", "pkg/store/*", "pkg/api", "pkg/telemetry", "pkg/module", "pkg/guest", "pkg/schedule",
	},
	{"runtime", "pkg/sidecar"},
	{"cmd/wasmsidecar"},
}

// support holds packages that only tests, examples and scripts import.
var support = []string{"internal/services*", "internal/ledger", "pkg/transport/transporttest", "pkg/store/storetest", "runtime/rewrite/rewritetest", "examples/*", "scripts/*"}

// sideways are the imports between rooms of one floor that are meant: the engine stands on its host functions, and the sidecar
// on the engine.
var sideways = map[string]bool{"pkg/sidecar -> runtime": true}

func floorOf(pkg string) int {
	for i, rooms := range floors {
		for _, r := range rooms {
			if ok, _ := path.Match(r, pkg); ok {
				return i
			}
		}
	}
	return -1
}

func supports(pkg string) bool {
	for _, s := range support {
		if strings.HasSuffix(s, "*") && strings.HasPrefix(pkg, strings.TrimSuffix(s, "*")) || pkg == s {
			return true
		}
	}
	return false
}

// TestImportsPointDown keeps the floors of ARCHITECTURE.md.
func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "../../...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; n++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkg := strings.TrimPrefix(p.ImportPath, modulePath)
		if supports(pkg) {
			continue
		}
		from := floorOf(pkg)
		if from < 0 {
			t.Errorf("%s stands on no floor: give it one", pkg)
			continue
		}
		for _, imp := range p.Imports {
			dep, ours := strings.CutPrefix(imp, modulePath)
			if !ours {
				continue
			}
			if supports(dep) {
				t.Errorf("%s imports %s, which is for tests", pkg, dep)
			} else if floorOf(dep) >= from && !sideways[pkg+" -> "+dep] {
				t.Errorf("%s imports %s: a package imports only from a lower floor", pkg, dep)
			}
		}
	}
	if n < 20 {
		t.Fatalf("only %d packages were looked at", n)
	}
}
