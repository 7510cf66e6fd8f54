// Package jetstream carries messages over NATS JetStream, on a server inside this process (Embed) or elsewhere (Connect).
//
// A source is a durable consumer that is read by pull requests of our own: the credit that the server holds never exceeds the
// free slots, so that no message waits in a buffer here while its lease runs. A consumer or stream that disappears, a restarted
// server and a cut connection are noticed by status messages, missed heartbeats and reconnects, after which the consumer is
// found or made again and consumption goes on.
//
// Streams that exist are used as they are. Missing ones are made: for job subjects with work-queue retention, so that a job is
// gone when it is settled, or with interest retention where several routes read one subject, each of which then gets every
// job; for results and dead letters with limits retention and an age limit. What is moved (Delivery.Retry) waits in a stream of the group
// and is brought home by the mover of one of the group's transports, whichever are there by then, so a delayed job needs no
// process to stay alive.
//
// The server must be 2.12 or newer. What the server does not tell is said where it matters: who owns a message that was
// delivered again (see Source.Extend) and whether it was handed out just before a crash of the server (see Delivery.Redelivered).
package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	// minVersion is the oldest server that is supported.
	minVersion = "2.12.0"
	// apiTimeout bounds each request to JetStream's API, and each wait for an acknowledgement of a publish.
	apiTimeout = 5 * time.Second
	// defaultLease is how long the server waits for a silent owner.
	defaultLease = 30 * time.Second
	// formRoom is kept free below the server's size limit, for the form of headers and for those that a move adds.
	formRoom = 4 << 10
)

// Config is what a transport needs. Conn and Group must be given.
type Config struct {
	// Conn is the connection, which may still be trying to connect. It belongs to the caller, who closes it after the transport,
	// and may be shared.
	Conn *nats.Conn
	// Name is the broker's name in configuration, logs and metrics: "embedded" or "nats". Empty means "nats".
	Name string
	// Group names durable consumers and the stream of delayed messages: transports of one group share their work.
	Group string
	// CreateStreams says that missing streams may be made.
	CreateStreams bool
	// Replicas of the streams that are made; 0 means 1.
	Replicas int
	// Memory keeps the streams that are made in the server's memory instead of in files.
	Memory bool
	// MaxAge is how long results and dead letters are kept in streams that are made; 0 means for ever.
	MaxAge time.Duration
	// Lease is used where a SourceConfig names none; 0 means 30 s.
	Lease time.Duration
	// Health, which may be nil, says what keeps a server in this process from storing messages, nil where nothing does; see
	// Server.Err. Nothing is stored while it returns an error.
	Health func() error
	// Life, which may be nil, names the time since a server in this process was last killed; see Server.Life.
	Life func() string
	// Log may be nil.
	Log *slog.Logger
}

// Transport is a transport.Transport over JetStream. It may be used by many goroutines at once.
type Transport struct {
	cfg Config
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger

	pub       *publisher
	rep       *replier
	denials   denials
	maxBytes  atomic.Int64
	remade    atomic.Int64 // consumers that were made again
	gaps      atomic.Int64 // messages that streams dropped before they were read
	epoch     time.Time    // what leases are counted from, by the monotonic clock
	skew      atomic.Int64 // the most by which the server's clock may be ahead of ours, in nanoseconds
	leastSkew atomic.Int64 // the least
	skewed    atomic.Int64 // when they were measured, in nanoseconds since epoch

	watchDone chan struct{}
	stop      context.CancelFunc

	mu       sync.Mutex
	closed   bool
	pulls    map[*pull]struct{}
	routes   map[string]routeRef
	requests map[*requests]struct{}
	mover    *mover
	retained map[string]jetstream.RetentionPolicy // of the streams to make for job subjects
	sinks    []string                             // result and dead-letter subjects
	holders  map[string]string                    // streams of subjects that Depth has counted
	seen     map[string]time.Time                 // streams that were there, and since when they are missing
}

// routeRef is where a route's consumer is.
type routeRef struct{ stream, consumer string }

var _ transport.Transport = (*Transport)(nil)

