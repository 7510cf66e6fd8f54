package transport

import "context"

// Joint is a Publisher whose transport can lie in the same database as the store. The last two steps of a job, to publish its result
// and to settle its message, can then be taken along by the transaction of the store that records its outcome, so that all three
// are one.
type Joint interface {
	Publisher
	// Database is the connection by which a store.Joiner knows whether it is in the same database.
	Database() any
	// Ending makes what publishes m, as Publish does, and settles d, as Ack does. m may be nil: nothing is published. It is nil where that
	// cannot be part of a transaction: d is no longer held, or m is refused or too large to hold up the database with. Such a job ends
	// step by step. It may ask the broker something first.
	Ending(ctx context.Context, d Delivery, m *Message) Ending
}

// Ending is how a job's message ends, for store.Txn.Along. What else it can do is between the transport and the stores of its database.
type Ending interface {
	// Settled is called when a transaction has taken it along: the delivery is settled.
	Settled()
}
