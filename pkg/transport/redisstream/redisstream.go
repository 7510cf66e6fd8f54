// Package redisstream carries jobs and results over Redis Streams: one stream per subject, one consumer group for all sidecars.
//
// It promises that no job is lost and none is stuck: entries of a silent owner are claimed by another after the lease, a group
// that vanished is made again at the beginning of its stream, an entry without any field that we know is still a job, and job
// streams are never trimmed. A job that is done is acknowledged and deleted, so a job stream is as long as its backlog. It
// works on a single server, behind Sentinel and on Cluster; all keys that belong to a stream share its slot.
//
// # Messages
//
// The body is the field body, else payload, else data, else a JSON object of all fields; every other field is a header.
// Where the body is made of all fields, those that this project or a convention names (Wasm-*, Nats-*, ce-*, Reply-To,
// Correlation-Id, traceparent and the like) are headers as well. A field may occur more than once. Watermill's format, told by
// the field _watermill_message_uuid, is read without being asked and written for a message that has a header of that name.
//
// # Positions
//
// A position is <stream>/<entry id>. Redis makes entry ids from its clock, so those of a stream that was deleted and made
// again are new as long as the server's clock does not run backwards, and unless both happen within one millisecond.
//
// # Keys
//
// Beside the streams there are two keys for each job stream on which a job was ever delayed: wasm:{<stream>}:due:<stream>, a
// sorted set, and wasm:{<stream>}:moved:<stream>, a hash. They hold the messages that Retry has moved, until they are due. A third one,
// wasm:{<stream>}:count:<stream>, a hash, counts what was settled, so that what was trimmed can be told.
package redisstream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	defaultLease = 30 * time.Second
	defaultBlock = 500 * time.Millisecond
	// defaultMaxBytes is what MaxBytes says until Prepare has asked the server, and at most: one message is held in memory
	// several times over on its way.
	defaultMaxBytes = 64 << 20
)

// Config is what Open needs. Client and Group must be set.
type Config struct {
	// Client is the connection; NewClient makes one. It may be shared and is not closed by the transport. Every source and
	// every tail holds one of its connections most of the time.
	Client redis.UniversalClient
	// Group is the consumer group that all sidecars share.
	Group string
	// Consumer names this process within the group and must be unique; empty for one made of host, process id and chance.
	Consumer string
	// Lease is how long a silent owner keeps its messages where SourceConfig does not say; 0 for 30 s.
	Lease time.Duration
	// Block is how long one read waits at the server; 0 for 500 ms. A read cannot be cancelled, so Close may take this long.
	Block time.Duration
	// CreateStreams lets streams that do not exist be made. Otherwise they are refused by name.
	CreateStreams bool
	// MaxLen is about how many entries a stream of results keeps; 0 for all. Job streams are never trimmed: neither those
	// that Prepare or Source has heard of nor any that has the group.
	MaxLen int64
	// Log receives what cannot be returned; nil discards it.
	Log *slog.Logger
}

// Transport is a transport.Transport on Redis Streams.
type Transport struct {
	cfg      Config
	client   redis.UniversalClient
	log      *slog.Logger
	maxBytes atomic.Int64
	pub      *publisher

	mu      sync.Mutex
	closed  bool
	jobs    map[string]bool // streams that are read by someone and so never trimmed
	readers int             // sources and tails that hold a connection
	seq     int             // makes the consumers of one process differ

	calls map[string]string // by stream: the name of the last look that was not answered

	remade    atomic.Int64 // groups that were found gone
	gaps      atomic.Int64 // entries that were lost
	uncounted atomic.Bool  // the server does not count entries: those are lost that are found missing
}

var _ transport.Transport = (*Transport)(nil)

// Open makes a transport. It asks nothing of the server: Prepare does.
func Open(_ context.Context, cfg Config) (*Transport, error) {
	switch {
	case cfg.Client == nil:
		return nil, errors.New("open redis transport: no client")
	case cfg.Group == "":
		return nil, errors.New("open redis transport: no consumer group")
	case cfg.Lease < 0, cfg.Block < 0, cfg.MaxLen < 0:
		return nil, errors.New("open redis transport: lease, block and maximum length may not be negative")
	}
	if cfg.Lease == 0 {
		cfg.Lease = defaultLease
	}
	if cfg.Block == 0 {
		cfg.Block = defaultBlock
	}
	// The client gives up on a reply that takes longer than its read timeout.
	if rt := readTimeout(cfg.Client); rt > 0 && cfg.Block > rt/2 {
		cfg.Block = max(rt/2, time.Millisecond)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Consumer == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		cfg.Consumer = host + "-" + strconv.Itoa(os.Getpid()) + "-" + rand.Text()[:8]
	}
	t := &Transport{cfg: cfg, client: cfg.Client, log: cfg.Log, jobs: make(map[string]bool), calls: make(map[string]string)}
	t.maxBytes.Store(defaultMaxBytes)
	t.pub = newPublisher(t)
	return t, nil
}

