// Package job is the vocabulary of wasmsidecar: what a job is, what became of it, and who runs it.
//
// It knows no broker, no store and no wasm engine; every other package may import it and it imports none of them.
package job

import (
	"context"
	"time"
)

// MaxIDLen is the longest job id in bytes; longer ones are replaced by their SHA-256 when a message is decoded.
const MaxIDLen = 256

// MaxHops is how often a result may become a job again before it is refused as a loop.
const MaxHops = 64

// Job is one piece of work as its Runner sees it.
//
// A Job is made by decoding a message and is not changed afterwards, except for Attempt and CorrelationID, which the chain
// sets before the Runner sees it. Header values and Body may alias the broker's buffers: read them, never write to them.
type Job struct {
	ID      string // unique within Route; never empty once decoded
	Route   string // the route's name, which scopes the id
	Module  string // the module to run; empty where neither message nor route names one
	Subject string // the subject the message arrived on
	Key     string // ordering and partition key; may be empty
	Source  string // position of the message: WIRE form, for example "jobs/1-0"

	Header  Header // every header of the message, multi-valued, in order
	ReplyTo string // where a copy of the result is wanted; empty for none
	Body    []byte // what the guest reads, the envelope already taken off
	Raw     []byte // the message's body as it came, for the dead letter

	CorrelationID string
	TypeName      string // type_name of a DRASM envelope

	Attempt     int           // the execution now under way, from 1
	Generation  int           // 0 for the original, one more for each redrive
	Hops        int           // results that led to this job
	MaxAttempts int           // 0: what the route says
	Timeout     time.Duration // 0: what the route and module say
	Backoff     time.Duration // ceiling of the first wait before a retry, as the job asks for it; 0: what the route says
	MaxBackoff  time.Duration // ceiling of every such wait, as the job asks for it; 0: what the route says
	NotBefore   time.Time     // zero: at once
	ExpiresAt   time.Time     // zero: never
	Published   time.Time     // when the broker took the message; zero where it does not say
	Moved       bool          // written by a sidecar (retry, schedule, redrive) rather than by a producer

	// Redelivered says that the message may have been delivered before.
	Redelivered bool
	// Invalid is why the message could not be decoded; such a job is never run.
	Invalid error
}

// Result is what a Runner hands back for a job that went well.
type Result struct {
	Body   []byte
	Header Header // set by the guest; names beginning with Wasm- or Nats- are refused when they are set

	TypeName string        // type_name of a DRASM envelope
	Module   string        // the module that made it
	Digest   string        // its SHA-256, in hex
	Fuel     uint64        // fuel burnt, 0 where it is not metered
	Duration time.Duration // time in the Runner
}

// Runner runs one job to its end.
//
// Run blocks until the job is over or ctx ends; it may be called by many goroutines at once. An error that is, or wraps, an
// *Error carries the Kind that decides what becomes of the job; any other error counts as KindInternal.
type Runner interface {
	Run(ctx context.Context, j *Job) (*Result, error)
}

// RunnerFunc lets a function be a Runner.
type RunnerFunc func(ctx context.Context, j *Job) (*Result, error)

// Run calls f.
func (f RunnerFunc) Run(ctx context.Context, j *Job) (*Result, error) { return f(ctx, j) }

// Pure is what a Runner implements besides whose work nobody but the caller can see: nothing is sent, stored or kept between jobs,
// so that a job which ran twice, and of which one outcome counts, ran once for all the world. Such a job need not be claimed before
// it runs.
type Pure interface {
	// Pure says whether that holds for this Runner. It never changes.
	Pure() bool
}
