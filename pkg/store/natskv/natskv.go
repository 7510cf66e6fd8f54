// Package natskv keeps state in a JetStream stream of its own, on NATS 2.12 or newer, embedded or remote. A key is a subject of which
// the stream keeps the last message, its revision twice the message's sequence: the stream's counter, which never goes back. A
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
	"errors"
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
	// Stream is the stream's name, for instance "WASM_STATE". It is created if it is not there.
	Stream string
	// Prefix begins the stream's subjects; "" takes the stream's name in lower case.
	Prefix string
	// Memory keeps the stream in the server's memory instead of its files.
	Memory bool
	// Replicas is how many servers of a cluster keep the stream; 0 means 1.
	Replicas int
	// MaxBytes bounds the stream; a write above it fails with store.ErrFull. 0 means what the account allows.
	MaxBytes int64
	// Log gets what is worth debugging; nil discards it.
	Log *slog.Logger
}

// Store is a store.Store in JetStream.
type Store struct {
	nc     *nats.Conn
	cfg    Config
	stream jetstream.Stream
	mux    *mux
	clock  clock
	id     string
	group  group
	closed atomic.Bool
	direct bool // reads may go to any server that has the stream, because only one has it

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
		nc: nc, cfg: cfg, id: nuid.Next(),
		keys: cfg.Prefix + ".k.", sets: cfg.Prefix + ".z.", guards: cfg.Prefix + ".g.", fences: cfg.Prefix + ".f.",
		feeds: make(map[*store.Feed]struct{}), indexes: make(map[string]*index),
	}
	if err := s.create(ctx); err != nil {
		return nil, fmt.Errorf("open nats store: stream %s: %w", cfg.Stream, err)
	}
	if err := s.readClock(ctx); err != nil {
		return nil, fmt.Errorf("open nats store: stream %s: read the server's clock: %w", cfg.Stream, err)
	}
	var err error
	if s.mux, err = newMux(nc); err != nil {
		return nil, fmt.Errorf("open nats store: %w", err)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.wg.Go(s.keepClock)
	s.group = group{store: s, queue: make(chan *member, groupQueue)}
	s.wg.Go(s.group.run)
	return s, nil
}

// create makes the stream, or checks that the one that is there will do.
func (s *Store) create(ctx context.Context) error {
	js, err := jetstream.New(s.nc)
	if err != nil {
		return err
	}
	want := jetstream.StreamConfig{
		Name:               s.cfg.Stream,
		Description:        "state of wasmsidecar",
		Subjects:           []string{s.cfg.Prefix + ".>"},
		Storage:            jetstream.FileStorage,
		Replicas:           s.cfg.Replicas,
		MaxMsgsPerSubject:  1,
		MaxBytes:           s.cfg.MaxBytes,
		Discard:            jetstream.DiscardNew, // nothing makes room by itself
		AllowDirect:        s.cfg.Replicas == 1,
		AllowMsgTTL:        true,
		AllowAtomicPublish: true,
	}
	if want.MaxBytes == 0 {
		want.MaxBytes = -1
	}
	if s.cfg.Memory {
		want.Storage = jetstream.MemoryStorage
	}
	// Look first: a stream that is there needs no permission to create it. It is made here alone, never at run time: nats-server
	// 2.15.2 may crash when a stream is made in the moment in which one of the same name is deleted.
	s.stream, err = js.Stream(ctx, s.cfg.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s.stream, err = js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process was faster
			s.stream, err = js.Stream(ctx, s.cfg.Stream)
		}
	}
	if err != nil {
		return err
	}
	got := s.stream.CachedInfo().Config
	switch {
	case !got.AllowMsgTTL, !got.AllowAtomicPublish:
		return errors.New("it does not allow message TTLs and atomic batches: delete it, or name another")
	case got.MaxMsgsPerSubject != 1 || got.Discard != jetstream.DiscardNew || got.MaxAge != 0:
		return errors.New("it does not keep one message of each subject for good: delete it, or name another")
	case got.SubjectDeleteMarkerTTL != 0:
		// The server's own marker may overwrite a message that was written in the moment of the expiry.
		return errors.New("it has subject_delete_marker_ttl, which can lose writes: set it to 0")
	case len(got.Subjects) != 1 || got.Subjects[0] != want.Subjects[0]:
		return fmt.Errorf("its subjects are %v: want %v", got.Subjects, want.Subjects)
	}
	s.direct = got.AllowDirect && got.Replicas == 1
	return nil
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
	if _, err := s.mux.publish(ctx, m); err != nil {
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
