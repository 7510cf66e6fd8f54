// Package rediskv keeps state in Redis 6.2 or newer, Valkey, or a Redis Cluster. Every transaction is one Lua script on one slot, by
// the server's clock; transactions that are made at the same time share pipelines.
//
// What Redis has acknowledged it may still lose in a crash or a failover, as it is configured: appendonly with appendfsync decides
// that, not this package. Revisions keep growing even then. A server that may evict keys loses state silently; Open warns of it.
package rediskv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// maxValue is what a value may have: a quarter of what Redis takes as one string by default.
const maxValue = 128 << 20

// headLen is what stands before the value: revision, time, nonce.
const headLen = 24

// Config says how a store is opened.
type Config struct {
	// Prefix begins the name of everything in Redis, for instance "wasm:". It must not contain braces.
	Prefix string
	// Log gets warnings about the server; nil discards them.
	Log *slog.Logger
}

// Store is a store.Store in Redis.
type Store struct {
	client  redis.UniversalClient
	cfg     Config
	scripts scripts
	batch   *batcher
	closed  atomic.Bool
	evicts  string // the policy by which the server may evict keys, or ""
	cluster bool

	mu   sync.Mutex
	hubs map[string]*hub // nil when closed
	wg   sync.WaitGroup  // the hubs' goroutines

	naming sync.RWMutex
	named  map[string]*names // by partition
}

var _ store.Joiner = (*Store)(nil)

// Open checks the server and returns the store. The client stays the caller's: it is used until Close and not closed. A client that
// repeats commands by itself (MaxRetries) is safe: a transaction knows its own nonce.
func Open(ctx context.Context, client redis.UniversalClient, cfg Config) (*Store, error) {
	if strings.ContainsAny(cfg.Prefix, "{}") {
		return nil, fmt.Errorf("open redis store: prefix %q contains braces, which mark the slot: choose another", cfg.Prefix)
	}
	if _, ok := client.(*redis.Ring); ok {
		return nil, errors.New("open redis store: a ring cannot keep a partition together: use one server, sentinels or a cluster")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{client: client, cfg: cfg, scripts: newScripts(), hubs: make(map[string]*hub), named: make(map[string]*names)}
	_, s.cluster = client.(*redis.ClusterClient)
	if err := s.inspect(ctx); err != nil {
		return nil, fmt.Errorf("open redis store: %w", err)
	}
	s.batch = newBatcher(client, s.scripts.swap)
	// One transaction of each kind shows at once what the user may not do.
	probe := s.names("")
	if _, err := s.batch.do(ctx, s.scripts.txn, 0, txnArgs(probe, store.Txn{Read: []string{"/probe"}})...); err != nil {
		s.batch.close()
		return nil, fmt.Errorf("open redis store: %w", err)
	}
	return s, nil
}

// Txn implements store.Store.
func (s *Store) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	part, err := t.Check()
	if err != nil {
		return store.Reply{}, err
	}
	for _, o := range t.Then {
		if len(o.Value) > maxValue {
			return store.Reply{}, fmt.Errorf("%w: %d bytes for key %q: redis takes %d", store.ErrTooLarge, len(o.Value), o.Key, maxValue)
		}
	}
	if s.closed.Load() {
		return store.Reply{}, store.ErrClosed
	}
	n := s.names(part)
	if isSwap(t) {
		c := s.batch.get()
		s.swap(&c.swap, n, t)
		c.size = c.swap.size()
		if err := s.batch.run(ctx, c); err != nil {
			return store.Reply{}, fmt.Errorf("redis transaction on %q: %w", t.Then[0].Key, err)
		}
		r, err := swapped(&c.swap, t)
		s.batch.put(c)
		return r, err
	}
	size := 100 * (len(t.If) + len(t.Read) + len(t.Then))
	for _, o := range t.Then {
		size += len(o.Value)
	}
	reply, err := s.batch.do(ctx, s.scripts.txn, size, txnArgs(n, t)...)
	if err != nil {
		return store.Reply{}, fmt.Errorf("redis transaction in partition %q: %w", part, err)
	}
	return txnReply(t, reply)
}

// MaxValue implements store.Store.
func (s *Store) MaxValue() int { return maxValue }

// Joins implements store.Joiner: of a transport with the same client.
func (s *Store) Joins(database any) bool {
	c, ok := database.(redis.UniversalClient)
	return ok && c == s.client
}

// Shared implements store.Store: other processes see this store.
func (s *Store) Shared() bool { return true }

// Ping implements store.Store: it writes a key that is gone a second later.
func (s *Store) Ping(ctx context.Context) error {
	if s.closed.Load() {
		return store.ErrClosed
	}
	if _, err := s.batch.do(ctx, nil, 0, "set", s.cfg.Prefix+"ping", "1", "px", "1000"); err != nil {
		return fmt.Errorf("ping redis: %w", err)
	}
	return nil
}

// Evicts returns the server's maxmemory-policy if it lets keys go that have not expired, else "". State in such a server can
// vanish.
func (s *Store) Evicts() string { return s.evicts }

