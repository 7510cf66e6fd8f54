package inmem

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Browse reads what a subject holds now.
func (t *Transport) Browse(ctx context.Context, subject string, since time.Time) (transport.Browser, error) {
	if err := transport.ValidSubject(subject); err != nil {
		return nil, fmt.Errorf("%w: browse: %w", transport.ErrRejected, err)
	}
	if err := t.Ping(ctx); err != nil {
		return nil, fmt.Errorf("browse %q: %w", subject, transport.ErrClosed)
	}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	var es []*entry
	for _, e := range t.b.all {
		if e.msg.Subject == subject && !e.published.Before(since) {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(x, y *entry) int { return cmp.Compare(x.seq, y.seq) })
	x := &browser{}
	for _, e := range es {
		x.left = append(x.left, &transport.Stored{Message: *e.msg, Position: e.position, Published: e.published})
	}
	return x, nil
}

type browser struct{ left []*transport.Stored }

// Next returns the next message.
func (x *browser) Next(ctx context.Context) (*transport.Stored, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(x.left) == 0 {
		return nil, io.EOF
	}
	m := x.left[0]
	x.left = x.left[1:]
	return m, nil
}

// Close does nothing.
func (x *browser) Close() error { return nil }

// Discard removes messages.
func (t *Transport) Discard(ctx context.Context, subject string, ms ...*transport.Stored) error {
	if err := t.Ping(ctx); err != nil {
		return fmt.Errorf("discard at %q: %w", subject, err)
	}
	gone := make(map[string]bool, len(ms))
	for _, m := range ms {
		gone[m.Position] = true
	}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	for _, e := range t.b.all {
		if e.msg.Subject == subject && gone[e.position] {
			t.b.remove(e)
		}
	}
	return nil
}
