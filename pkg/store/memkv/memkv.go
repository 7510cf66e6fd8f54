// Package memkv keeps state in the memory of one process: for tests, and for a sidecar that may forget everything when it ends.
// It implements package store's contract exactly, expiry included, with the process's clock as the database's clock.
package memkv

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/internal/ordered"
)

// entryBytes is what a key or member is taken to cost besides its own bytes.
const entryBytes = 128

// Config says how a store is made.
type Config struct {
	// MaxBytes bounds keys, values and members together, counted with 128 bytes for each; a write above it fails with store.ErrFull.
	// 0 means no bound.
	MaxBytes int64
}

// Store is a store.Store in memory. Each partition has a lock of its own.
type Store struct {
	cfg    Config
	rev    atomic.Int64
	bytes  atomic.Int64
	closed atomic.Bool

	mu    sync.RWMutex
	parts map[string]*partition
}

var _ store.Store = (*Store)(nil)

// Open returns an empty store.
func Open(cfg Config) (*Store, error) {
	if cfg.MaxBytes < 0 {
		return nil, fmt.Errorf("open memory store: MaxBytes is %d: want 0 (no bound) or more", cfg.MaxBytes)
	}
	return &Store{cfg: cfg, parts: make(map[string]*partition)}, nil
}

// part returns the partition, making it if it is not there.
func (s *Store) part(name string) *partition {
	s.mu.RLock()
	p := s.parts[name]
	s.mu.RUnlock()
	if p != nil {
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p = s.parts[name]; p == nil {
		p = newPartition(s)
		s.parts[name] = p
	}
	return p
}

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	name, err := t.Check()
	if err != nil {
		return store.Reply{}, err
	}
	if err := s.usable(ctx); err != nil {
		return store.Reply{}, err
	}
	p := s.part(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.closed.Load() {
		return store.Reply{}, store.ErrClosed
	}
	return p.txn(t)
}

// Range implements store.Store.
func (s *Store) Range(ctx context.Context, r store.Range) ([]store.Member, error) {
	name, limit, err := r.Check()
	if err != nil {
		return nil, err
	}
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	p := s.part(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	set := p.sets[r.Set]
	if set == nil {
		return nil, nil
	}
	return set.Range(r, limit), nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string) (store.Watcher, error) {
	name, err := store.CheckPrefix(prefix)
	if err != nil {
		return nil, err
	}
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	p := s.part(name)
	var f *store.Feed
	f = store.NewFeed(prefix, func() {
		p.mu.Lock()
		delete(p.feeds, f)
		p.mu.Unlock()
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.closed.Load() {
		return nil, store.ErrClosed
	}
	p.feeds[f] = struct{}{}
	return f, nil
}

// MaxValue implements store.Store: there is no limit.
func (s *Store) MaxValue() int { return 0 }

// Shared implements store.Store: no other process sees this store.
func (s *Store) Shared() bool { return false }

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	if s.cfg.MaxBytes > 0 && s.bytes.Load() >= s.cfg.MaxBytes {
		return s.full()
	}
	return nil
}

// Close forgets everything and ends all watchers. Closing again does nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range s.parts {
		p.close()
	}
	return nil
}

func (s *Store) usable(ctx context.Context) error {
	if s.closed.Load() {
		return store.ErrClosed
	}
	return ctx.Err()
}

func (s *Store) full() error {
	return fmt.Errorf("%w: more than %d bytes: raise the memory store's bound", store.ErrFull, s.cfg.MaxBytes)
}

// partition holds the keys and sets of one partition.
type partition struct {
	store *Store

	mu     sync.Mutex
	keys   map[string]*item
	sets   map[string]*ordered.Set
	expiry expiries
	timer  *time.Timer // fires when the first of expiry is due; nil when nothing waits
	feeds  map[*store.Feed]struct{}
}

// item is a key that exists.
type item struct {
	kv      store.KV
	expires time.Time // zero: never
	at      int       // index in the heap, -1 when not in it
}

func newPartition(s *Store) *partition {
	return &partition{
		store: s,
		keys:  make(map[string]*item),
		sets:  make(map[string]*ordered.Set),
		feeds: make(map[*store.Feed]struct{}),
	}
}

func (p *partition) close() {
	p.mu.Lock()
	if p.timer != nil {
		p.timer.Stop()
	}
	feeds := p.feeds
	p.keys, p.sets, p.expiry, p.timer, p.feeds = nil, nil, nil, nil, nil
	p.mu.Unlock()
	for f := range feeds {
		_ = f.Close()
	}
}

// txn runs a transaction that was checked. p.mu is held.
func (p *partition) txn(t store.Txn) (store.Reply, error) {
	now := time.Now().Round(0)
	p.expire(now)
	reply := store.Reply{Done: true, Now: now}
	for _, c := range t.If {
		if p.revision(c.Key) != c.Revision {
			reply.Done = false
			break
		}
	}
	for _, k := range t.Read {
		kv := store.KV{Key: k}
		if it := p.keys[k]; it != nil {
			kv = it.kv
			kv.Value = append([]byte(nil), kv.Value...)
		}
		reply.Read = append(reply.Read, kv)
	}
	if !reply.Done || len(t.Then) == 0 {
		return reply, nil
	}
	if err := p.reserve(t.Then); err != nil {
		return store.Reply{}, err
	}
	reply.Revision = p.store.rev.Add(1)
	for _, o := range t.Then {
		p.apply(o, reply.Revision, now)
	}
	p.arm()
	return reply, nil
}

func (p *partition) revision(key string) int64 {
	if it := p.keys[key]; it != nil {
		return it.kv.Revision
	}
	return 0
}

// reserve counts what ops will take, and refuses it when it is too much. Writes that only make room always pass.
func (p *partition) reserve(ops []store.Op) error {
	var delta int64
	for _, o := range ops {
		switch o.Kind {
		case store.OpPut:
			delta += size(o.Key, o.Value) - p.held(o.Key)
		case store.OpDelete:
			delta -= p.held(o.Key)
		case store.OpAdd:
			if !p.has(o) {
				delta += size(o.Member, nil)
			}
		case store.OpRemove:
			if p.has(o) {
				delta -= size(o.Member, nil)
			}
		}
	}
	total := p.store.bytes.Add(delta)
	if delta > 0 && p.store.cfg.MaxBytes > 0 && total > p.store.cfg.MaxBytes {
		p.store.bytes.Add(-delta)
		return p.store.full()
	}
	return nil
}

func size(name string, value []byte) int64 { return int64(len(name)+len(value)) + entryBytes }

func (p *partition) held(key string) int64 {
	if it := p.keys[key]; it != nil {
		return size(key, it.kv.Value)
	}
	return 0
}

func (p *partition) has(o store.Op) bool {
	set := p.sets[o.Key]
	if set == nil {
		return false
	}
	_, ok := set.Score(o.Member)
	return ok
}

func (p *partition) apply(o store.Op, rev int64, now time.Time) {
	switch o.Kind {
	case store.OpPut:
		it := p.keys[o.Key]
		if it == nil {
			it = &item{at: -1}
			p.keys[o.Key] = it
		}
		it.kv = store.KV{Key: o.Key, Value: append([]byte(nil), o.Value...), Revision: rev, Modified: now}
		it.expires = time.Time{}
		if o.TTL > 0 {
			it.expires = now.Add(o.TTL)
		}
		p.expiry.set(it)
		p.send(store.Change{KV: it.kv})
	case store.OpDelete:
		if it := p.keys[o.Key]; it != nil {
			p.drop(it, rev, now)
		}
	case store.OpAdd:
		set := p.sets[o.Key]
		if set == nil {
			set = new(ordered.Set)
			p.sets[o.Key] = set
		}
		set.Add(o.Member, o.Score)
	case store.OpRemove:
		if set := p.sets[o.Key]; set != nil && set.Remove(o.Member) && set.Len() == 0 {
			delete(p.sets, o.Key)
		}
	}
}

// drop takes a key out and tells the watchers.
func (p *partition) drop(it *item, rev int64, now time.Time) {
	delete(p.keys, it.kv.Key)
	it.expires = time.Time{}
	p.expiry.set(it)
	p.send(store.Change{KV: store.KV{Key: it.kv.Key, Revision: rev, Modified: now}, Deleted: true})
}

func (p *partition) send(c store.Change) {
	for f := range p.feeds {
		f.Send(c)
	}
}
