package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/wasmsidecar/wasmsidecar/pkg/telemetry"
)

func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestArchitectureHasTheFloors holds the drawing in ARCHITECTURE.md equal to the floors that imports are checked against.
func TestArchitectureHasTheFloors(t *testing.T) {
	t.Parallel()
	m := regexp.MustCompile("(?s)```floors\n(.*?)```").FindStringSubmatch(document(t, "ARCHITECTURE.md"))
	if m == nil {
		t.Fatal("no block of floors")
	}
	lines := strings.Split(strings.TrimSpace(m[1]), "\n")
	slices.Reverse(lines)
	if len(lines) != len(floors) {
		t.Fatalf("%d floors are drawn, there are %d", len(lines), len(floors))
	}
	for i, line := range lines {
		drawn := strings.Fields(line)
		if drawn[0] != fmt.Sprint(i) {
			t.Errorf("floor %d is drawn as %s", i, drawn[0])
		}
		drawn = slices.Sorted(slices.Values(drawn[1:]))
		if there := slices.Sorted(slices.Values(floors[i])); !slices.Equal(drawn, there) {
			t.Errorf("floor %d: drawn %v, there are %v", i, drawn, there)
		}
	}
}

// TestCommandIsDocumented looks for every command and flag in docs/command.md.
func TestCommandIsDocumented(t *testing.T) {
	t.Parallel()
	sections := map[string]string{}
	for _, s := range strings.Split(document(t, "docs/command.md"), "\n## ")[1:] {
		title, text, _ := strings.Cut(s, "\n")
		sections[regexp.MustCompile(`^[a-z]+( [a-z]+)*`).FindString(title)] = text
	}
	root := newRoot(streams{})
	commands := []*cobra.Command{root}
	for _, c := range root.Commands() {
		switch {
		case c.Name() == "help" || c.Name() == "completion":
		case c.HasSubCommands():
			commands = append(commands, c.Commands()...)
		default:
			commands = append(commands, c)
		}
	}
	for _, c := range commands {
		text, ok := sections[c.CommandPath()]
		if !ok {
			t.Errorf("%s has no section", c.CommandPath())
		}
		if c.Example == "" || c.Long == "" {
			t.Errorf("%s has no example or no explanation", c.CommandPath())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" {
				return
			}
			if !strings.Contains(text, "`--"+f.Name+"`") && !strings.Contains(text, "`--"+f.Name+" ") {
				t.Errorf("%s: flag --%s is missing", c.CommandPath(), f.Name)
			}
		})
	}
}

// TestMetricsAreDocumented looks for every metric in docs/operations.md.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	m, err := telemetry.NewMetrics("test", nil, telemetry.Gauges{})
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		m.Describe(descs)
	}()
	text := document(t, "docs/operations.md")
	name, n := regexp.MustCompile(`fqName: "(wasmsidecar_\w+)"`), 0
	for d := range descs {
		if found := name.FindStringSubmatch(d.String()); found != nil {
			n++
			if !strings.Contains(text, "`"+found[1]+"`") {
				t.Errorf("%s is missing", found[1])
			}
		}
	}
	if n < 15 {
		t.Fatalf("only %d metrics were looked for", n)
	}
}

// TestDocumentsHold looks through all documents for links that lead nowhere and for a promise that nobody can keep.
func TestDocumentsHold(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#]+)\)`)
	for _, name := range []string{
		"README.md", "ARCHITECTURE.md", "RATIONALE.md", "CHANGELOG.md", "CONTRIBUTING.md",
		"docs/command.md", "docs/configuration.md", "docs/operations.md", "docs/wire.md", "docs/guests.md", "docs/ledger.md",
	} {
		text := document(t, name)
		if strings.Contains(strings.ToLower(text), "exactly "+"once") {
			t.Errorf("%s promises what nobody can keep", name)
		}
		dir := ""
		if strings.HasPrefix(name, "docs/") {
			dir = "docs/"
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat("../../" + dir + m[1]); err != nil {
				t.Errorf("%s: %s leads nowhere", name, m[1])
			}
		}
	}
}
