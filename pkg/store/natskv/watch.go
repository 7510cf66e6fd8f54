package natskv

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// expiryEvery is how often keys are looked for whose time is over.
const expiryEvery = 200 * time.Millisecond

// Watch implements store.Store. Expiry is seen about a second late at most.
func (s *Store) Watch(ctx context.Context, prefix string) (store.Watcher, error) {
	part, err := store.CheckPrefix(prefix)
	if err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var f *store.Feed
	f = store.NewFeed(prefix, func() {
		s.mu.Lock()
		delete(s.feeds, f)
		s.mu.Unlock()
	})
	m := &member{ctx: ctx, look: func() {
		if s.feeds != nil {
			s.feeds[f] = prefix
		}
	}}
	err = s.do(m)
	if err == nil && s.closed.Load() {
		err = store.ErrClosed
	}
	if err != nil {
		_ = f.Close() // always nil
		return nil, fmt.Errorf("nats watch of partition %q: %w", part, err)
	}
	return f, nil
}

// expire forgets keys whose time is over, until the store is closed. Those that are watched are written down as deleted, so that every
// watcher sees it in its place; of several processes that do so one succeeds.
func (s *Store) expire() {
	tick := time.NewTicker(expiryEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		watched := s.st.expire(s.clock.now().UnixNano(), s.watched)
		s.mu.Unlock()
		for _, key := range watched {
			s.wg.Go(func() { s.expireKey(key) })
		}
	}
}

// watched says whether somebody watches a key. s.mu is held.
func (s *Store) watched(key string) bool {
	for _, prefix := range s.feeds {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// expireKey writes down that a key has expired.
func (s *Store) expireKey(key string) {
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	m := &member{ctx: ctx, writes: appendOp(nil, store.Delete(key)), keys: []string{key}, room: true, test: func(now int64) bool {
		it, ok := s.st.keys.find(key)
		return ok && it.expires != 0 && it.expires <= now
	}}
	if err := s.do(m); err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Debug("cannot write down an expiry", "err", err)
		s.mu.Lock()
		s.st.again(key)
		s.mu.Unlock()
	}
}
