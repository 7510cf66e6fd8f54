package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

func newInspect(s streams) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Tell what a module is, what it asks for and how to configure it",
		Long: `Tell what a module is: the ABI it speaks and why it is taken for that, what it imports, exports and
asks for, how much memory it needs, whether its instances can be reset and whether it is frozen, who
built it, and the lines of configuration to paste.

A program (abi command) is run once for at most two seconds, without input and with nothing
granted, to see where it first reads. Nothing of any other module is run.

Exits 0 when the module can run, 1 when something is in its way, and 2 when the file is no module.`,
		Example: `  wasmsidecar inspect upper.wasm
  wasmsidecar inspect -o json upper.wasm`,
		Args:              between(1, 1, "FILE"),
		ValidArgsFunction: wasmFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspect(cmd.Context(), s, args[0], output)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func inspect(ctx context.Context, s streams, file, output string) error {
	i, err := sidecar.Inspect(ctx, config.Default(), file, slog.New(slog.DiscardHandler))
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return usage(fmt.Errorf("inspect %s: %w", file, err))
	}
	if output == "json" {
		enc := json.NewEncoder(s.out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		err = enc.Encode(i)
	} else {
		err = printInspection(s.out, file, i)
	}
	if err != nil {
		return fmt.Errorf("print the inspection: %w", err)
	}
	if !i.Runs() {
		return &exitError{code: exitFailed}
	}
	return nil
}

// printInspection writes an inspection for people: one fact a line, its name before it.
func printInspection(w io.Writer, file string, i *runtime.Inspection) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", printable(name), printable(fmt.Sprintf(format, args...)))
	}
	line("file", "%s", file)
	line("size", "%s", bytesText(int64(i.Size)))
	line("sha256", "%s", i.Digest)
	if i.Name != "" {
		line("name", "%s", i.Name)
	}
	for _, p := range i.Producers {
		line(p.Field, "%s", strings.TrimSpace(p.Name+" "+p.Version))
	}
	if i.ABI == "" {
		line("abi", "none: %s", i.Why)
	} else {
		line("abi", "%s: %s", i.ABI, i.Why)
	}
	if i.Function != "" {
		line("function", "%s, unless the configuration names another", i.Function)
	}
	if i.Problem != "" {
		line("problem", "%s", i.Problem)
	}
	line("memory", "%s", memoryText(i.Memory))
	if i.Runs() {
		printIsolation(line, i)
	}
	for n, f := range i.Imports {
		line(first(n, "imports"), "%s", f)
	}
	if len(i.Imports) == 0 {
		line("imports", "nothing")
	}
	for n, f := range i.Exports {
		line(first(n, "exports"), "%s", f)
	}
	for n, c := range i.Capabilities {
		line(first(n, "asks for"), "%s, by %s; denied unless allow.%s grants it", c.Name, strings.Join(c.Functions, ", "), c.Key)
	}
	for n, c := range i.Sections {
		line(first(n, "sections"), "%s, %s", c.Name, bytesText(int64(c.Size)))
	}
	if i.Runs() {
		b.WriteString("\n" + pasteable(file, i))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printable writes what a terminal would obey, or not show, as Go does: a module chooses its names, and they must not look like lines
// of the inspection.
func printable(s string) string {
	var b []byte
	for _, r := range s {
		if unicode.IsPrint(r) {
			b = utf8.AppendRune(b, r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b = append(b, q[1:len(q)-1]...)
	}
	return string(b)
}

// first is the name of a fact before the first of its lines.
func first(n int, name string) string {
	if n > 0 {
		return ""
	}
	return name
}

func memoryText(m *runtime.MemoryNeeds) string {
	switch {
	case m == nil:
		return "none"
	case m.Max == 0:
		return fmt.Sprintf("%s to begin with, at most limits.memory", bytesText(m.Min))
	}
	return fmt.Sprintf("%s to begin with, at most %s", bytesText(m.Min), bytesText(m.Max))
}

func printIsolation(line func(name, format string, args ...any), i *runtime.Inspection) {
	if i.NotReset != "" {
		line("isolation", "%s, for it cannot be reset: %s", i.Isolation, i.NotReset)
	} else {
		line("isolation", "%s", i.Isolation)
	}
	switch {
	case i.Frozen:
		line("frozen", "yes: each job goes on from its first read of stdin")
	case i.Freezable:
		line("frozen", "no: %s; isolation: frozen has it frozen all the same", i.NotFrozen)
	default:
		line("frozen", "no: %s", i.NotFrozen)
	}
}

// pasteable is the module in a configuration: what has to be said for it to run, and what it asks for.
func pasteable(file string, i *runtime.Inspection) string {
	var b strings.Builder
	name := moduleName(file)
	if name == "" {
		name = "module"
	}
	fmt.Fprintf(&b, "modules:\n  %s:\n    source: %q\n    sha256: %s\n", name, file, i.Digest)
	if i.Freezable {
		b.WriteString("    isolation: frozen # seeds that it draws when it starts are then the same for many jobs\n")
	}
	if i.Memory != nil && i.Memory.Min > int64(config.DefaultModule().Limits.Memory) {
		fmt.Fprintf(&b, "    limits: {memory: %s} # what it begins with\n", config.Size(i.Memory.Min))
	}
	for n, c := range i.Capabilities {
		if n == 0 {
			b.WriteString("    allow:\n")
		}
		fmt.Fprintf(&b, "      %s: %s # %s\n", c.Key, c.Grant, c.What)
	}
	return b.String()
}

// bytesText writes a number of bytes as people do.
func bytesText(n int64) string {
	if n >= 1<<10 && n%(1<<10) == 0 {
		return config.Size(n).String()
	}
	if n == 1 {
		return "1 byte"
	}
	return fmt.Sprintf("%d bytes", n)
}
