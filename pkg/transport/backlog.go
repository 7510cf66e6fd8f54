package transport

import "context"

// Backlog is how much work waits for the group of a route, as its broker counts it.
type Backlog struct {
	// Unsettled are the messages that are due and not settled by anybody, handed out or not; on Kafka the consumer lag.
	Unsettled int64
	// Delayed are those that were moved and are not due yet; negative where the broker cannot say.
	Delayed int64
}

// Counter is a Transport that can count what waits.
type Counter interface {
	// RouteBacklog counts for a route that has, or had, a source on this transport. It costs a few requests.
	RouteBacklog(ctx context.Context, route, subject string) (Backlog, error)
	// Depth counts the messages that a subject without wildcards holds, read or not; none where it does not exist. On Kafka it is the most
	// there can be: what compaction or Discard has taken away counts until retention reaches it.
	Depth(ctx context.Context, subject string) (int64, error)
}

// Losses counts what an operator should know of, since the transport was opened.
type Losses struct {
	Gaps      int64 // messages that the broker dropped before they were read
	Remade    int64 // topics, streams, groups and consumers that were found deleted, or made again by others
	Rebalance int64 // times that partitions were given or taken
}

// LossCounter is a Transport that notices losses.
type LossCounter interface{ Losses() Losses }
