package job

import (
	"errors"
	"fmt"
	"time"
)

// Kind is how an attempt at a job ended. It decides what becomes of the job, in the table below and nowhere else.
type Kind string

// The kinds of outcome.
const (
	KindOK          Kind = "ok"
	KindFailed      Kind = "failed"      // the guest's permanent verdict
	KindRetry       Kind = "retry"       // the guest asks to be tried again
	KindInvalid     Kind = "invalid"     // cannot be decoded, unknown module, over the size limit
	KindTrap        Kind = "trap"        // the guest crashed
	KindTimeout     Kind = "timeout"     // the guest's deadline passed
	KindLimit       Kind = "limit"       // memory, output or another limit
	KindInternal    Kind = "internal"    // a fault of the sidecar
	KindDenied      Kind = "denied"      // a capability that was not granted
	KindUnavailable Kind = "unavailable" // broker or store away; no attempt is counted
	KindUpstream    Kind = "upstream"    // a granted service is away
	KindExpired     Kind = "expired"     // Wasm-Expires-At has passed
	KindCancelled   Kind = "cancelled"   // cancelled by an operator
)

// Fate is what a Kind leads to.
type Fate struct {
	Retry      bool // tried again while attempts remain
	DeadLetter bool // leaves a dead letter once it is final
	Counts     bool // counts as an attempt; where it does not, the message is left for later
	Status     int  // HTTP status of the problem document
	Title      string
}

var fates = map[Kind]Fate{
	KindOK:          {Counts: true, Status: 200, Title: "Job completed"},
	KindFailed:      {Counts: true, DeadLetter: true, Status: 422, Title: "The guest refused the job"},
	KindRetry:       {Counts: true, DeadLetter: true, Retry: true, Status: 503, Title: "The guest asked for a retry until no attempt was left"},
	KindInvalid:     {Counts: true, DeadLetter: true, Status: 400, Title: "The job is not valid"},
	KindTrap:        {Counts: true, DeadLetter: true, Retry: true, Status: 500, Title: "The guest crashed"},
	KindTimeout:     {Counts: true, DeadLetter: true, Retry: true, Status: 504, Title: "The guest ran out of time"},
	KindLimit:       {Counts: true, DeadLetter: true, Retry: true, Status: 507, Title: "The guest exceeded a limit"},
	KindInternal:    {Counts: true, DeadLetter: true, Retry: true, Status: 500, Title: "Internal error"},
	KindDenied:      {Counts: true, DeadLetter: true, Status: 403, Title: "The guest used what it was not granted"},
	KindUnavailable: {Retry: true, Status: 503, Title: "Broker or store unavailable"},
	KindUpstream:    {Counts: true, DeadLetter: true, Retry: true, Status: 502, Title: "A granted service is unavailable"},
	KindExpired:     {Status: 410, Title: "The job expired before it could run"},
	KindCancelled:   {Status: 410, Title: "The job was cancelled"},
}

// Kinds returns every kind there is, in no particular order.
func Kinds() []Kind {
	out := make([]Kind, 0, len(fates))
	for k := range fates {
		out = append(out, k)
	}
	return out
}

// Fate returns what becomes of a job whose attempt ended with k. An unknown kind is treated as KindInternal, so that a record
// written by a newer version is never taken for success.
func (k Kind) Fate() Fate {
	if f, ok := fates[k]; ok {
		return f
	}
	return fates[KindInternal]
}

// Error is a failed attempt together with the Kind that decides what becomes of the job.
type Error struct {
	Kind       Kind
	Err        error         // never nil
	RetryAfter time.Duration // the guest's or the service's wish; 0 leaves it to the route's backoff
}

// Ran is in the chain of an error of which is known what module failed.
type Ran struct {
	Digest string // its SHA-256, in hex
	Err    error  // never nil
}

// Error returns the cause's text.
func (r *Ran) Error() string { return r.Err.Error() }

// Unwrap returns the cause.
func (r *Ran) Unwrap() error { return r.Err }

// Errorf makes an *Error; the format may use %w.
func Errorf(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// Error returns the cause's text; the kind is shown beside it wherever errors are shown.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Park is the error of a Runner whose job is not over: it waits for something, for so long at most, and holds no slot meanwhile. What
// it did so far is no attempt. The Runner is called again when the time has passed, or when the job was woken and its message
// delivered.
type Park struct{ For time.Duration }

// Error says how long.
func (p *Park) Error() string { return fmt.Sprintf("the job waits, for %s at most", p.For) }

// KindOf returns the kind of err: KindOK for nil, KindInternal for an error that says nothing.
func KindOf(err error) Kind {
	if err == nil {
		return KindOK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindInternal
}

// RetryAfterOf returns the wish that err carries, or 0.
func RetryAfterOf(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}
