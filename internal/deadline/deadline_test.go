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
