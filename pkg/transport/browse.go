package transport

import (
	"context"
	"time"
)

// Stored is a message as a subject holds it.
type Stored struct {
	Message
	Position  string    // as Delivery.Position
	Published time.Time // by the broker's clock
}

// Browser reads what a subject held when it was opened, the oldest first as far as the broker has an order. One goroutine at a
// time may use it.
type Browser interface {
	// Next returns io.EOF behind the last message. After another error the browser is to be closed.
	Next(ctx context.Context) (*Stored, error)
	Close() error
}
