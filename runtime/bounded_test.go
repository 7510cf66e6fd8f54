package runtime

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// The context of a guest ends as one of the standard library does, whoever waits for it and from when on.
func TestBounded(t *testing.T) {
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
		stop func(b *bounded, cancel context.CancelFunc)
		want error
	}{
		{"deadline", func(*bounded, context.CancelFunc) { time.Sleep(time.Second) }, context.DeadlineExceeded},
		{"canceled", func(_ *bounded, cancel context.CancelFunc) { cancel() }, context.Canceled},
		{"ended", func(b *bounded, _ context.CancelFunc) { b.end() }, context.Canceled},
	}
	for _, tt := range tests {
		for _, waits := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					parent, cancel := context.WithCancel(context.WithValue(t.Context(), t, 7))
					defer cancel()
					b := &bounded{Context: parent, until: time.Now().Add(time.Second)}
					defer b.end()
					child, stop := context.WithTimeout(b, time.Hour)
					defer stop()
					if !waits {
						stop()
						b = &bounded{Context: parent, until: b.until} // for whose Done nobody has asked
						defer b.end()
					}
					if d, ok := b.Deadline(); !ok || !d.Equal(b.until) || b.Value(t) != 7 || b.Value(meterKey{}) != &b.meter {
						t.Errorf("deadline %v, values %v and %v", d, b.Value(t), b.Value(meterKey{}))
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