// Open makes a transport on a connection. It does not wait for a server: Prepare does. ctx bounds nothing but the call.
func Open(ctx context.Context, cfg Config) (*Transport, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open NATS transport: %w", err)
	}
	if cfg.Conn == nil {
		return nil, errors.New("open NATS transport: no connection")
	}
	if cfg.Group == "" {
		return nil, errors.New("open NATS transport: no group; it names the durable consumers")
	}
	if cfg.Name == "" {
		cfg.Name = "nats"
	}
	if cfg.Replicas == 0 {
		cfg.Replicas = 1
	}
	if cfg.Lease == 0 {
		cfg.Lease = defaultLease
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	js, err := jetstream.New(cfg.Conn, jetstream.WithDefaultTimeout(apiTimeout))
	if err != nil {
		return nil, fmt.Errorf("open NATS transport: %w", err)
	}
	t := &Transport{
		cfg: cfg, nc: cfg.Conn, js: js, log: cfg.Log.With("transport", cfg.Name),
		epoch:     time.Now(),
		watchDone: make(chan struct{}),
		pulls:     make(map[*pull]struct{}),
		routes:    make(map[string]routeRef),
		requests:  make(map[*requests]struct{}),
		retained:  make(map[string]jetstream.RetentionPolicy),
		holders:   make(map[string]string),
		seen:      make(map[string]time.Time),
	}
	if t.pub, err = newPublisher(t); err != nil {
		return nil, fmt.Errorf("open NATS transport: %w", err)
	}
	t.rep = &replier{t: t, held: make(map[string]heldSubject)}
	watch, stop := context.WithCancel(context.Background())
	t.stop = stop
	t.denials.listen(t.nc, t.pub.deny)
	go t.watch(watch, t.nc.StatusChanged())
	return t, nil
}

// watch tells the parts what becomes of the connection, until ctx ends.
func (t *Transport) watch(ctx context.Context, changed chan nats.Status) {
	defer close(t.watchDone)
	defer t.nc.RemoveStatusListener(changed)
	for {
		select {
		case <-ctx.Done():
			return
		case s, open := <-changed:
			if !open {
				return
			}
			if s != nats.CONNECTED {
				t.pub.fail(fmt.Errorf("connection to NATS: %w", nats.ErrDisconnected))
			}
			t.mu.Lock()
			for p := range t.pulls {
				p.connectionChanged()
			}
			t.mu.Unlock()
		}
	}
}

// Name is the broker's name in configuration, logs and metrics.
func (t *Transport) Name() string { return t.cfg.Name }

// Features says what JetStream can do.
func (t *Transport) Features() transport.Features {
	return transport.Features{Wildcards: true, Inbox: true, Persistent: !t.cfg.Memory, SharedGroup: true}
}

// Publisher returns the publisher for results and dead letters.
func (t *Transport) Publisher() transport.Publisher { return t.pub }

// Replier returns the publisher for Reply-To subjects. It writes without storing, except to subjects that a stream holds.
func (t *Transport) Replier() transport.Publisher { return t.rep }

// health says what keeps a server in this process from storing messages.
func (t *Transport) health() error {
	if t.cfg.Health == nil {
		return nil
	}
	return t.cfg.Health()
}

// Ping asks JetStream for the account's state.
func (t *Transport) Ping(ctx context.Context) error {
	if err := t.open(); err != nil {
		return err
	}
	if err := t.health(); err != nil {
		return err
	}
	return t.api(ctx, "ask JetStream for the account", func(ctx context.Context) error {
		_, err := t.js.AccountInfo(ctx)
		return err
	})
}

// Backlog returns how many messages a route's consumer has yet to settle: those not handed out and those that are out. The
// route must have had a Source on this transport.
func (t *Transport) Backlog(ctx context.Context, route string) (int64, error) {
	t.mu.Lock()
	ref, ok := t.routes[route]
	t.mu.Unlock()
	if !ok {
		return 0, fmt.Errorf("backlog of route %q: it has no consumer on this transport", route)
	}
	var n int64
	err := t.api(ctx, fmt.Sprintf("backlog of route %q", route), func(ctx context.Context) error {
		c, err := t.js.Consumer(ctx, ref.stream, ref.consumer)
		if err == nil {
			info := c.CachedInfo()
			n = int64(info.NumPending) + int64(info.NumAckPending)
		}
		return err
	})
	return n, err
}

