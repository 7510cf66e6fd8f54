package runtime

import (
	"context"
	"sync"
	"time"
)

// bounded is the context of a guest: the job's, until a time. It is what context.WithDeadline returns but for its timer, which
// costs as much as a small job does and is there only once somebody waits for Done; few guests wait for anything. It carries
// the run's meter. end must be called.
type bounded struct {
	context.Context
	until time.Time
	meter meter

	mu    sync.Mutex
	err   error
	timed context.Context    // with a timer; nil: nobody waits
	stop  context.CancelFunc // ends timed
}

// Deadline implements context.Context.
func (b *bounded) Deadline() (time.Time, bool) { return b.until, true }

// Done implements context.Context.
func (b *bounded) Done() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed == nil {
		b.timed, b.stop = context.WithDeadline(b.Context, b.until)
		if b.err != nil {
			b.stop()
		}
	}
	return b.timed.Done()
}

// Err implements context.Context.
func (b *bounded) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && b.timed != nil {
		b.err = b.timed.Err()
	}
	if b.err == nil {
		if b.err = b.Context.Err(); b.err == nil && !time.Now().Before(b.until) {
			b.err = context.DeadlineExceeded
		}
	}
	return b.err
}

// Value implements context.Context.
func (b *bounded) Value(key any) any {
	if _, ok := key.(meterKey); ok {
		return &b.meter
	}
	return b.Context.Value(key)
}

// end gives the timer back, and stops whoever still waits.
func (b *bounded) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = context.Canceled
	}
	if b.stop != nil {
		b.stop()
	}
}
