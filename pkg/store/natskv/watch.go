package natskv

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// expiryLag is how long after its time a key is taken to have expired, and expiryRetry when to look again if it has not.
	expiryLag   = 20 * time.Millisecond
	expiryRetry = 100 * time.Millisecond
)

// Watch implements store.Store. Each watcher has a consumer of its own, and remembers the keys below its prefix that will expire: it
// pays to watch no more than is needed. Expiry is seen about a second late at most.
func (s *Store) Watch(ctx context.Context, prefix string) (store.Watcher, error) {
	part, err := store.CheckPrefix(prefix)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, store.ErrClosed
	}
	w := &watcher{store: s, prefix: prefix, mortal: make(map[string]mortal)}
	w.ctx, w.stop = context.WithCancel(s.ctx)
	w.feed = store.NewFeed(prefix, func() {
		w.stop()
		s.mu.Lock()
		delete(s.feeds, w.feed)
		s.mu.Unlock()
	})
	if err := w.begin(ctx); err != nil {
		w.stop()
		return nil, fmt.Errorf("nats watch of partition %q: %w", part, err)
	}
	return w.feed, nil
}

// watcher turns what a tail tells into changes, and has expiries written down.
type watcher struct {
	store  *Store
	prefix string
	feed   *store.Feed
	ctx    context.Context
	stop   context.CancelFunc

	mu     sync.Mutex
	mortal map[string]mortal // keys that will expire, by subject
	first  time.Time         // none of them is due before
}

// mortal is a key that will expire.
type mortal struct {
	seq uint64
	due time.Time // by the local clock
}

// begin follows what comes, and then looks through what is there for keys that will expire.
func (w *watcher) begin(ctx context.Context) error {
	s := w.store
	filters := []string{s.prefixFilter(w.prefix)}
	live := &tail{
		store: s, filters: filters, handle: w.handle,
		resumed: w.resumed,
	}
	if _, err := live.start(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	if s.feeds == nil {
		s.mu.Unlock()
		live.drop()
		return store.ErrClosed
	}
	s.feeds[w.feed] = struct{}{}
	s.wg.Go(func() { live.run(w.ctx) })
	s.wg.Go(w.expire)
	s.mu.Unlock()
	if err := w.scan(ctx, filters); err != nil {
		_ = w.feed.Close()
		return err
	}
	return nil
}

// scan notes the keys that will expire among those that are there.
func (w *watcher) scan(ctx context.Context, filters []string) error {
	scan, done := context.WithCancel(w.ctx)
	defer done()
	defer context.AfterFunc(ctx, done)()
	complete := false
	t := &tail{store: w.store, filters: filters, all: true, headers: true}
	finish := func() {
		complete = true
		done()
	}
	t.handle = func(m *nats.Msg, meta *nats.MsgMetadata) {
		w.note(m, meta)
		if meta.NumPending == 0 || t.consumed >= t.pending {
			finish()
		}
	}
	t.idle = finish
	if _, err := t.start(ctx); err != nil {
		return err
	}
	defer t.drop()
	if t.pending == 0 {
		return nil
	}
	t.follow(scan)
	switch {
	case complete:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case w.ctx.Err() != nil:
		return store.ErrClosed
	}
	return errDisconnected
}

// resumed tells of the break. What would expire in a stream that is gone has gone with it.
func (w *watcher) resumed(whole bool) {
	if whole {
		w.mu.Lock()
		clear(w.mortal)
		w.mu.Unlock()
	}
	w.feed.Send(store.Change{Resync: true})
}

// handle passes on one message of the stream.
func (w *watcher) handle(m *nats.Msg, meta *nats.MsgMetadata) {
	key, err := w.store.subjectKey(m.Subject)
	if err != nil {
		return // not ours
	}
	w.store.clock.saw(meta.Timestamp)
	w.note(m, meta)
	seq := int64(meta.Sequence.Stream)
	c := store.Change{KV: store.KV{Key: key, Modified: meta.Timestamp}}
	if gone(m) {
		c.Deleted, c.KV.Revision = true, goneRevision(seq)
	} else {
		c.KV.Value, c.KV.Revision = m.Data, putRevision(seq+ahead(m.Header))
	}
	w.feed.Send(c)
}

// note remembers when a key will expire, or that it will not.
func (w *watcher) note(m *nats.Msg, meta *nats.MsgMetadata) {
	ttl := lifetime(m)
	seq := meta.Sequence.Stream
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.mortal[m.Subject]; ok && old.seq > seq {
		return
	}
	if ttl == 0 || gone(m) {
		delete(w.mortal, m.Subject)
		return
	}
	age := w.store.clock.now().Sub(meta.Timestamp)
	due := time.Now().Add(ttl - age + expiryLag)
	if len(w.mortal) == 0 || due.Before(w.first) {
		w.first = due
	}
	w.mortal[m.Subject] = mortal{seq: seq, due: due}
}

// expire writes down what has expired, so that every watcher sees it in its place. The expectation that the subject is empty keeps a
// key from being ended early, or over a later write; of several watchers one succeeds.
func (w *watcher) expire() {
	tick := time.NewTicker(expiryRetry)
	defer tick.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-tick.C:
		}
		for _, subject := range w.due(time.Now()) {
			m := &nats.Msg{Subject: subject, Header: make(nats.Header, 3)}
			setGone(m)
			m.Header.Set(headerExpect, strconv.Itoa(0))
			// If it fails, the key is still there, or was written meanwhile: then the tail tells. Else it is tried again.
			if _, err := w.store.publish(w.ctx, m); err != nil && w.ctx.Err() == nil && !isConflict(err) {
				w.store.cfg.Log.Debug("cannot write down an expiry", "err", err)
			}
		}
	}
}

// due returns the subjects that should have expired by now.
func (w *watcher) due(now time.Time) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.mortal) == 0 || w.first.After(now) {
		return nil
	}
	var due []string
	w.first = now.Add(time.Hour)
	for subject, m := range w.mortal {
		if !m.due.After(now) {
			due = append(due, subject)
		}
		if m.due.Before(w.first) {
			w.first = m.due
		}
	}
	return due
}
