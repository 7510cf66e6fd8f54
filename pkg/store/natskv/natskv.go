// Package natskv keeps state in a JetStream stream of its own, on NATS 2.12 or newer, embedded or remote. The stream is a log of what
// transactions did, many to a message; every process that has the store open follows it and holds in memory what it comes to: the name,
// revision and expiry of each key, about 150 bytes, and each ordered set, about 100 bytes a member. Values stay in the stream, but for the
// latest few megabytes, and are read when they are asked for.
//
// A process decides by its memory what a transaction does, and writes that on the condition that the stream still ends where its memory
// does. The server refuses it otherwise: another was faster, and it decides again. So transactions of one process share messages, and
// those of different processes take turns. Revisions are made of the stream's sequences, which never go back; a stream that is made
// begins to count at the time, so that this holds for one that is made again, too.
//
// What is of no use any more is purged from the beginning of the stream, after what is still of use there was moved to its end. The first
// thing a process does is to read the stream.
//
// Durability is the server's: a single server flushes to disk every two minutes unless its sync_interval says otherwise, so that a
// power failure may undo what was acknowledged; the death of the process does not.
package natskv

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

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
	// Stream is the stream's name, for instance "WASM_STORE". It is created if it is not there, and again if it is deleted while
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
	id     writerID
	queue  queue
	lost   int // rounds in a row that others were faster in; the writer's own
	tail   tail
	keeper keeper
	closed atomic.Bool
	direct atomic.Bool  // reads may go to any server that has the stream, because only one has it
	limit  atomic.Int64 // of the stream, in bytes; none above 0: there is none

	subject string        // of the log
	crowded chan struct{} // has an element when the stream is full

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	st      state
	changed chan struct{}          // closed when st has changed
	feeds   map[*store.Feed]string // with their prefixes; nil when closed
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
		return nil, fmt.Errorf("open nats store: server version is %q: want %d.%d or newer", v, minMajor, minMinor)
	}
	s := &Store{
		nc: nc, cfg: cfg, keeper: keeper{wanted: make(chan struct{}, 1)}, queue: queue{wanted: make(chan struct{}, 1)},
		subject: cfg.Prefix + ".log", crowded: make(chan struct{}, 1),
		st: newState(), changed: make(chan struct{}), feeds: make(map[*store.Feed]string),
	}
	if _, err := rand.Read(s.id[:]); err != nil {
		return nil, fmt.Errorf("open nats store: %w", err)
	}
	s.tail.store = s
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
	if err := s.tail.start(ctx); err != nil {
		s.stop()
		s.mux.close()
		return nil, fmt.Errorf("open nats store: stream %s: %w", cfg.Stream, err)
	}
	s.wg.Go(func() { s.tail.run(s.ctx) })
	s.wg.Go(s.keepClock)
	s.wg.Go(s.keepStream)
	s.wg.Go(s.writer)
	s.wg.Go(s.expire)
	s.wg.Go(s.clean)
	return s, nil
}

// MaxValue implements store.Store: what the server takes as one message, less what comes with it.
func (s *Store) MaxValue() int { return int(s.nc.MaxPayload()) - headroom }

// Shared implements store.Store: other processes see this store.
func (s *Store) Shared() bool { return true }

// Ping implements store.Store: it writes a bundle in which nothing is done.
func (s *Store) Ping(ctx context.Context) error {
	if s.closed.Load() {
		return store.ErrClosed
	}
	if err := s.do(&member{ctx: ctx, writes: []byte{effectNothing}}); err != nil {
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

// plain says whether s is one token of a subject.
func plain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c >= 0x7f || c == '.' || c == '*' || c == '>':
			return false
		}
	}
	return s != ""
}
