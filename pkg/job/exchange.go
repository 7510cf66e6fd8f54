package job

import (
	"context"
	"time"
)

// Verb says how a message is settled.
type Verb uint8

// The ways to be done with a message.
const (
	// Ack: the work is over and all its outputs are out.
	Ack Verb = iota
	// Retry: to be delivered again after a while, by a move that frees the slot.
	Retry
	// Dead: as Ack, for a job that ended in a dead letter; brokers that keep a reason are told it.
	Dead
	// Leave: the slot is given back unsettled; the message is presented again later, or handed back at once when draining.
	Leave
	// Settled: as Ack, and it was done with what a stage has written.
	Settled
)

// String names the verb.
func (v Verb) String() string { return [...]string{"ack", "retry", "dead", "leave", "settled"}[v] }

// Settlement is the decision about a message, taken by the chain and carried out by the window.
type Settlement struct {
	Verb   Verb
	After  time.Duration // Retry and Leave: not before
	Reason string        // Dead: why
}

// Unclaimed is why an attempt is made without a claim.
type Unclaimed string

// The reasons.
const (
	UnclaimedPure  Unclaimed = "pure"  // nobody could see that the job ran twice
	UnclaimedStore Unclaimed = "store" // the store is away, and the route runs jobs all the same
)

// Exchange is one trip of a job through the chain. The chain's stages fill it in on their way back; the window reads
// Settlement when the trip is over. It belongs to one goroutine at a time.
type Exchange struct {
	Job *Job

	// Result is what the Runner returned for the last attempt; nil after a failure.
	Result *Result
	// Ran says that the last attempt got to the Runner.
	Ran bool
	// Took is how long the last attempt was in the Runner, whatever came of it; 0 when it did not get there.
	Took time.Duration
	// Outcome is the recorded outcome; nil while the job is unfinished (it will be retried, or another owner runs it).
	Outcome *Outcome
	// Repeat says that Outcome was recorded earlier and is only emitted again. Where it is nil, its output is no longer kept and
	// the message is settled without any.
	Repeat bool
	// Alone says that no other job runs in this process, and that none begins: this one is suspected of ending processes.
	Alone bool
	// Err is what the last attempt, or the chain itself, failed with. Observe reads it; it decides nothing.
	Err error
	// Delivery is the transport.Delivery that the job came in, for a stage that settles it with what it writes; nil where there is none.
	Delivery any
	// Published says that the result is out: it was published with the record.
	Published bool
	// Settlement is what becomes of the message.
	Settlement Settlement
	// Received is when the window took the message from the broker.
	Received time.Time
	// Draining is closed when the sidecar begins to drain: waits inside the chain end then, running jobs do not.
	Draining <-chan struct{}
	// Crashes counts the executions of this job that ended without a word, over all processes.
	Crashes int
	// Unclaimed says why the attempt under way has no claim; empty where it has one, or where nothing is claimed.
	Unclaimed Unclaimed
	// NextAttempt is set by the claim stage: it counts another attempt durably before it is made, so that the number outlives
	// the process. Nil where nothing is claimed. It fails when the claim was lost.
	NextAttempt func(ctx context.Context) error
	// Amend is set by the claim stage: it replaces the recorded outcome by one that can be published, after the first one
	// turned out to be refused for good. Nil where nothing is recorded.
	Amend func(ctx context.Context, o *Outcome) error
}

// Handler carries an exchange on. A nil error means that Settlement holds the decision. An error means that the chain itself
// could not do its work (publisher or store away): nothing is settled and the message is left for later.
type Handler func(ctx context.Context, x *Exchange) error
