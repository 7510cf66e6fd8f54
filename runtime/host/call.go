package host

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Bounds on the headers that a guest may set on its result.
const (
	MaxResultHeaders     = 64
	MaxResultHeaderBytes = 16 << 10
)

// Grants is what one module was given. All calls of the module share it and nobody writes to it.
type Grants struct {
	Module    string            // the module's name, for the log
	Config    map[string]string // what config_get answers from
	Calls     int64             // most calls of host functions, WASI's included; 0: unlimited
	Output    int64             // most bytes of a result
	Log       int64             // most bytes of log lines per call
	LogLines  int               // most log lines per call
	HTTP      Policy            // hosts that may be asked; the zero Policy denies all
	HTTPCalls int               // most requests per call
	HTTPBytes int64             // most bytes of one request's body, and of one response's
	HTTPTotal int64             // most bytes of all requests and responses per call, their headers included
	HTTPTime  time.Duration     // most time per request
	Egress    *Egress           // carries requests out; may be nil when HTTP denies all
	Logger    *slog.Logger      // never nil
}

// Fault stops a guest that broke a rule: host functions panic with one, and it comes back as the error of the guest's call.
type Fault struct {
	Kind job.Kind
	Text string
	Err  error // what errors.Is finds; may be nil
}

// Error returns the text.
func (f *Fault) Error() string { return f.Text }

// Unwrap returns Err.
func (f *Fault) Unwrap() error { return f.Err }

// Stop ends a guest from outside, through no fault of its own: host functions panic with one.
type Stop struct{ Err error }

// Error returns the text of Err.
func (s *Stop) Error() string { return s.Err.Error() }

// Unwrap returns Err.
func (s *Stop) Unwrap() error { return s.Err }

// ErrOutput is what a Fault wraps that stopped a guest whose result grew too large.
var ErrOutput = errors.New("result is over its limit")

// ErrMemory is what a Fault wraps that stopped a guest for which there was no room left in its limit of memory.
var ErrMemory = errors.New("out of memory")

// Lender takes what the host keeps for a guest out of the guest's limit of memory.
type Lender interface {
	// Lend says whether n bytes beside the guest's own memory are within the limit. The guest's memory grows no further than
	// that leaves room for, until the next Lend that is granted.
	Lend(n int64) bool
}

// ErrCalls is what a Fault wraps that stopped a guest which called too many host functions.
var ErrCalls = errors.New("too many calls of host functions")

// Call is one run of one guest. It belongs to the goroutine that runs the guest.
type Call struct {
	*Grants
	Job      *job.Job
	TypeName string // of the result's DRASM envelope
	// Invoke calls an export of the guest, also while the guest waits for a host function. It must be set before Alloc is used.
	Invoke func(ctx context.Context, export string, args ...uint64) ([]uint64, error)

	// Lender must be set before an Extism plug-in is called.
	Lender Lender

	used    bool  // the guest has called a host function
	calls   int64 // of host functions since it was initialized
	ready   bool  // false while the guest initializes: it has no job then
	out     []byte
	header  job.Header
	verdict *job.Error
	trouble *job.Error
	log     logState
	http    httpState
	drasm   drasmState
	extism  *extismState // nil until it is used
	work    int          // bytes moved since toil last looked at the clock
}

// NewCall makes the call for a job.
func NewCall(g *Grants, j *job.Job) *Call { return &Call{Grants: g, Job: j} }

// Begin says that the guest is initialized: from now on it may see its job, and its calls count.
func (c *Call) Begin() {
	c.ready, c.calls = true, 0
	if c.extism != nil { // what it was given before its job is not the job's
		c.extism = nil
		c.Lender.Lend(0)
	}
}

// Count is told of each call of a host function before it is served. It panics with a Fault when there are more than the guest
// may make, and stops a guest whose time is over: calls burn little fuel, so one that does nothing else would be asked late.
func (c *Call) Count(ctx context.Context) {
	c.calls++
	if c.Grants.Calls > 0 && c.calls > c.Grants.Calls {
		panic(&Fault{Kind: job.KindLimit, Err: ErrCalls,
			Text: ErrCalls.Error() + ": the limit is " + strconv.FormatInt(c.Grants.Calls, 10) + " (limits.host_calls)"})
	}
	if c.calls%lookEvery == 0 && ctx.Err() != nil {
		panic(sys.NewExitError(sys.ExitCodeContextCanceled))
	}
}

// lookEvery is after how many calls of host functions the time is looked at.
const lookEvery = 16

// Counted is how many calls Count was told of, and SetCounted makes it so for a guest that goes on where it had made as many.
func (c *Call) Counted() int64     { return c.calls }
func (c *Call) SetCounted(n int64) { c.calls = n }

// End writes out what is left of the guest's unfinished log lines.
func (c *Call) End() {
	c.log.out.flush()
	c.log.err.flush()
}

// Used says whether the guest has called a host function other than WASI's.
func (c *Call) Used() bool { return c.used }

// Output is what the guest has written so far. It is the caller's after End.
func (c *Call) Output() []byte { return c.out }

// Header is what the guest has set on its result.
func (c *Call) Header() job.Header { return c.header }

// Verdict is what the guest asked for by fail or retry; nil for neither. The last call counts.
func (c *Call) Verdict() *job.Error { return c.verdict }

// Trouble is the refusal or the failure that the guest's last use of a capability met with; nil when that went well. A guest
// that crashes thereafter did not handle it, and the trouble's kind explains the crash better than the crash itself does.
func (c *Call) Trouble() *job.Error { return c.trouble }

// SetTrouble makes err the call's trouble; nil says that there is none any more.
func (c *Call) SetTrouble(err *job.Error) { c.trouble = err }

// Stdin is the job's body as a program reads it.
func (c *Call) Stdin() io.Reader { return bytes.NewReader(c.Job.Body) }

// Append adds to the result. Its error is a *Fault.
func (c *Call) Append(p []byte) error {
	if int64(len(c.out))+int64(len(p)) > c.Grants.Output {
		return c.overOutput()
	}
	c.out = append(c.out, p...)
	return nil
}

func (c *Call) overOutput() *Fault {
	return &Fault{Kind: job.KindLimit,
		Text: "result is over the limit of " + strconv.FormatInt(c.Grants.Output, 10) + " bytes (limits.output)",
		Err:  ErrOutput}
}

// Write appends to the result; a program's stdout is led here. It panics with a Fault when the result grows over its limit,
// so that a program which does not look at the errors of its writes is stopped as well.
func (c *Call) Write(p []byte) (int, error) {
	if err := c.Append(p); err != nil {
		panic(err)
	}
	return len(p), nil
}

// WithCall returns a context that carries c to the host functions.
func WithCall(ctx context.Context, c *Call) context.Context { return &Context{ctx, c} }

// Context is what WithCall returns. Host functions find their call in it without allocating.
type Context struct {
	context.Context
	Call *Call
}

type callKey struct{}

// Value implements context.Context.
func (c *Context) Value(key any) any {
	if _, ok := key.(callKey); ok {
		return c.Call
	}
	return c.Context.Value(key)
}

// callOf returns the call that ctx carries. Host functions run in no other context.
func callOf(ctx context.Context) *Call {
	if c, ok := ctx.(*Context); ok {
		return c.Call
	}
	c, _ := ctx.Value(callKey{}).(*Call)
	if c == nil {
		panic(&Fault{Kind: job.KindInternal, Text: "host function called outside of a job"})
	}
	return c
}
