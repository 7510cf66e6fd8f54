package transport

import (
	"context"
	"time"
)

// Measured is what a transport to a server offers to measurements beside the contract.
type Measured interface {
	// Relay does a sidecar's bare work by the broker's own client, in that client's own fast way: it takes the messages of from,
	// in the group's name and in any order, writes to to a message with the same body and with HeaderResultOf in place of HeaderJobID, and
	// settles. With an empty to it only takes and settles. It returns after n messages, or where n is 0 when ctx ends, and says how
	// long that took from the first message on. Nobody else may consume from; a crash may lose or repeat messages.
	Relay(ctx context.Context, from, to string, n int) (time.Duration, error)
	// Remove deletes subjects with all that is in them, and what is kept beside them and for the group: consumers, delayed
	// messages. It is for what a measurement has made; what is not there is no error.
	Remove(ctx context.Context, subjects ...string) error
}