// Name returns "redis".
func (t *Transport) Name() string { return "redis" }

// Features says that messages outlive the process, as far as the server persists them, and that processes share a group.
func (t *Transport) Features() transport.Features {
	return transport.Features{Persistent: true, SharedGroup: true}
}

// Publisher returns the publisher, which writes one entry per message.
func (t *Transport) Publisher() transport.Publisher { return t.pub }

// Replier returns Publisher: on Redis a reply subject is a stream like any other.
func (t *Transport) Replier() transport.Publisher { return t.pub }

// Ping tells whether the server answers and takes our credentials.
func (t *Transport) Ping(ctx context.Context) error {
	if t.isClosed() {
		return fmt.Errorf("ping redis: %w", transport.ErrClosed)
	}
	if err := t.client.Ping(ctx).Err(); err != nil {
		return fail("ping redis", "", err)
	}
	return nil
}

// Close waits for messages that are being published. The client stays open: it is its maker's.
func (t *Transport) Close(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	return t.pub.close(ctx)
}

// Backlog is how much work a job stream holds.
type Backlog struct {
	Waiting int64 // entries that nobody has been given yet
	Pending int64 // entries that someone holds
	Delayed int64 // messages that wait to be due
}

// Backlog reads what a subject holds, for metrics. A stream or group that does not exist holds nothing.
func (t *Transport) Backlog(ctx context.Context, subject string) (Backlog, error) {
	var b Backlog
	pipe := t.client.Pipeline()
	length := pipe.XLen(ctx, subject)
	pending := pipe.XPending(ctx, subject, t.cfg.Group)
	delayed := pipe.ZCard(ctx, keysOf(subject).due)
	if _, err := pipe.Exec(ctx); err != nil && !hasCode(err, "NOGROUP") && !errors.Is(err, redis.Nil) {
		return b, fail("read backlog of stream", subject, err)
	}
	if p, err := pending.Result(); err == nil {
		b.Pending = p.Count
	}
	// Entries are deleted when they are acknowledged, so what is there is either waiting or pending.
	b.Waiting = max(length.Val()-b.Pending, 0)
	b.Delayed = delayed.Val()
	return b, nil
}

// consumer returns a name that no other source uses.
func (t *Transport) consumer() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seq++
	return t.cfg.Consumer + "-" + strconv.Itoa(t.seq)
}

// reading counts a source or tail and warns when the client's pool becomes too small for them.
func (t *Transport) reading(by int) {
	t.mu.Lock()
	t.readers += by
	n := t.readers
	t.mu.Unlock()
	if size := poolSize(t.client); by > 0 && size > 0 && n > size/2 {
		t.log.Warn("redis connection pool is small for so many routes; raise the pool size",
			"readers", n, "pool_size", size)
	}
}

// checkName refuses names that other brokers, or those who read logs, would stumble over.
func checkName(stream string) error {
	if stream == "" {
		return fmt.Errorf("%w: no stream name", transport.ErrRejected)
	}
	plain := true
	for i := 0; plain && i < len(stream); i++ {
		plain = stream[i] > ' ' && stream[i] < 0x7f
	}
	if !plain && strings.ContainsFunc(stream, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return fmt.Errorf("%w: stream name %q holds spaces or control characters", transport.ErrRejected, stream)
	}
	return nil
}

func (t *Transport) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// addJobs remembers streams that must not be trimmed.
func (t *Transport) addJobs(subjects ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range subjects {
		t.jobs[s] = true
	}
}

func (t *Transport) isJob(subject string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.jobs[subject]
}

// keys are those that belong to one job stream and share its slot.
type keys struct{ stream, due, moved, count string }

// keysOf names them. The tag in braces makes Redis Cluster place them where the stream is.
func keysOf(stream string) keys {
	tag := hashTag(stream)
	return keys{
		stream: stream,
		due:    fmt.Sprintf("wasm:{%s}:due:%s", tag, stream),
		moved:  fmt.Sprintf("wasm:{%s}:moved:%s", tag, stream),
		count:  fmt.Sprintf("wasm:{%s}:count:%s", tag, stream),
	}
}

// RouteBacklog counts what a stream holds for the group.
func (t *Transport) RouteBacklog(ctx context.Context, _, subject string) (transport.Backlog, error) {
	b, err := t.Backlog(ctx, subject)
	return transport.Backlog{Unsettled: b.Waiting + b.Pending, Delayed: b.Delayed}, err
}

// Depth is the length of a stream.
func (t *Transport) Depth(ctx context.Context, subject string) (int64, error) {
	n, err := t.client.XLen(ctx, subject).Result()
	if err != nil {
		return 0, fail("read the length of stream", subject, err)
	}
	return n, nil
}

// Losses counts entries that left their stream before they were done, and groups that were made again. Before Redis 7 only such entries
// are counted as were handed out before.
func (t *Transport) Losses() transport.Losses {
	return transport.Losses{Gaps: t.gaps.Load(), Remade: t.remade.Load()}
}
