package rediskv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// watchTTL is how long Redis goes on publishing a partition's changes after its last watcher was heard of.
	watchTTL = time.Minute
	// sweepEvery is how late an expiry is seen.
	sweepEvery = 100 * time.Millisecond
	// sweepLen bounds one sweep, which holds up the server.
	sweepLen = 100
	// scanLen is how many keys are looked at in one step when a partition is first watched.
	scanLen = 500
	// startTimeout bounds each step of beginning to watch; retryAfter is the pause when one fails.
	startTimeout = 10 * time.Second
	retryAfter   = 200 * time.Millisecond
)

// Watch implements store.Store. The first watcher of a partition has the keys scanned that will expire, which takes about a second for
// each million keys in the server; expiry is seen up to 100 ms late.
func (s *Store) Watch(ctx context.Context, prefix string) (store.Watcher, error) {
	part, err := store.CheckPrefix(prefix)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for {
		h, err := s.hub(part)
		if err != nil {
			return nil, err
		}
		select {
		case <-h.ready:
		case <-ctx.Done():
			h.leaveIfUnused()
			return nil, ctx.Err()
		}
		if s.closed.Load() {
			return nil, store.ErrClosed
		}
		if h.err != nil {
			return nil, h.err
		}
		if f := h.join(prefix); f != nil {
			return f, nil
		}
		// The last watcher left in this very moment: begin anew.
	}
}

// hub returns the partition's hub, starting it if it is the first.
func (s *Store) hub(part string) (*hub, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hubs == nil {
		return nil, store.ErrClosed
	}
	h := s.hubs[part]
	if h == nil {
		h = &hub{store: s, names: s.names(part), feeds: make(map[*store.Feed]struct{}), ready: make(chan struct{})}
		h.ctx, h.stop = context.WithCancel(context.Background())
		s.hubs[part] = h
		s.wg.Go(h.run)
	}
	return h, nil
}

// hub is what the watchers of one partition share: a subscription, and a sweep for expired keys.
type hub struct {
	store *Store
	names *names
	ctx   context.Context
	stop  context.CancelFunc
	ready chan struct{} // closed when watching has begun, or failed with err
	err   error

	mu    sync.Mutex
	feeds map[*store.Feed]struct{}
	ended bool
}

