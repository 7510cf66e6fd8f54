// Command wasmsidecar turns a message topic into a sandboxed function: it takes jobs from a broker, runs the WebAssembly module
// that the route names, publishes the result and only then settles the message.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
)

// Exit codes, as documented in docs/command.md.
const (
	exitDone        = 0
	exitFailed      = 1 // the job, or the check, failed
	exitUsage       = 2 // usage or configuration
	exitUnreachable = 3 // broker or store
	exitTimeout     = 4 // waiting for a result
	exitInterrupted = 130
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the command without the process around it.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	redis.SetLogger(redisLog{slog.New(slog.DiscardHandler)})
	ctx, stop := interruptible(stderr)
	defer stop()
	root := newRoot(streams{stdin, stdout, stderr})
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	code := exitCode(err)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		// Whatever was being done, this is why it was not.
		code, err = exitInterrupted, fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	var quiet *exitError
	if err != nil && (!errors.As(err, &quiet) || quiet.err != nil) {
		fmt.Fprintln(stderr, "wasmsidecar:", err)
	}
	return code
}

// redisLog keeps go-redis, which logs by a global of its own, from writing to stderr: all that it says there comes back as an
// error as well.
type redisLog struct{ log *slog.Logger }

// Printf logs a line at debug level.
func (l redisLog) Printf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, "go-redis", "text", fmt.Sprintf(format, args...))
}

// interruptible returns a context that ends with the first SIGINT or SIGTERM, whose name is the cause; that begins the drain. The
// second ends the process at once.
func interruptible(stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch := make(chan os.Signal, 2)
	done := make(chan struct{})
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			case s := <-ch:
				if n > 0 {
					fmt.Fprintln(stderr, "wasmsidecar: second signal, leaving at once")
					os.Exit(exitInterrupted)
				}
				cancel(errors.New(s.String()))
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(done)
		cancel(nil)
	}
}

// onHangup calls f for each SIGHUP, until the returned function is called.
func onHangup(f func()) (stop func()) {
	ch := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(ch, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-ch:
				f()
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
	}
}

// tuneCollector sets the collector's pace, unless GOGC says otherwise.
func tuneCollector() {
	if os.Getenv("GOGC") == "" {
		sidecar.PaceCollector()
	}
}

// limitMemory sets Go's soft memory limit from the cgroup, if there is one: the collector then works harder before the
// kernel kills. A tenth is left for what Go does not see, such as the guests' machine code.
func limitMemory() error {
	_, err := memlimit.Set(memlimit.WithRatio(0.9), memlimit.WithProvider(memlimit.FromCgroup))
	if err != nil && !errors.Is(err, memlimit.ErrNoLimit) && !errors.Is(err, memlimit.ErrNoCgroup) && !errors.Is(err, memlimit.ErrCgroupsNotSupported) {
		return fmt.Errorf("set the memory limit: %w", err)
	}
	return nil
}
