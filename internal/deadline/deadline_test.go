package deadline

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A Context ends as one of the standard library does, whoever waits for it and from when on.
func TestContext(t *testing.T) {
	t.Parallel()
	closed := func(ctx context.Context) bool {
		synctest.Wait()
		select {
		case <-ctx.Done():
			return true
		default:
			return false
		}
	}
	tests := []struct {
		name string
		stop func(b *Context, cancel context.CancelFunc)
		want error
	}{
		{"deadline", func(*Context, context.CancelFunc) { time.Sleep(time.Second) }, context.DeadlineExceeded},
		{"canceled", func(_ *Context, cancel context.CancelFunc) { cancel() }, context.Canceled},
		{"ended", func(b *Context, _ context.CancelFunc) { b.End() }, context.Canceled},
	}
	for _, tt := range tests {
		for _, waits := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					parent, cancel := context.WithCancel(context.WithValue(t.Context(), t, 7))
					defer cancel()
					b := &Context{}
					b.Begin(parent, time.Now().Add(time.Second))
					defer b.End()
					child, stop := context.WithTimeout(b, time.Hour)
					defer stop()
					if !waits {
						stop()
						until := b.until
						b = &Context{} // for whose Done nobody has asked
						b.Begin(parent, until)
						defer b.End()
					}
					if d, ok := b.Deadline(); !ok || !d.Equal(b.until) || b.Value(t) != 7 {
						t.Errorf("deadline %v, value %v", d, b.Value(t))
					}
					if b.Err() != nil || waits && (closed(b) || closed(child)) {
						t.Errorf("it ends with %v before its time", b.Err())
					}
					tt.stop(b, cancel)
					if !closed(b) || waits && (!closed(child) || !errors.Is(child.Err(), tt.want)) {
						t.Errorf("it does not end; one of its own ends with %v", child.Err())
					}
					cancel()
					time.Sleep(2 * time.Second)
					if !errors.Is(b.Err(), tt.want) {
						t.Errorf("it ended with %v, want %v", b.Err(), tt.want)
					}
				})
			})
		}
	}
}

// A Cancellable ends as one of the standard library does, whoever waits for it and from when on, and tells why.
func TestCancellable(t *testing.T) {
	t.Parallel()
	lost := errors.New("lost")
	for name, tt := range map[string]struct {
		stop  func(c *Cancellable, parent context.CancelCauseFunc)
		cause error
	}{
		"cancelled": {func(c *Cancellable, _ context.CancelCauseFunc) { c.Cancel(lost); c.Cancel(nil) }, lost},
		"parent":    {func(_ *Cancellable, parent context.CancelCauseFunc) { parent(lost) }, lost},
		"over":      {func(c *Cancellable, _ context.CancelCauseFunc) { c.Cancel(nil); c.Cancel(lost) }, context.Canceled},
	} {
		for _, waits := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), &lost, 7))
				defer cancel(nil)
				var c Cancellable
				c.Begin(parent)
				defer c.Cancel(nil)
				if waits {
					child, stop := context.WithCancel(&c)
					defer stop()
					defer func() {
						if <-child.Done(); !errors.Is(context.Cause(child), tt.cause) {
							t.Errorf("a child ended for %v, want %v", context.Cause(child), tt.cause)
						}
					}()
				}
				if c.Err() != nil || c.Value(&lost) != 7 {
					t.Errorf("before its end: %v, value %v", c.Err(), c.Value(&lost))
				}
				tt.stop(&c, cancel)
				if err, cause := c.Err(), context.Cause(&c); !errors.Is(err, context.Canceled) || !errors.Is(cause, tt.cause) {
					t.Errorf("ended with %v for %v, want %v", err, cause, tt.cause)
				}
				<-c.Done()
				if c.Value(&lost) != 7 {
					t.Error("the parent's value is lost")
				}
			})
		}
	}
}
