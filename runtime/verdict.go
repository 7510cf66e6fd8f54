package runtime

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// ended is everything there is to know about a guest's run when it is over.
type ended struct {
	code    *code
	err     error           // what the driver returned
	parent  context.Context // the job's
	ctx     context.Context // the guest's: parent, and the module's limit
	limit   time.Duration   // which time it had
	fuel    uint64
	memory  uint32 // bytes of linear memory at the end
	most    int64  // bytes it could have had
	refused bool   // the last growth that it asked for would have been more
	call    *host.Call
}

// verdict says how the job ended: nil for success, else a *job.Error. In order: what stopped the guest from outside, what the
// guest said itself, what went wrong inside.
func (e ended) verdict() error {
	err := e.err
	if err == nil && e.call.Verdict() == nil {
		return nil // what nearly all do
	}
	var exit *sys.ExitError
	var code exitCode
	var by *host.Stop
	switch {
	case errors.As(err, &by):
		return e.stopped(by.Err)
	case errors.As(err, &exit):
		stopped := exit.ExitCode() == sys.ExitCodeDeadlineExceeded || exit.ExitCode() == sys.ExitCodeContextCanceled
		switch {
		case stopped && exit.ExitCode() == sys.ExitCodeContextCanceled && errors.Is(e.parent.Err(), context.Canceled):
			return e.brokenOff()
		case stopped && e.ctx.Err() != nil:
			return e.timedOut()
		}
		code, err = exitCode(exit.ExitCode()), nil
	case errors.As(err, &code):
		err = nil
	}
	var fault *host.Fault
	if errors.As(err, &fault) && fault.Kind != job.KindTrap {
		return &job.Error{Kind: fault.Kind, Err: fault}
	}
	var said *job.Error
	if errors.As(err, &said) { // the driver's own: DRASM's Error message
		return said
	}
	if v := e.call.Verdict(); v != nil {
		return v
	}
	if err == nil {
		return e.exit(code)
	}
	return e.crash(err)
}

// exit judges the number that a guest ended with.
func (e ended) exit(code exitCode) error {
	words := e.call.LastWords()
	if words != "" {
		words = ": " + words
	}
	switch code {
	case abi.ExitOK:
		return nil
	case abi.ExitFailed:
		return job.Errorf(job.KindFailed, "%w%s", code, words)
	case abi.ExitRetry:
		return job.Errorf(job.KindRetry, "%w%s", code, words)
	}
	return e.troubled(job.Errorf(job.KindTrap, "%w%s", code, words))
}

// crash judges an error that the guest, or the sidecar on its behalf, did not mean.
func (e ended) crash(err error) error {
	var broken goruntime.Error
	var fault *host.Fault
	text := err.Error()
	first := firstLine(text) // what follows holds names that the guest chose
	trap, wasm := trapOf(first)
	switch {
	case errors.As(err, &fault):
		return e.troubled(job.Errorf(job.KindTrap, "%s", job.CleanText(fault.Text+e.where(text))))
	case errors.As(err, &broken) && inWASI(text):
		return e.troubled(job.Errorf(job.KindTrap, "%s%s", job.CleanText(first), e.where(text)))
	case errors.As(err, &broken) || strings.HasSuffix(first, "(recovered by wazero)"):
		return job.Errorf(job.KindInternal, "host function failed: %s", job.CleanText(first))
	case wasm && trap == overflow:
		return e.stopped(fmt.Errorf("%w%s: the engine has no room for more calls within calls", ErrDepth, job.CleanText(e.where(text))))
	case wasm:
		trap = job.CleanText(trap + e.where(text))
		words := e.call.LastWords()
		if words != "" {
			words = ": " + words
		}
		return e.troubled(job.Errorf(job.KindTrap, "%s%s", trap, words))
	case errors.Is(e.parent.Err(), context.Canceled):
		return e.brokenOff()
	case e.ctx.Err() != nil:
		return e.timedOut()
	}
	return job.Errorf(job.KindInternal, "%s", job.CleanText(first))
}

// overflow is the one trap that wazero does not always mark.
const overflow = "stack overflow"

// trapOf takes the trap out of the first line of wazero's error; ok is false when it is none.
func trapOf(line string) (trap string, ok bool) {
	if _, trap, ok = strings.Cut(line, "wasm error: "); ok {
		return trap, true
	}
	return overflow, strings.HasSuffix(line, overflow)
}

// stopped judges a guest that its meter stopped.
func (e ended) stopped(why error) error {
	switch {
	case errors.Is(why, ErrCanceled):
		return e.brokenOff()
	case errors.Is(why, ErrDeadline):
		return e.timedOut()
	}
	return e.troubled(job.Errorf(job.KindLimit, "%w", why))
}

func (e ended) brokenOff() error {
	return job.Errorf(job.KindUnavailable, "the run was broken off: %w", ErrCanceled)
}

func (e ended) timedOut() error {
	return job.Errorf(job.KindTimeout, "guest was stopped after %s: %w", e.limit.Round(time.Millisecond), ErrDeadline)
}

// troubled explains a crash by the refusal or failure that the guest met with just before and did not handle.
func (e ended) troubled(err *job.Error) error {
	if t := e.call.Trouble(); t != nil {
		return job.Errorf(t.Kind, "%w; not handled by the guest: %w", t, err)
	}
	if e.refused && err.Kind == job.KindTrap {
		return job.Errorf(job.KindLimit, "%w: the guest had %s and asked for more than %s (limits.memory); not handled by the guest: %w",
			ErrMemory, size(int64(e.memory)), size(e.most), err)
	}
	return err
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// inWASI says whether it was a WASI function that panicked: wazero's let some parameters through that make no sense (a
// poll_oneoff of 2^28 subscriptions, for one), so it is the guest that is to blame.
func inWASI(text string) bool {
	_, trace, _ := strings.Cut(text, "wasm stack trace:\n\t")
	return strings.HasPrefix(trace, abi.WASI+".")
}

// where names the guest's function at the top of a wasm stack trace, as " in f"; empty when there is none. Functions of
// stripped modules have numbers for names; those that are exported are named by their export.
func (e ended) where(text string) string {
	_, trace, ok := strings.Cut(text, "wasm stack trace:\n\t")
	if !ok {
		return ""
	}
	for line := range strings.Lines(trace) {
		// A host function's frame is named after its module; the guest's own begin with a dot, being anonymous.
		f, own := strings.CutPrefix(strings.TrimSpace(line), ".")
		f, _, _ = strings.Cut(f, "(")
		if !own || f == "" {
			continue
		}
		if export, ok := e.code.functions[f]; ok {
			f = export
		}
		return " in " + f
	}
	return ""
}
