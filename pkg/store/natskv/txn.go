package natskv

import (
	"context"
	"fmt"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	part, err := t.Check()
	if err != nil {
		return store.Reply{}, err
	}
	if s.closed.Load() {
		return store.Reply{}, store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return store.Reply{}, err
	}
	m := &member{ctx: ctx, room: true}
	m.conds, m.reads = append(m.few.conds[:0], t.If...), append(m.few.reads[:0], t.Read...) // ours, though the caller may go
	size, limit := 0, s.MaxValue()
	for _, o := range t.Then {
		if len(o.Value) > limit {
			return store.Reply{}, fmt.Errorf("%w: %d bytes for key %q: the nats server takes %d", store.ErrTooLarge, len(o.Value), o.Key, limit)
		}
		size += len(o.Key) + len(o.Member) + len(o.Value) + 32
	}
	if len(t.Then) > 0 {
		m.writes, m.keys = make([]byte, 0, size), make([]string, 0, len(t.Then))
	}
	for _, o := range t.Then {
		m.writes = appendOp(m.writes, o)
		m.keys = append(m.keys, o.Key)
		m.room = m.room && (o.Kind == store.OpDelete || o.Kind == store.OpRemove)
	}
	if most := int(s.nc.MaxPayload()) - headroom/2; len(m.writes) > most {
		return store.Reply{}, fmt.Errorf("%w: %d bytes in one transaction: the nats server takes %d", store.ErrTooLarge, len(m.writes), most)
	}
	if err := s.do(m); err != nil {
		return store.Reply{}, fmt.Errorf("nats transaction in partition %q: %w", part, err)
	}
	return m.reply, nil
}

// Range implements store.Store.
func (s *Store) Range(ctx context.Context, r store.Range) ([]store.Member, error) {
	_, limit, err := r.Check()
	if err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var found []store.Member
	m := &member{ctx: ctx, look: func() {
		found = nil
		if set := s.st.sets[r.Set]; set != nil {
			found = set.Range(r, limit)
		}
	}}
	if err := s.do(m); err != nil {
		return nil, fmt.Errorf("nats range of set %q: %w", r.Set, err)
	}
	return found, nil
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