// join adds a feed; nil when the hub has ended.
func (h *hub) join(prefix string) *store.Feed {
	var f *store.Feed
	f = store.NewFeed(prefix, func() {
		h.mu.Lock()
		delete(h.feeds, f)
		h.mu.Unlock()
		h.leaveIfUnused()
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return nil
	}
	h.feeds[f] = struct{}{}
	return f
}

// leaveIfUnused ends the hub when nobody listens.
func (h *hub) leaveIfUnused() {
	h.store.mu.Lock()
	h.mu.Lock()
	if len(h.feeds) == 0 {
		h.ended = true
		if h.store.hubs[h.names.part] == h {
			delete(h.store.hubs, h.names.part)
		}
		h.stop()
	}
	h.mu.Unlock()
	h.store.mu.Unlock()
}

func (h *hub) send(c store.Change) {
	h.mu.Lock()
	feeds := make([]*store.Feed, 0, len(h.feeds))
	for f := range h.feeds {
		feeds = append(feeds, f)
	}
	h.mu.Unlock()
	for _, f := range feeds {
		f.Send(c)
	}
}

// run subscribes, says that somebody watches, and passes on what comes until the hub is stopped.
func (h *hub) run() {
	defer h.end()
	sub := h.store.client.Subscribe(h.ctx, h.names.watch)
	h.store.wg.Go(func() {
		<-h.ctx.Done()
		_ = sub.Close() // ends Receive, which does not watch a context
	})
	err := h.begin(sub)
	if err != nil {
		h.err = fmt.Errorf("redis watch of partition %q: %w", h.names.part, err)
	}
	close(h.ready)
	if err != nil {
		return
	}
	h.store.wg.Go(h.sweep)
	for h.ctx.Err() == nil {
		m, err := sub.Receive(h.ctx)
		if err != nil {
			h.pause()
			continue
		}
		switch m := m.(type) {
		case *redis.Subscription:
			// The connection is a new one. What was published in between is lost.
			h.send(store.Change{Resync: true})
		case *redis.Message:
			if c, err := h.names.change(m.Payload); err == nil {
				h.send(c)
			}
		}
	}
}

// begin waits until the subscription stands and the keys that will expire are known. What is published meanwhile waits in the
// connection and is dropped by feeds that are not there yet.
func (h *hub) begin(sub *redis.PubSub) error {
	ctx, cancel := context.WithTimeout(h.ctx, startTimeout)
	defer cancel()
	if _, err := sub.ReceiveTimeout(ctx, startTimeout); err != nil {
		return explain(err)
	}
	return h.announce(h.ctx)
}

// announce says that somebody watches the partition, and gathers the keys that will expire if nobody has.
func (h *hub) announce(ctx context.Context) error {
	s, n := h.store, h.names
	known, err := s.batch.do(ctx, s.scripts.watch, 0, 2, n.watch, n.expiries, watchTTL.Milliseconds())
	if err != nil {
		return err
	}
	if known == int64(1) {
		return nil
	}
	node := redis.UniversalClient(s.client)
	if c, ok := s.client.(*redis.ClusterClient); ok {
		if node, err = c.MasterForKey(ctx, n.watch); err != nil {
			return err
		}
	}
	for cursor := uint64(0); ; {
		var keys []string
		keys, cursor, err = node.Scan(ctx, cursor, escapeGlob(n.head)+"k:*", scanLen).Result()
		if err != nil {
			return explain(err)
		}
		if len(keys) > 0 {
			args := []any{len(keys) + 1, n.expiries}
			for _, k := range keys {
				args = append(args, k)
			}
			if _, err = s.batch.do(ctx, s.scripts.gather, 0, args...); err != nil {
				return err
			}
		}
		if cursor == 0 {
			break
		}
	}
	_, err = s.batch.do(ctx, nil, 0, "set", n.watch, "1", "px", watchTTL.Milliseconds())
	return err
}

// sweep has expired keys published, and sees to it that Redis goes on publishing.
func (h *hub) sweep() {
	s, n := h.store, h.names
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
		}
		for {
			ctx, cancel := context.WithTimeout(h.ctx, startTimeout)
			swept, err := s.batch.do(ctx, s.scripts.sweep, 0, 3, n.counter, n.watch, n.expiries, sweepLen, watchTTL.Milliseconds())
			if err == nil && swept == int64(-1) {
				// Redis forgot us: it was flushed, or we were away too long. Nothing was published since.
				if err = h.announce(ctx); err == nil {
					h.send(store.Change{Resync: true})
				}
			}
			cancel()
			if err != nil || swept != int64(sweepLen) {
				break
			}
		}
	}
}

// pause keeps a lost connection from being tried without rest.
func (h *hub) pause() {
	select {
	case <-h.ctx.Done():
	case <-time.After(retryAfter):
	}
}

// end takes the hub out and closes what is left of its watchers.
func (h *hub) end() {
	h.stop()
	h.store.mu.Lock()
	if h.store.hubs[h.names.part] == h {
		delete(h.store.hubs, h.names.part)
	}
	h.store.mu.Unlock()
	h.mu.Lock()
	h.ended = true
	feeds := h.feeds
	h.feeds = nil
	h.mu.Unlock()
	for f := range feeds {
		_ = f.Close()
	}
}

// change reads what a script published.
func (n *names) change(payload string) (store.Change, error) {
	const fixed = 1 + 8 + 8 + 2
	if len(payload) < fixed {
		return store.Change{}, errors.New("message too short")
	}
	keyLen := int(binary.BigEndian.Uint16([]byte(payload[fixed-2 : fixed])))
	if len(payload) < fixed+keyLen || !strings.HasPrefix(payload[fixed:], n.head+"k:") {
		return store.Change{}, errors.New("message of another kind")
	}
	c := store.Change{Deleted: payload[0] == 'd', KV: store.KV{
		Key:      n.unkey(payload[fixed : fixed+keyLen]),
		Revision: unpackRevision(payload[1:]),
		Modified: unpackTime(payload[9:]),
	}}
	if !c.Deleted {
		c.KV.Value = []byte(payload[fixed+keyLen:])
	}
	return c, nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}
