package natskv

import (
	"context"
	"fmt"
	"time"
)

const (
	// cleanEvery is how often the beginning of the log is looked at.
	cleanEvery = 2 * time.Second
	// purgeLeast is how much there must be at the beginning that is of no use before it is purged, and purgeShare which share of the whole.
	purgeLeast = 1 << 20
	purgeShare = 16
	// wasteLeast is how much waste there may be beside as much as is of use.
	wasteLeast = 32 << 20
	// moveBytes is about how much of the beginning is moved at once.
	moveBytes = 256 << 10
	// fullShare is which share of a bounded stream is kept for what makes room, and wasteShare which is not worth moving anything.
	fullShare  = 16
	wasteShare = 64
)

// isFull says whether so many bytes more would take what is kept for making room. s.mu is held.
func (s *Store) isFull(n int) bool {
	limit := s.limit.Load()
	if limit <= 0 || s.st.total+int64(n+bundleCost) <= limit-limit/fullShare {
		return false
	}
	select {
	case s.crowded <- struct{}{}:
	default:
	}
	return true
}

// clean purges the beginning of the log of what is of no use any more, until the store is closed. Where what is of use lies between,
// and too much is not, it is moved to the end.
//
// Only beginnings are purged: what undid something must not go before what it undid.
func (s *Store) clean() {
	tick := time.NewTicker(cleanEvery)
	defer tick.Stop()
	for failed := false; ; {
		full := false
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		case <-s.crowded:
			full = true
		}
		for more := true; more && s.ctx.Err() == nil; {
			var err error
			more, err = s.cleanOnce(full)
			if err != nil && !failed && s.ctx.Err() == nil {
				s.cfg.Log.Warn("what is of no use stays in the store's stream", "stream", s.cfg.Stream, "err", err)
			}
			if failed = err != nil; failed {
				break
			}
		}
	}
}

// cleanOnce moves and purges a little, and says whether there may be more to do.
func (s *Store) cleanOnce(full bool) (more bool, err error) {
	s.mu.Lock()
	if !s.st.ready {
		s.mu.Unlock()
		return false, nil
	}
	var head []bundle
	if waste := s.st.total - s.st.live; waste > s.st.live+wasteLeast || full && waste > s.limit.Load()/wasteShare {
		for size := 0; len(head) < len(s.st.bundles)-1 && size < moveBytes; {
			b := s.st.bundles[len(head)]
			size += int(b.size)
			head = append(head, b)
		}
	}
	s.mu.Unlock()
	if err := s.move(head); err != nil {
		return false, err
	}
	s.mu.Lock()
	var dead uint64
	size := int64(0)
	for _, b := range s.st.bundles[:max(0, len(s.st.bundles)-1)] {
		if b.keys > 0 || b.adds > 0 {
			break
		}
		dead, size = b.seq, size+int64(b.size)
	}
	worth := size >= max(purgeLeast, s.st.total/purgeShare) || full && size > 0
	s.mu.Unlock()
	if !worth {
		return false, nil
	}
	return len(head) > 0, s.purge(dead)
}

// move writes what is of use in some bundles once more.
func (s *Store) move(bundles []bundle) error {
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	bodies := make(map[uint64][]byte, len(bundles))
	for _, b := range bundles {
		if b.keys == 0 && b.adds == 0 {
			continue
		}
		s.mu.Lock()
		body := s.st.recent[b.seq]
		s.mu.Unlock()
		if body == nil {
			var err error
			if body, err = s.load(ctx, b.seq); err != nil {
				return fmt.Errorf("move: %w", err)
			}
		}
		bodies[b.seq] = body
	}
	if len(bodies) == 0 {
		return nil
	}
	m := &member{ctx: ctx, room: true}
	m.test = func(int64) bool {
		m.writes = nil
		for seq, body := range bodies {
			m.writes = s.st.ofUse(m.writes, seq, body)
		}
		return len(m.writes) > 0
	}
	if err := s.do(m); err != nil {
		return fmt.Errorf("move: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for seq := range bodies {
		if b := s.st.at(seq); b != nil {
			b.adds = 0
		}
	}
	return nil
}

// purge removes the beginning of the stream up to a sequence.
func (s *Store) purge(seq uint64) error {
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	body := fmt.Appendf(nil, `{"seq":%d}`, seq+1)
	if err := s.api(ctx, "STREAM.PURGE."+s.cfg.Stream, body); err != nil {
		return fmt.Errorf("purge up to %d: %w", seq, err)
	}
	s.mu.Lock()
	s.st.purged(seq)
	s.mu.Unlock()
	return nil
}
