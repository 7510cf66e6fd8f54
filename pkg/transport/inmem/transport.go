package inmem

import (
	"context"
	"fmt"
	"sync"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Transport is a connection to a Broker. It may be used by many goroutines at once.
type Transport struct {
	b *Broker

	mu      sync.Mutex
	closed  bool
	done    chan struct{} // closed with closed
	sources map[*source]struct{}
	tails   map[*tail]struct{}
}

var _ transport.Transport = (*Transport)(nil)

// Open makes a broker of its own and connects to it.
func Open(cfg Config) (*Transport, error) {
	b, err := NewBroker(cfg)
	if err != nil {
		return nil, err
	}
	return b.Open(), nil
}

// Open connects to the broker.
func (b *Broker) Open() *Transport {
	return &Transport{b: b, done: make(chan struct{}), sources: map[*source]struct{}{}, tails: map[*tail]struct{}{}}
}

// Name returns "memory".
func (t *Transport) Name() string { return "memory" }

// Features says what the broker can do.
func (t *Transport) Features() transport.Features {
	return transport.Features{Wildcards: true, KeyedOwner: true}
}

// Prepare checks the subjects. From now on the messages of those that jobs come from are kept for a source, never dropped.
func (t *Transport) Prepare(_ context.Context, s transport.Subjects) error {
	for _, sink := range s.Sinks {
		if err := transport.ValidSubject(sink); err != nil {
			return fmt.Errorf("%w: %w", transport.ErrRejected, err)
		}
	}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	for _, subject := range s.Sources {
		if err := transport.ValidPattern(subject); err != nil {
			return fmt.Errorf("%w: %w", transport.ErrRejected, err)
		}
		if _, err := t.b.join(subject); err != nil {
			return err
		}
	}
	return nil
}

// Source begins to consume a subject, wildcards included. Sources of equal subjects share its messages.
func (t *Transport) Source(_ context.Context, cfg transport.SourceConfig) (transport.Source, error) {
	if err := transport.ValidPattern(cfg.Subject); err != nil {
		return nil, fmt.Errorf("%w: open source of route %q: %w", transport.ErrRejected, cfg.Route, err)
	}
	if cfg.Limit <= 0 || cfg.Lease < 0 {
		return nil, fmt.Errorf("open source of route %q: limit %d must be above 0 and lease %v not below", cfg.Route, cfg.Limit, cfg.Lease)
	}
	if cfg.Lease == 0 {
		cfg.Lease = defaultLease
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("open source of route %q: %w", cfg.Route, transport.ErrClosed)
	}
	s, err := newSource(t, cfg)
	if err != nil {
		return nil, fmt.Errorf("open source of route %q: %w", cfg.Route, err)
	}
	t.sources[s] = struct{}{}
	return s, nil
}

// Publisher returns the publisher. Publish waits while the subject's source has Config.MaxMessages to work off.
func (t *Transport) Publisher() transport.Publisher { return publisher{t} }

// Replier returns the publisher.
func (t *Transport) Replier() transport.Publisher { return publisher{t} }

// Tail observes a subject, wildcards included; its beginning is the oldest message that is still held. A reader that falls
// Config.MaxMessages behind misses the oldest.
func (t *Transport) Tail(_ context.Context, subject string, fromStart bool) (transport.Tail, error) {
	if err := transport.ValidPattern(subject); err != nil {
		return nil, fmt.Errorf("%w: %w", transport.ErrRejected, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("tail %q: %w", subject, transport.ErrClosed)
	}
	x := &tail{t: t, subject: subject, more: make(chan struct{}, 1), done: make(chan struct{})}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	if fromStart {
		for _, m := range t.b.matching(subject) {
			x.offer(m, t.b.cfg.MaxMessages)
		}
	}
	t.b.tails[x] = struct{}{}
	t.tails[x] = struct{}{}
	return x, nil
}

// RouteBacklog counts what is held for a subject's sources. What is delayed counts as due.
func (t *Transport) RouteBacklog(_ context.Context, _, subject string) (transport.Backlog, error) {
	return transport.Backlog{Unsettled: int64(t.b.Held(subject)), Delayed: -1}, nil
}

// Depth counts what is held of a subject.
func (t *Transport) Depth(_ context.Context, subject string) (int64, error) {
	return int64(t.b.Held(subject)), nil
}

// Ping fails once the transport is closed.
func (t *Transport) Ping(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("ping: %w", transport.ErrClosed)
	}
	return nil
}

// Close closes the sources and tails that are still open, and fails every later call. The broker keeps its messages.
func (t *Transport) Close(ctx context.Context) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	close(t.done)
	sources, tails := t.sources, t.tails
	t.sources, t.tails = nil, nil
	t.mu.Unlock()
	for s := range sources {
		_ = s.Close(ctx) // cannot fail
	}
	for x := range tails {
		_ = x.Close() // cannot fail
	}
	return nil
}

type publisher struct{ t *Transport }

// Publish holds the messages, in order.
func (p publisher) Publish(ctx context.Context, ms ...*transport.Message) error {
	if err := p.t.Ping(ctx); err != nil {
		return fmt.Errorf("publish: %w", transport.ErrClosed)
	}
	limit := p.MaxBytes()
	for _, m := range ms {
		if err := transport.ValidSubject(m.Subject); err != nil {
			return fmt.Errorf("publish: %w: %w", transport.ErrRejected, err)
		}
		if limit > 0 && m.Size() > limit {
			return fmt.Errorf("publish to %q: %w: %d bytes, the limit is %d", m.Subject, transport.ErrTooLarge, m.Size(), limit)
		}
	}
	for _, m := range ms {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("publish to %q: %w", m.Subject, err)
		}
		if err := p.t.b.publish(ctx, p.t.done, m); err != nil {
			return err
		}
	}
	return nil
}

// MaxBytes returns Config.MaxBytes.
func (p publisher) MaxBytes() int { return p.t.b.cfg.MaxBytes }

type tail struct {
	t       *Transport
	subject string
	more    chan struct{} // something was queued
	done    chan struct{}

	queue  []*transport.Message // guarded by the broker's mu
	closed bool                 // guarded by the broker's mu
}

// offer queues m if it matches; the broker's mu is held.
func (x *tail) offer(m *transport.Message, limit int) {
	if !transport.MatchSubject(x.subject, m.Subject) {
		return
	}
	if len(x.queue) >= limit {
		x.queue = x.queue[1:]
	}
	x.queue = append(x.queue, m)
	select {
	case x.more <- struct{}{}:
	default:
	}
}

// Next waits for the next message.
func (x *tail) Next(ctx context.Context) (*transport.Message, error) {
	for {
		x.t.b.mu.Lock()
		closed := x.closed
		if !closed && len(x.queue) > 0 {
			m := x.queue[0]
			x.queue[0] = nil
			x.queue = x.queue[1:]
			x.t.b.mu.Unlock()
			return m, nil
		}
		x.t.b.mu.Unlock()
		if closed {
			return nil, fmt.Errorf("tail %q: %w", x.subject, transport.ErrClosed)
		}
		select {
		case <-x.more:
		case <-x.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Close ends the tail; a Next that waits returns ErrClosed.
func (x *tail) Close() error {
	x.t.mu.Lock()
	delete(x.t.tails, x)
	x.t.mu.Unlock()
	x.t.b.mu.Lock()
	defer x.t.b.mu.Unlock()
	if !x.closed {
		x.closed, x.queue = true, nil
		delete(x.t.b.tails, x)
		close(x.done)
	}
	return nil
}
