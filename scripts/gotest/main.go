// Gotest runs the tests of this module and of the modules nested in it, and says what happened: one line a package, everything a
// failed test printed, every skipped test with its reason, the slowest tests, and last of all a line of counts.
//
//	gotest [-strict] [go test flags] [packages]
//
// With -strict a skipped test fails the run, and so does anything but a real Kafka broker behind the Kafka tests. Packages are
// taken in the module at the working directory; when they are left out or are ./..., nested modules are tested as well, without
// the race detector. The exit code is 0 only if tests ran and all passed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok, err := run(ctx, os.Args[1:], os.Getenv("WASMSIDECAR_TEST_KAFKA_KIND"), os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, kafka string, out io.Writer) (bool, error) {
	strict := len(args) > 0 && args[0] == "-strict"
	if strict {
		args = args[1:]
	}
	flags, packages := split(args)
	if len(packages) == 0 {
		packages = []string{"./..."}
	}
	dirs := []string{"."}
	if slices.Equal(packages, []string{"./..."}) {
		nested, err := nestedModules(".")
		if err != nil {
			return false, fmt.Errorf("look for nested modules: %w", err)
		}
		dirs = append(dirs, nested...)
	}

	r := newReport(out)
	for i, dir := range dirs {
		own := slices.Clone(flags)
		if i > 0 { // tools beside the product, which take many times as long under the race detector
			own = slices.DeleteFunc(own, func(f string) bool { return f == "-race" })
		}
		if err := runModule(ctx, dir, append(own, packages...), r); err != nil {
			return false, err
		}
	}
	return r.finish(strict, kafka), nil
}

// split parts flags from packages. A package here begins with a dot or holds no leading hyphen and follows no flag that wants a
// value; flags with values must be written with =, as make test does.
func split(args []string) (flags, packages []string) {
	for i, a := range args {
		if !strings.HasPrefix(a, "-") {
			return args[:i], args[i:]
		}
	}
	return args, nil
}

// nestedModules lists the folders below root that have a go.mod of their own, and tests: one that only pins a tool has none.
func nestedModules(root string) ([]string, error) {
	var dirs, tested []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root {
			if name := d.Name(); strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "node_modules" {
				return filepath.SkipDir
			}
		}
		if d.Name() == "go.mod" && filepath.Dir(path) != filepath.Clean(root) {
			dirs = append(dirs, filepath.Dir(path))
		}
		if strings.HasSuffix(path, "_test.go") {
			tested = append(tested, path)
		}
		return nil
	})
	return slices.DeleteFunc(dirs, func(dir string) bool {
		return !slices.ContainsFunc(tested, func(path string) bool { return strings.HasPrefix(path, dir+string(filepath.Separator)) })
	}), err
}

func runModule(ctx context.Context, dir string, args []string, r *report) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run go test in %s: %w", dir, err)
	}
	failedBefore := r.failed()
	readErr := r.read(stdout)
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("go test in %s was interrupted", dir)
	case readErr != nil:
		return fmt.Errorf("read the events of go test in %s: %w", dir, readErr)
	case errors.As(err, &exit) && r.failed() == failedBefore:
		// It could not even begin: a flag or a go.mod that is wrong. It has said so on standard error.
		r.fail(dir, "go test: "+exit.Error())
		return nil
	case errors.As(err, &exit):
		return nil
	}
	return err
}