// Close ends what serves requests, brings home nothing more, and flushes. The sources are closed before; the connection is
// closed after, by whoever made it.
func (t *Transport) Close(ctx context.Context) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	mover := t.mover
	var serving []*requests
	for r := range t.requests {
		serving = append(serving, r)
	}
	t.mu.Unlock()

	var errs []error
	for _, r := range serving {
		errs = append(errs, r.Close())
	}
	if mover != nil {
		mover.close()
	}
	t.stop()
	<-t.watchDone
	errs = append(errs, t.pub.close())
	if t.nc.IsConnected() {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		if err := t.nc.FlushWithContext(ctx); err != nil {
			errs = append(errs, fmt.Errorf("flush the connection to NATS: %w", err))
		}
	}
	return errors.Join(errs...)
}

// open returns ErrClosed after Close.
func (t *Transport) open() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("%s transport: %w", t.cfg.Name, transport.ErrClosed)
	}
	return nil
}

// api makes a request to JetStream's API within apiTimeout and tells what its errors mean.
func (t *Transport) api(ctx context.Context, doing string, call func(context.Context) error) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	err := call(ctx)
	if err == nil {
		return nil
	}
	// A request that may not be made is never answered.
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
		if denied := t.denials.explain(start, "$JS.API."); denied != nil {
			return fmt.Errorf("%s: %w", doing, denied)
		}
		if known := t.health(); known != nil {
			return fmt.Errorf("%s: %w", doing, known)
		}
		if !t.nc.IsConnected() {
			return fmt.Errorf("%s: %w: %w", doing, t.disconnected(), err)
		}
	}
	return fmt.Errorf("%s: %w", doing, classify(err))
}

// RouteBacklog counts what a route's consumer has yet to settle. What is delayed lies in one stream for all routes.
func (t *Transport) RouteBacklog(ctx context.Context, route, _ string) (transport.Backlog, error) {
	n, err := t.Backlog(ctx, route)
	return transport.Backlog{Unsettled: n, Delayed: -1}, err
}

// Depth counts a subject's messages in the stream that holds it.
func (t *Transport) Depth(ctx context.Context, subject string) (int64, error) {
	t.mu.Lock()
	name := t.holders[subject]
	t.mu.Unlock()
	n := uint64(0)
	err := t.api(ctx, fmt.Sprintf("count the messages of %q", subject), func(ctx context.Context) (err error) {
		if name == "" {
			if name, err = t.holder(ctx, subject); errors.Is(err, jetstream.ErrStreamNotFound) {
				return nil
			} else if err != nil {
				return err
			}
		}
		info, err := t.subjectsOf(ctx, name, subject)
		if isCode(err, int(jetstream.JSErrCodeStreamNotFound)) {
			return nil
		} else if err != nil {
			return err
		}
		n = info.State.Subjects[subject]
		return nil
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil || name == "" || n == 0 {
		delete(t.holders, subject) // it may be another stream's next time
		return 0, err
	}
	t.holders[subject] = name
	return int64(n), nil
}

// subjectsOf asks for a stream and how many messages each subject has there that a filter matches, with one request: of very many subjects
// the server tells the first 100 000 in the order of the alphabet.
func (t *Transport) subjectsOf(ctx context.Context, stream, filter string) (*jetstream.StreamInfo, error) {
	ask, err := json.Marshal(struct {
		Filter string `json:"subjects_filter"`
	}{filter})
	if err != nil {
		return nil, err
	}
	m, err := t.nc.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+stream, ask)
	if err != nil {
		return nil, err
	}
	var info struct {
		Error *jetstream.APIError `json:"error"`
		jetstream.StreamInfo
	}
	if err := json.Unmarshal(m.Data, &info); err != nil {
		return nil, err
	}
	if info.Error != nil {
		return nil, info.Error
	}
	return &info.StreamInfo, nil
}

// Losses counts messages that streams dropped before they were read, and consumers that were made again.
func (t *Transport) Losses() transport.Losses {
	return transport.Losses{Gaps: t.gaps.Load(), Remade: t.remade.Load()}
}
