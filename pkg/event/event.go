// Package event says what happened to a job. The core emits events and knows nothing of who listens: logs, metrics, traces,
// audit and live views are sinks.
package event

import (
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Type is what happened.
type Type string

// The types of event.
const (
	Attempted Type = "attempted" // an attempt ended; Kind says how
	Finished  Type = "finished"  // the job has its outcome, and all its outputs are out
	Repeated  Type = "repeated"  // a job seen again had its recorded outcome emitted again; no Kind: it is kept no longer, so nothing was
	Retried   Type = "retried"   // another attempt will be made after Delay
	Dead      Type = "dead"      // a dead letter was written
	Left      Type = "left"      // the message was left for later: another owner, or a part of the sidecar is away
	Crashed   Type = "crashed"   // an earlier owner's lease ran out without a word
	Fenced    Type = "fenced"    // a write by a stale owner was refused
)

// Event is one thing that happened to one job. Fields that make no sense for its Type are zero.
type Event struct {
	Type     Type
	Time     time.Time
	Job      *job.Job // never nil; read only
	Kind     job.Kind
	Err      error
	Attempt  int
	Wait     time.Duration // Finished: from publication, or from receipt, to the first attempt
	Duration time.Duration // Attempted, Finished: time in the Runner
	Delay    time.Duration // Retried, Left: until it is presented again
	// Unclaimed says why the attempt was made without a claim; empty where it was claimed, or where nothing is.
	Unclaimed job.Unclaimed // Attempted
}

// Sink takes events. Emit must not block and may be called by many goroutines at once; what it cannot take it drops.
type Sink interface{ Emit(Event) }

// SinkFunc lets a function be a Sink.
type SinkFunc func(Event)

// Emit calls f.
func (f SinkFunc) Emit(e Event) { f(e) }

// Sinks emits to each of its members in turn.
type Sinks []Sink

// Emit calls each member's Emit.
func (s Sinks) Emit(e Event) {
	for _, x := range s {
		x.Emit(e)
	}
}

// Discard drops everything.
var Discard Sink = SinkFunc(func(Event) {})
