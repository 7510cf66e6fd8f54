// Package transport is the contract between the sidecar and a broker: messages, where they come from, where they go.
//
// A message is NATS-shaped on every broker: subject, headers, reply-to, body, and a key that orders. Each broker has a room
// below this package which implements Transport; transporttest holds the suite that all of them pass. Decode, Result and
// DeadLetter translate between messages and jobs, the same on every broker.
package transport

import (
	"context"
	"errors"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Errors that a Transport's parts return, wrapped; test with errors.Is. Whatever else comes back is transient: the broker is
// away or busy, and the call may be made again.
var (
	// ErrClosed: the source, publisher or transport was closed.
	ErrClosed = errors.New("closed")
	// ErrTooLarge: the message is larger than the broker takes. Permanent.
	ErrTooLarge = errors.New("message too large")
	// ErrRejected: the broker will never take this (no such topic and it may not be made, not authorised, bad subject). Permanent.
	ErrRejected = errors.New("rejected by the broker")
	// ErrUnsupported: the broker is too old for, or cannot do, what was asked.
	ErrUnsupported = errors.New("not supported by the broker")
)

// Permanent says whether a publish failed for good, so that trying again cannot help.
func Permanent(err error) bool {
	return errors.Is(err, ErrTooLarge) || errors.Is(err, ErrRejected) || errors.Is(err, ErrUnsupported)
}

// Message is what travels over a broker. Its slices may alias the broker's buffers: read only.
type Message struct {
	Subject string
	Key     []byte // ordering and partition key; nil for none
	Header  job.Header
	ReplyTo string // where the broker itself carries one; else the header Reply-To says it
	Body    []byte
}

// Size is the number of bytes that count against Publisher.MaxBytes.
func (m *Message) Size() int {
	return len(m.Subject) + len(m.Key) + len(m.ReplyTo) + m.Header.Size() + len(m.Body)
}

// Delivery is one message that a Source has handed out. It is settled by exactly one of Ack, Dead, Retry and Release; the
// methods may be called from any goroutine, but not two of them for one delivery.
type Delivery interface {
	// Message returns the message; it stays valid until the delivery is settled.
	Message() *Message
	// Position names the message for good: the same after a redelivery, another one in a stream or topic that was deleted and
	// made again. Its form is that of the job id in docs/wire.md.
	Position() string
	// Published is when the broker took the message, by the broker's clock; zero where it does not say.
	Published() time.Time
	// Redelivered says that the message may have been handed out before, to anyone.
	Redelivered() bool
	// Lost says that the delivery is no longer this source's: its partition was revoked or its lease taken by another. Work that
	// has not begun should not begin; settling it has no effect.
	Lost() bool

	// Ack says that the work is done. It does not block: the source writes acknowledgements in batches, at once when it is
	// idle, and tries again while the broker is away; Source.Close flushes what is left.
	Ack()
	// Dead is Ack for a message that went to the dead letters; brokers that keep a reason are told it.
	Dead(reason string)
	// Retry has moved delivered again, not before after has passed and at most one second later, and settles this delivery.
	// It blocks until the move is durable. If it fails the delivery is not settled and Retry may be called again. moved
	// replaces the message (see Moved); its Subject is that of the source. A crash in between leads to one delivery too many,
	// never to none.
	Retry(ctx context.Context, after time.Duration, moved *Message) error
	// Release hands the message back unsettled, so that the broker delivers it again at once, to anyone. It does not block.
	Release()
}

// Source hands out the messages of one subject. Fetch is called by one goroutine; the other methods by any.
type Source interface {
	// Fetch waits until there is at least one message and returns at most limit (> 0) of them, never more: what is fetched
	// is what can be worked on. It returns ErrClosed after Close, ctx's error when ctx ends, and any other error when the
	// broker is away; the caller pauses a while and calls again. It may return nothing without an error.
	Fetch(ctx context.Context, limit int) ([]Delivery, error)
	// Extend keeps deliveries alive that are still worked on, in as few round trips as it can. Deliveries that turn out to be
	// taken by another become Lost. Call it at least every third of Lease.
	Extend(ctx context.Context, ds []Delivery) error
	// Lease is how long a delivery is held without Extend; 0 when it is held for as long as the source lives.
	Lease() time.Duration
	// Close stops fetching, hands back what was fetched and never returned, writes all pending settlements and leaves the
	// group, in this order, until ctx ends. Deliveries that are still out are handed back. It is idempotent.
	Close(ctx context.Context) error
}

// Publisher writes messages. It may be used by many goroutines at once; concurrent calls share round trips.
type Publisher interface {
	// Publish returns nil once the broker has taken every message as durably as it was configured to. After an error any of
	// them may or may not have been taken. See Permanent for errors that trying again cannot mend.
	Publish(ctx context.Context, ms ...*Message) error
	// MaxBytes is the largest Message.Size that the broker takes, with room left for what the broker's own form adds; 0 where
	// there is no limit.
	MaxBytes() int
}

// Tail reads what is written to a subject, as an observer: it is in no group and settles nothing.
type Tail interface {
	// Next waits for the next message.
	Next(ctx context.Context) (*Message, error)
	Close() error
}

// SourceConfig is what a route asks of a broker.
type SourceConfig struct {
	Route   string // the route's name; names durable consumers
	Subject string // where jobs come from; NATS wildcards only where Features.Wildcards says so
	Limit   int    // most deliveries out at once, left ones included; > 0
	// Bytes is how much should be on its way from the broker at once, unless one message alone is more; 0 for the source's own bound. It
	// is not heeded where the broker cannot bound bytes, nor where the source bounds them itself.
	Bytes int64
	// Lease is how long the broker waits for a silent owner before it gives its messages to another; 0 for the default of 30 s.
	Lease time.Duration
	// Sole says that the source is to be the only one of its group, as the owner of a route's order is. What others, earlier ones
	// above all, have out is handed out before anything else, in order, whether or not they still work on it; where the broker
	// keeps that back, for as long as their leases live. A broker that gives a key one owner need not heed it.
	Sole bool
	// DrainBudget bounds how long a revoked partition waits for what is running on it; 0 for the default of 5 s.
	DrainBudget time.Duration
}

// Features says what a broker can do.
type Features struct {
	Wildcards   bool // subjects of sources may hold * and >
	KeyedOwner  bool // messages with one key go to one owner at a time
	Inbox       bool // replies go to inboxes that nobody stores
	Persistent  bool // messages outlive the process
	SharedGroup bool // several processes share a subject's messages
}

// Subjects is what the routes of a configuration read and write, for Transport.Prepare.
type Subjects struct {
	Sources []string // job subjects
	Sinks   []string // result and dead-letter subjects
}

// Transport is a connection to one broker. Open of each room makes one; it may be used by many goroutines at once.
type Transport interface {
	// Name is the broker's name in configuration, logs and metrics.
	Name() string
	Features() Features
	// Prepare checks that the broker is new enough and that the subjects exist, makes those that may be made, and names those
	// that are missing and may not be. It also finds the size limits that MaxBytes reports. Errors that are Permanent need the
	// operator; for others call again.
	Prepare(ctx context.Context, s Subjects) error
	// Source begins to consume. Close it before the transport.
	Source(ctx context.Context, cfg SourceConfig) (Source, error)
	// Publisher returns the publisher for results and dead letters; it lives as long as the transport.
	Publisher() Publisher
	// Replier returns the publisher for Reply-To subjects: on NATS it writes without storing, elsewhere it is Publisher.
	Replier() Publisher
	// Tail observes a subject, from its beginning or from now on; it is in place when Tail returns.
	Tail(ctx context.Context, subject string, fromStart bool) (Tail, error)
	// Browse reads what a subject without wildcards holds now, from what was published at since on (zero: all), consuming nothing.
	// A subject that does not exist is ErrRejected, or empty where there is no difference.
	Browse(ctx context.Context, subject string, since time.Time) (Browser, error)
	// Discard takes messages that Browse has shown away for good, one by one: no Browser opened afterwards shows them. Those that are
	// gone are no error; after an error any of them may or may not be gone. Where the broker cannot take single messages away, a mark
	// beside them does the same for Browse.
	Discard(ctx context.Context, subject string, ms ...*Stored) error
	// Ping tells whether the broker answers.
	Ping(ctx context.Context) error
	// Close flushes and closes the connection, after the sources.
	Close(ctx context.Context) error
}

// Header names of docs/wire.md. They are matched without regard to case and written as they stand here.
const (
	HeaderJobID       = "Wasm-Job-Id"
	HeaderModule      = "Wasm-Module"
	HeaderKey         = "Wasm-Key"
	HeaderDelay       = "Wasm-Delay"
	HeaderDeliverAt   = "Wasm-Deliver-At"
	HeaderExpiresAt   = "Wasm-Expires-At"
	HeaderTimeout     = "Wasm-Timeout"
	HeaderMaxAttempts = "Wasm-Max-Attempts"
	HeaderBackoff     = "Wasm-Backoff"
	HeaderMaxBackoff  = "Wasm-Max-Backoff"
	HeaderPriority    = "Wasm-Priority" // reserved: handed on and not acted upon
	HeaderReplyTo     = "Reply-To"
	HeaderCorrelation = "Correlation-Id"
	HeaderTraceparent = "traceparent"
	HeaderTracestate  = "tracestate"
	HeaderContentType = "Content-Type"
	HeaderMsgID       = "Nats-Msg-Id"
	HeaderIdempotency = "Idempotency-Key"
	HeaderHops        = "Wasm-Hops"

	// HeaderSchedule and HeaderScheduledAt are of jobs that a schedule published: its name, and when they were due, RFC 3339 in UTC.
	HeaderSchedule    = "Wasm-Schedule"
	HeaderScheduledAt = "Wasm-Scheduled-At"

	HeaderResultOf = "Wasm-Result-Of"
	HeaderOK       = "Wasm-Ok"
	HeaderKind     = "Wasm-Kind"
	HeaderDigest   = "Wasm-Module-Digest"
	HeaderAttempt  = "Wasm-Attempt"
	HeaderFuel     = "Wasm-Fuel"
	HeaderDuration = "Wasm-Duration"
	HeaderSource   = "Wasm-Source"

	HeaderDeadKind     = "Wasm-Dead-Kind"
	HeaderDeadError    = "Wasm-Dead-Error"
	HeaderDeadAttempts = "Wasm-Dead-Attempts"
	HeaderDeadRoute    = "Wasm-Dead-Route"
	HeaderDeadAt       = "Wasm-Dead-At"
	HeaderDeadSource   = "Wasm-Dead-Source"

	// HeaderMoved marks what a sidecar wrote again for a job, as <generation>.<attempt>. HeaderAttempt goes with it.
	HeaderMoved = "Wasm-Moved"
	// HeaderWas is put before the name of a Nats-* header that is carried along without being obeyed.
	HeaderWas = "Wasm-Was-"
	// HeaderWatermillUUID marks a message in Watermill's wire format, on Kafka and NATS as a header, on Redis as a field. A
	// message that is published with it is written in that format.
	HeaderWatermillUUID = "_watermill_message_uuid"
)
