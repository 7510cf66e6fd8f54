package store

import (
	"strings"
	"sync"
)

// feedLen is how many changes wait for a slow reader before they give way to a Resync.
const feedLen = 256

// Feed is the Watcher that implementations hand out: a bounded queue that never blocks its sender. It may be used by many
// goroutines at once.
type Feed struct {
	prefix string
	ended  func()

	mu     sync.Mutex
	ch     chan Change
	lost   bool // a Resync is the newest element and stands for what was left out
	closed bool
}

// NewFeed returns a feed of the keys that begin with prefix. The first Close calls ended, which may be nil, after Changes was closed.
func NewFeed(prefix string, ended func()) *Feed {
	return &Feed{prefix: prefix, ended: ended, ch: make(chan Change, feedLen+1)}
}

// Send queues c if it concerns the feed. It does not block: when the reader is too far behind, one Resync takes the place of
// everything until the reader has caught up.
func (f *Feed) Send(c Change) {
	if !c.Resync && !strings.HasPrefix(c.KV.Key, f.prefix) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	if len(f.ch) >= feedLen {
		// One place is kept for the Resync. While it is the newest element it covers all that is left out after it, because
		// the reader looks again only when it gets there.
		if !f.lost {
			f.ch <- Change{Resync: true}
			f.lost = true
		}
		return
	}
	f.lost = false
	f.ch <- c
}

// Changes yields what was sent; it is closed by Close.
func (f *Feed) Changes() <-chan Change { return f.ch }

// Close ends the feed. Closing again does nothing.
func (f *Feed) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	close(f.ch)
	f.mu.Unlock()
	if f.ended != nil {
		f.ended()
	}
	return nil
}
