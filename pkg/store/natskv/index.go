package natskv

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/internal/ordered"
)

const (
	// fenceTimeout is how long a fence may take.
	fenceTimeout = 5 * time.Second
	// exactWait is how long a range waits for a moment at which the index is exact.
	exactWait = 50 * time.Millisecond
)

// Range implements store.Store. The first range of a partition reads all of its sets into memory and follows them from then on.
//
// Each range waits until a fence that was set after it began has come back through the index's consumer: everything written before
// is then in the index. A member that is written twice in short order may be between two places at that moment, for the stream keeps
// only its last message; a range therefore prefers a moment at which nothing was left to be told, and waits for one a little.
func (s *Store) Range(ctx context.Context, r store.Range) ([]store.Member, error) {
	part, limit, err := r.Check()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	x, err := s.index(part)
	if err != nil {
		return nil, err
	}
	if err := x.sync(ctx); err != nil {
		return nil, fmt.Errorf("nats range of set %q: %w", r.Set, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	set := x.sets[r.Set]
	if set == nil {
		return nil, nil
	}
	return set.Range(r, limit), nil
}

// index returns that of a partition, and starts it if it is the first.
func (s *Store) index(part string) (*index, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feeds == nil {
		return nil, store.ErrClosed
	}
	x := s.indexes[part]
	if x == nil {
		x = &index{
			store: s, fence: s.fences + s.id + "." + strconv.Itoa(len(s.indexes)),
			sets: make(map[string]*ordered.Set), changed: make(chan struct{}), wanted: make(chan struct{}, 1),
		}
		x.tail = &tail{
			store: s, filters: []string{s.sets + token(part) + ".>", x.fence}, all: true,
			handle: x.handle, resumed: x.resumed, idle: x.idle,
		}
		s.indexes[part] = x
		s.wg.Go(func() { x.tail.run(s.ctx) })
		s.wg.Go(x.sendFences)
	}
	return x, nil
}

// index holds the ordered sets of a partition, as the stream tells them.
type index struct {
	store *Store
	tail  *tail
	fence string // the subject of its fences

	mu      sync.Mutex
	sets    map[string]*ordered.Set
	changed chan struct{} // closed and replaced when fenced or exact changes
	seq     uint64        // stream sequence of the last message
	exact   bool          // nothing was left to be told then
	ready   bool          // what was there at the beginning has been told

	flight *flight       // the next fence, shared by all who call before it is sent
	wanted chan struct{} // has an element when there is a flight
}

// flight is a fence for all who called before it was sent.
type flight struct {
	done chan struct{}
	seq  int64
	err  error
}

// sync waits until the index has all that was written before the call.
func (x *index) sync(ctx context.Context) error {
	seq, err := x.setFence(ctx)
	if err != nil {
		return err
	}
	var patience <-chan time.Time
	for {
		x.mu.Lock()
		changed, passed, exact := x.changed, x.ready && x.seq >= uint64(seq), x.exact
		x.mu.Unlock()
		if passed && exact {
			return nil
		}
		if passed && patience == nil {
			timer := time.NewTimer(exactWait)
			defer timer.Stop()
			patience = timer.C
		}
		select {
		case <-changed:
		case <-patience:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-x.store.ctx.Done():
			return store.ErrClosed
		}
	}
}

// setFence writes a fence after the call and returns its sequence. Calls that come while one is written share the next.
func (x *index) setFence(ctx context.Context) (int64, error) {
	x.mu.Lock()
	f := x.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		x.flight = f
		x.wanted <- struct{}{}
	}
	x.mu.Unlock()
	select {
	case <-f.done:
		return f.seq, f.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-x.store.ctx.Done():
		return 0, store.ErrClosed
	}
}

// sendFences writes fences one after the other, as they are wanted.
func (x *index) sendFences() {
	for {
		select {
		case <-x.wanted:
		case <-x.store.ctx.Done():
			return
		}
		x.mu.Lock()
		f := x.flight
		x.flight = nil
		x.mu.Unlock()
		ctx, cancel := context.WithTimeout(x.store.ctx, fenceTimeout)
		m := &nats.Msg{Subject: x.fence, Header: make(nats.Header, 1)}
		m.Header.Set(headerTTL, goneSeconds)
		f.seq, f.err = x.store.publish(ctx, m)
		if errors.Is(f.err, store.ErrFull) {
			// A full stream takes no fence. What it took last in this partition will do.
			f.seq, f.err = x.lastSequence(ctx)
		}
		cancel()
		close(f.done)
	}
}

// lastSequence returns that of the partition's last set message.
func (x *index) lastSequence(ctx context.Context) (int64, error) {
	m, err := x.store.lastMessage(ctx, x.tail.filters[0])
	return m.Seq, err
}

func (x *index) handle(m *nats.Msg, meta *nats.MsgMetadata) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if m.Subject != x.fence {
		x.apply(m)
	}
	x.seq = meta.Sequence.Stream
	x.exact = meta.NumPending == 0
	x.ready = x.ready || x.exact || x.tail.consumed >= x.tail.pending
	x.wake()
}

// idle notes that nothing is left to be told: what was, at the beginning, has expired before its turn came.
func (x *index) idle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.exact, x.ready = true, true
	x.wake()
}

func (x *index) wake() {
	close(x.changed)
	x.changed = make(chan struct{})
}

func (x *index) apply(m *nats.Msg) {
	name, member, err := x.store.subjectMember(m.Subject)
	if err != nil {
		return // not ours
	}
	set := x.sets[name]
	if gone(m) {
		if set != nil && set.Remove(member) && set.Len() == 0 {
			delete(x.sets, name)
		}
		return
	}
	score, err := strconv.ParseInt(string(m.Data), 10, 64)
	if err != nil {
		return
	}
	if set == nil {
		set = new(ordered.Set)
		x.sets[name] = set
	}
	set.Add(member, score)
}

// resumed begins anew when the tail does.
func (x *index) resumed(whole bool) {
	if !whole {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sets = make(map[string]*ordered.Set)
	x.seq, x.exact, x.ready = 0, false, x.tail.pending == 0
}
