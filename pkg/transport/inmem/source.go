package inmem

import (
	"context"
	"fmt"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// source is one consumer of a group. Everything but the channels is guarded by the broker's mu.
type source struct {
	t     *Transport
	g     *group
	lease time.Duration
	more  chan struct{} // something may be ready
	done  chan struct{}

	out    map[*entry]struct{}
	sweep  *time.Timer // takes back what the lease has run out for
	closed bool
}

func newSource(t *Transport, cfg transport.SourceConfig) (*source, error) {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	g, err := t.b.join(cfg.Subject)
	if err != nil {
		return nil, err
	}
	s := &source{
		t: t, g: g, lease: cfg.Lease, out: map[*entry]struct{}{},
		more: make(chan struct{}, 1), done: make(chan struct{}),
	}
	g.sources[s] = struct{}{}
	s.sweep = time.AfterFunc(s.interval(), s.expire)
	return s, nil
}

func (s *source) interval() time.Duration { return max(s.lease/8, time.Millisecond) }

func (s *source) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// expire hands back what nobody has extended.
func (s *source) expire() {
	s.t.b.mu.Lock()
	defer s.t.b.mu.Unlock()
	if s.closed {
		return
	}
	now := time.Now()
	for e := range s.out {
		if !now.Before(e.deadline) {
			e.give()
			s.g.enqueue(e)
		}
	}
	s.sweep.Reset(s.interval())
}

// Fetch hands out what is ready, oldest first.
func (s *source) Fetch(ctx context.Context, limit int) ([]transport.Delivery, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		ds, closed := s.fetch(limit)
		switch {
		case closed:
			return nil, fmt.Errorf("fetch from %q: %w", s.g.subject, transport.ErrClosed)
		case len(ds) > 0:
			return ds, nil
		}
		select {
		case <-s.more:
		case <-s.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *source) fetch(limit int) (ds []transport.Delivery, closed bool) {
	b := s.t.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.closed {
		return nil, true
	}
	now := time.Now()
	for e := s.g.ready.next; e != &s.g.ready && len(ds) < limit; {
		next := e.next
		if k := s.g.keys[e.key]; k == nil || k.owner == s {
			e.take(s, now)
			ds = append(ds, &delivery{e: e, s: s, nth: e.deliveries})
		}
		e = next
	}
	return ds, false
}

// Extend begins the leases of ds anew.
func (s *source) Extend(_ context.Context, ds []transport.Delivery) error {
	s.t.b.mu.Lock()
	defer s.t.b.mu.Unlock()
	deadline := time.Now().Add(s.lease)
	for _, x := range ds {
		if d, ok := x.(*delivery); ok && d.out() {
			d.e.deadline = deadline
		}
	}
	return nil
}

// Lease is SourceConfig.Lease.
func (s *source) Lease() time.Duration { return s.lease }

// Close hands back what is out.
func (s *source) Close(context.Context) error {
	s.t.mu.Lock()
	delete(s.t.sources, s)
	s.t.mu.Unlock()
	s.t.b.mu.Lock()
	defer s.t.b.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.sweep.Stop()
	close(s.done)
	delete(s.g.sources, s)
	for e := range s.out {
		e.give()
		s.g.enqueue(e)
	}
	s.g.wake()
	return nil
}

// delivery is the nth time that e was handed out.
type delivery struct {
	e   *entry
	s   *source
	nth int
}

// out says that the delivery is neither settled nor lost; the broker's mu is held.
func (d *delivery) out() bool { return d.e.owner == d.s && d.e.deliveries == d.nth }

func (d *delivery) Message() *transport.Message { return d.e.msg }
func (d *delivery) Position() string            { return d.e.position }
func (d *delivery) Published() time.Time        { return d.e.published }
func (d *delivery) Redelivered() bool           { return d.nth > 1 }

func (d *delivery) Lost() bool {
	d.s.t.b.mu.Lock()
	defer d.s.t.b.mu.Unlock()
	return !d.out()
}

func (d *delivery) Ack() {
	d.s.t.b.mu.Lock()
	defer d.s.t.b.mu.Unlock()
	if d.out() {
		d.s.t.b.remove(d.e)
	}
}

// Dead is Ack: the broker keeps no reasons.
func (d *delivery) Dead(string) { d.Ack() }

// Retry replaces the message by moved, which is not refused for want of room.
func (d *delivery) Retry(ctx context.Context, after time.Duration, moved *transport.Message) error {
	b := d.s.t.b
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.cfg.MaxBytes > 0 && moved.Size() > b.cfg.MaxBytes {
		return fmt.Errorf("move a message of %q: %w: %d bytes, the limit is %d", moved.Subject, transport.ErrTooLarge, moved.Size(), b.cfg.MaxBytes)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.out() {
		b.remove(d.e)
		b.add(moved, after)
	}
	return nil
}

func (d *delivery) Release() {
	d.s.t.b.mu.Lock()
	defer d.s.t.b.mu.Unlock()
	if d.out() {
		d.e.give()
		d.s.g.enqueue(d.e)
	}
}
