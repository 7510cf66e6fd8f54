package deadline

import (
	"context"
	"sync"
)

// Cancellable is what context.WithCancelCause returns, but it enters itself with its parent, which all jobs share, only once
// somebody waits for Done or it is cancelled; few do, and few are. The zero Cancellable may be used after Begin.
type Cancellable struct {
	context.Context

	mu     sync.Mutex
	ended  bool
	real   context.Context // nil: nobody waits, and it is not cancelled
	cancel context.CancelCauseFunc
}

// Begin makes c end with parent, or with Cancel. Cancel must be called.
func (c *Cancellable) Begin(parent context.Context) { c.Context = parent }

// Cancel ends c for a cause, nil when its work is done. Only the first call counts.
func (c *Cancellable) Cancel(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cause != nil && !c.ended {
		c.make()
	}
	c.ended = true
	if c.real != nil {
		c.cancel(cause)
	}
}

// make makes the real context. mu is held.
func (c *Cancellable) make() {
	if c.real == nil {
		c.real, c.cancel = context.WithCancelCause(c.Context)
	}
}

// Done implements context.Context.
func (c *Cancellable) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.make()
	if c.ended {
		c.cancel(nil)
	}
	return c.real.Done()
}

// Err implements context.Context.
func (c *Cancellable) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.real != nil:
		return c.real.Err()
	case c.ended:
		return context.Canceled
	}
	return c.Context.Err()
}

// Value implements context.Context, and lets context.Cause find the cause.
func (c *Cancellable) Value(key any) any {
	c.mu.Lock()
	ctx := c.real
	c.mu.Unlock()
	if ctx == nil {
		ctx = c.Context
	}
	return ctx.Value(key)
}
