package natskv

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// lostPause lies between two looks for a value that has been moved, and lostTries is how often.
	lostPause = 10 * time.Millisecond
	lostTries = 500
)

// member is what waits for a round: a transaction, a range, or something of the store's own.
type member struct {
	ctx    context.Context
	conds  []store.Cond
	reads  []string
	writes []byte   // its effects; nil where there are none
	keys   []string // that it writes
	room   bool     // it makes room, and is let into a full stream

	// test, which may be nil, says under the store's lock whether there is something to write, and may change writes. It takes the
	// place of conds.
	test func(now int64) bool
	// look, which may be nil, is called under the store's lock at the moment that the answer is about. It may be called again.
	look func()

	held   bool              // the conditions held
	loaded map[uint64][]byte // bundles that were read for it
	lacks  uint64            // the bundle that it needs besides; 0: none
	few    struct {          // what conds and reads usually need
		conds [1]store.Cond
		reads [1]string
	}

	done  chan struct{}
	reply store.Reply
	err   error
}

// end answers m.
func (m *member) end(err error) {
	m.err = err
	close(m.done)
}

// touches says whether m depends on one of keys.
func (m *member) touches(keys map[string]struct{}) bool {
	if len(keys) == 0 {
		return false
	}
	for _, c := range m.conds {
		if _, ok := keys[c.Key]; ok {
			return true
		}
	}
	for _, k := range m.reads {
		if _, ok := keys[k]; ok {
			return true
		}
	}
	return m.test != nil || m.look != nil
}

// queue is what waits for the next round. It is bounded by who calls.
type queue struct {
	mu      sync.Mutex
	members []*member
	wanted  chan struct{} // has an element when there is something in it
}

func (q *queue) add(m *member) {
	q.mu.Lock()
	q.members = append(q.members, m)
	q.mu.Unlock()
	select {
	case q.wanted <- struct{}{}:
	default:
	}
}

// take adds what is in the queue to waiting.
func (q *queue) take(waiting []*member) []*member {
	q.mu.Lock()
	defer q.mu.Unlock()
	waiting = append(waiting, q.members...)
	clear(q.members)
	q.members = q.members[:0]
	return waiting
}

// do has m answered.
func (s *Store) do(m *member) error {
	for again := 0; ; again++ {
		m.done, m.lacks = make(chan struct{}), 0
		s.queue.add(m)
		select {
		case <-m.done:
		case <-m.ctx.Done():
			return m.ctx.Err()
		case <-s.ctx.Done():
			return store.ErrClosed
		}
		if m.err != nil || m.lacks == 0 {
			return m.err
		}
		b, err := s.load(m.ctx, m.lacks)
		if err != nil {
			return err
		}
		if b == nil { // it is gone, and so is what stood there: look again
			if again == lostTries {
				return fmt.Errorf("message %d of stream %q is missing: a value was in it", m.lacks, s.cfg.Stream)
			}
			if err := pause(m.ctx, lostPause); err != nil {
				return err
			}
			continue
		}
		if m.loaded == nil {
			m.loaded = make(map[uint64][]byte)
		}
		m.loaded[m.lacks] = b
	}
}
