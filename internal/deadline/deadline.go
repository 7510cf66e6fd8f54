// Package deadline has contexts that end, and that cost next to nothing as long as nobody waits for it.
package deadline

import (
	"context"
	"sync"
	"time"
)

// Context is what context.WithDeadline returns but for its timer, which costs as much as a small job does and is there only once
// somebody waits for Done; few do. Its Err looks at the clock. The zero Context may be used after Begin.
type Context struct {
	context.Context
	until time.Time

	mu    sync.Mutex
	err   error
	timed context.Context    // with a timer; nil: nobody waits
	stop  context.CancelFunc // ends timed
}

// Begin makes c end with parent, or at a time. End must be called.
func (c *Context) Begin(parent context.Context, until time.Time) {
	c.Context, c.until = parent, until
}

// Deadline implements context.Context.
func (c *Context) Deadline() (time.Time, bool) {
	if d, ok := c.Context.Deadline(); ok && d.Before(c.until) {
		return d, true
	}
	return c.until, true
}

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed == nil {
		c.timed, c.stop = context.WithDeadline(c.Context, c.until)
		if c.err != nil {
			c.stop()
		}
	}
	return c.timed.Done()
}

// Err implements context.Context.
func (c *Context) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.timed != nil {
		c.err = c.timed.Err()
	}
	if c.err == nil {
		if c.err = c.Context.Err(); c.err == nil && !time.Now().Before(c.until) {
			c.err = context.DeadlineExceeded
		}
	}
	return c.err
}

// End gives the timer back, and stops whoever still waits.
func (c *Context) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = context.Canceled
	}
	if c.stop != nil {
		c.stop()
	}
}