// Close ends the watchers and the pipelines; what has been sent may still take place. Closing again does nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.mu.Lock()
	hubs := s.hubs
	s.hubs = nil
	s.mu.Unlock()
	for _, h := range hubs {
		h.stop()
	}
	s.batch.close()
	s.wg.Wait()
	return nil
}

// names are what a partition is made of in Redis.
type names struct {
	part, tag, head          string
	counter, watch, expiries string
}

// maxNamed is how many partitions' names are remembered.
const maxNamed = 1000

func (s *Store) names(part string) *names {
	s.naming.RLock()
	n := s.named[part]
	s.naming.RUnlock()
	if n != nil {
		return n
	}
	n = s.name(part)
	s.naming.Lock()
	defer s.naming.Unlock()
	if len(s.named) >= maxNamed {
		clear(s.named)
	}
	s.named[n.part] = n
	return n
}

func (s *Store) name(part string) *names {
	part = strings.Clone(part) // it may be a part of a long key
	tag := part
	// What stands between the braces chooses the slot: it must not end early, and must not be empty.
	if strings.ContainsAny(tag, "}%") {
		tag = strings.NewReplacer("%", "%25", "}", "%7D").Replace(tag)
	}
	if tag == "" {
		tag = "%"
	}
	head := s.cfg.Prefix + "{" + tag + "}"
	return &names{part: part, tag: tag, head: head, counter: head + "r", watch: head + "w", expiries: head + "x"}
}

func (n *names) key(key string) string { return n.head + "k:" + key[len(n.part)+1:] }

// unkey is the reverse of key.
func (n *names) unkey(key string) string { return n.part + "/" + strings.TrimPrefix(key, n.head+"k:") }

// set returns the two keys of an ordered set: that of its order and that of its scores.
func (n *names) set(set string) (order, scores string) {
	name := set[len(n.part)+1:]
	return n.head + "z:" + name, n.head + "s:" + name
}

func txnArgs(n *names, t store.Txn) []any {
	keys := []any{0, n.counter, n.watch, n.expiries}
	grows := "0"
	for _, o := range t.Then {
		if o.Kind == store.OpPut || o.Kind == store.OpAdd {
			grows = "1"
		}
	}
	args := []any{nonce(), len(t.If), len(t.Read), len(t.Then), grows}
	for _, c := range t.If {
		keys = append(keys, n.key(c.Key))
		args = append(args, packRevision(c.Revision))
	}
	for _, k := range t.Read {
		keys = append(keys, n.key(k))
	}
	for _, o := range t.Then {
		switch o.Kind {
		case store.OpPut:
			keys = append(keys, n.key(o.Key))
			args = append(args, "p", millis(o.TTL), string(o.Value))
		case store.OpDelete:
			keys = append(keys, n.key(o.Key))
			args = append(args, "d")
		case store.OpAdd:
			order, scores := n.set(o.Key)
			keys = append(keys, order, scores)
			args = append(args, "a", packScore(o.Score), o.Member)
		case store.OpRemove:
			order, scores := n.set(o.Key)
			keys = append(keys, order, scores)
			args = append(args, "r", o.Member)
		}
	}
	keys[0] = len(keys) - 1
	return append(keys, args...)
}

func txnReply(t store.Txn, reply any) (store.Reply, error) {
	v, ok := reply.([]any)
	if !ok || len(v) < 2 {
		return store.Reply{}, fmt.Errorf("redis transaction: unexpected reply %T", reply)
	}
	state, _ := v[0].(string)
	head, _ := v[1].(string)
	if len(head) != 16 {
		return store.Reply{}, fmt.Errorf("redis transaction: unexpected reply of %d bytes", len(head))
	}
	r := store.Reply{Done: state != "0", Revision: unpackRevision(head), Now: unpackTime(head[8:])}
	for i, k := range t.Read {
		var value any
		if 2+i < len(v) {
			value = v[2+i]
		}
		kv, err := unpackKV(k, value)
		if err != nil {
			return store.Reply{}, err
		}
		r.Read = append(r.Read, kv)
	}
	if state == "2" && len(t.Read) > 0 {
		return store.Reply{}, errors.New("redis transaction: it was done, and what was read is lost")
	}
	return r, nil
}

func unpackKV(key string, value any) (store.KV, error) {
	if value == nil {
		return store.KV{Key: key}, nil
	}
	v, ok := value.(string)
	if !ok || len(v) < headLen {
		return store.KV{}, fmt.Errorf("redis key of %q holds %d bytes that this store did not write", key, len(v))
	}
	return store.KV{Key: key, Revision: unpackRevision(v), Modified: unpackTime(v[8:]), Value: []byte(v[headLen:])}, nil
}

// packRevision returns a revision as a key's first bytes hold it; none for an absent key.
func packRevision(rev int64) string {
	if rev == 0 {
		return ""
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(rev))
	return string(b[:])
}

func unpackRevision(s string) int64 { return int64(binary.BigEndian.Uint64([]byte(s[:8]))) }

func unpackTime(s string) time.Time { return time.UnixMicro(unpackRevision(s)) }

func nonce() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], rand.Uint64())
	return string(b[:])
}

// millis rounds up, so that a key never expires early.
func millis(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Millisecond-1)/time.Millisecond), 10)
}
