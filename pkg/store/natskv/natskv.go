// Package natskv keeps state in a JetStream stream of its own, on NATS 2.12 or newer, embedded or remote. A key is a subject of which
// the stream keeps the last message, its revision twice the message's sequence: the stream's counter, which never goes back; a stream that is made
// begins to count at the time, so that this holds for one that is made again, too. A
// transaction is one publication with its expectation, or its part of an atomic batch. A server with files flushes every batch to
// disk, which costs milliseconds; concurrent transactions share them.
//
// Durability is the server's: a single server flushes to disk every two minutes unless its sync_interval says otherwise, so that a
// power failure may undo what was acknowledged; the death of the process does not. With Replicas above 1 reads go to the stream's
// leader, at the price of base64 and of reading several keys twice.
//
// Times to live are whole seconds, rounded up. The server notes an expiry without telling anyone; it is watchers that write it
// down, so that all see it in order. Ordered sets are held in the memory of every process that reads one of their partition, about
// 100 bytes a member and its name.
package natskv

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// headroom is what a message needs besides its value: headers, of which one names a subject.
	headroom = 8 << 10
	minMajor = 2
	minMinor = 12
)

// Config says how a store is opened.
type Config struct {
	// Stream is the stream's name, for instance "WASM_STATE". It is created if it is not there, and again if it is deleted while
	// the store is open.
	Stream string
	// NoCreate says that the stream may not be created: Open then fails with store.ErrUnsupported where it is missing.
	NoCreate bool
	// Prefix begins the stream's subjects; "" takes the stream's name in lower case.
	Prefix string
	// Memory keeps the stream in the server's memory instead of its files.
	Memory bool
	// Replicas is how many servers of a cluster keep the stream; 0 means 1.
	Replicas int
	// MaxBytes bounds the stream; a write above it fails with store.ErrFull. 0 means what the account allows.
	MaxBytes int64
	// Health, which may be nil, says what keeps a server in this process from storing messages, nil where nothing does. Nothing is
	// written while it returns an error.
	Health func() error
	// Log gets what is worth debugging; nil discards it.
	Log *slog.Logger
}

// Store is a store.Store in JetStream.
type Store struct {
	nc     *nats.Conn
	cfg    Config
	js     jetstream.JetStream
	mux    *mux
	clock  clock
	id     string
	group  group
	keeper keeper
	closed atomic.Bool
	direct atomic.Bool // reads may go to any server that has the stream, because only one has it

	keys, sets, guards, fences string // beginnings of subjects

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	feeds   map[*store.Feed]struct{} // nil when closed
	indexes map[string]*index
}

var _ store.Store = (*Store)(nil)

// Open creates the stream if need be and returns the store. The connection stays the caller's: it is used until Close and not closed.
func Open(ctx context.Context, nc *nats.Conn, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Replicas = max(cfg.Replicas, 1)
	if cfg.Prefix == "" {
		cfg.Prefix = strings.ToLower(cfg.Stream)
	}
	if !plain(cfg.Stream) || strings.ContainsAny(cfg.Stream, `/\`) {
		return nil, fmt.Errorf("open nats store: stream name %q: want letters, digits, hyphens and underscores", cfg.Stream)
	}
	for _, p := range strings.Split(cfg.Prefix, ".") {
		if !plain(p) || strings.HasPrefix(p, "$") {
			return nil, fmt.Errorf("open nats store: prefix %q is no subject", cfg.Prefix)
		}
	}
	if v := nc.ConnectedServerVersion(); !atLeast(v, minMajor, minMinor) {
		return nil, fmt.Errorf("open nats store: server version is %q: want %d.%d or newer, for atomic batches", v, minMajor, minMinor)
	}
	s := &Store{
		nc: nc, cfg: cfg, id: nuid.Next(), keeper: keeper{wanted: make(chan struct{}, 1)},
		keys: cfg.Prefix + ".k.", sets: cfg.Prefix + ".z.", guards: cfg.Prefix + ".g.", fences: cfg.Prefix + ".f.",
		feeds: make(map[*store.Feed]struct{}), indexes: make(map[string]*index),
	}
	var err error
	if s.js, err = jetstream.New(nc); err != nil {
		return nil, fmt.Errorf("open nats store: %w", err)
	}
	if err := s.create(ctx); err != nil {
		return nil, fmt.Errorf("open nats store: stream %s: %w", cfg.Stream, err)
	}
	if err := s.readClock(ctx); err != nil {
		return nil, fmt.Errorf("open nats store: stream %s: read the server's clock: %w", cfg.Stream, err)
	}
	if s.mux, err = newMux(nc, s.keeper.want); err != nil {
		return nil, fmt.Errorf("open nats store: %w", err)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.wg.Go(s.keepClock)
	s.wg.Go(s.keepStream)
	s.group = group{store: s, queue: make(chan *member, groupQueue), patience: requestTimeout}
	s.wg.Go(s.group.run)
	return s, nil
}

// MaxValue implements store.Store: what the server takes as one message, less what comes with it.
func (s *Store) MaxValue() int { return int(s.nc.MaxPayload()) - headroom }

// Shared implements store.Store: other processes see this store.
func (s *Store) Shared() bool { return true }

// Ping implements store.Store: it writes a message that is gone a second later.
func (s *Store) Ping(ctx context.Context) error {
	if s.closed.Load() {
		return store.ErrClosed
	}
	m := nats.NewMsg(s.guards + "ping." + s.id)
	m.Header.Set(headerTTL, "1")
	if _, err := s.publish(ctx, m); err != nil {
		return fmt.Errorf("ping nats stream %s: %w", s.cfg.Stream, err)
	}
	return nil
}

// Close ends the watchers and what waits; what has been sent may still take place. Closing again does nothing.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.stop()
	s.mu.Lock()
	feeds := s.feeds
	s.feeds = nil
	s.mu.Unlock()
	for f := range feeds {
		_ = f.Close()
	}
	s.mux.close()
	s.wg.Wait()
	return nil
}

func atLeast(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

// seconds rounds up to what a message's TTL can be.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
