// Package kafka carries messages over Apache Kafka and what speaks its protocol.
//
// A subject is a topic; a record's value, headers and key are a message's body, headers and key. A header named subject, where
// it holds dotted tokens, is the message's subject: so one topic may carry many. A tombstone is a message with an empty body.
//
// Kafka hands out partitions, not messages, and remembers one offset for each. The package makes a job queue of that: messages
// of a partition are handed out together and settled in any order; the committed offset is the first one that is not settled
// (the watermark), and what is handed out above it is bounded. A crash therefore repeats messages and loses none. The commit's
// metadata names the topic's id and an offset below which messages may have been handed out before (see commit.go).
// Delayed messages wait in topics of their own (see delay.go).
//
// It needs Kafka 2.8 (topic ids), and 4.0 for Config.Protocol "consumer".
package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Config says which Kafka and how. Zero values stand for the defaults named here.
type Config struct {
	Brokers  []string // host:port of brokers to begin with; at least one
	ClientID string   // as the broker's logs and quotas name us; "wasmsidecar"
	Group    string   // consumer group of all sources; required

	Protocol          string        // group protocol: "classic" (default) or "consumer" (KIP-848)
	SessionTimeout    time.Duration // classic: silence after which a member's partitions move on; 6 s
	HeartbeatInterval time.Duration // classic: a twelfth of SessionTimeout
	CommitInterval    time.Duration // shortest time between commits of settled messages; 200 ms
	MaxSpan           int           // most messages of a partition handed out above its watermark; 10 000

	Linger          time.Duration // how long a record waits for others to share its batch, unless it is alone; 1 ms, negative for none
	DeliveryTimeout time.Duration // after which a record that is not taken has failed; 30 s
	MaxMessageBytes int           // largest record batch to write; a topic's smaller max.message.bytes wins; 1 MiB
	Compression     string        // none (default), gzip, snappy, lz4, zstd

	CreateTopics bool // make topics that are missing
	Partitions   int  // of topics that are made; 0 as the broker has it
	Replication  int  // of topics that are made; 0 or -1 as the broker has it

	// Delays moves retries of a second and more to delay topics. Without it they wait unsettled in the source: they hold the
	// watermark, and a crash forgets the rest of the wait.
	Delays      bool
	DelayPrefix string // names delay topics <prefix><n>s; "<Group>.delay."
	DelayTiers  int    // how many delay topics, of 1 s, 2 s, 4 s …; longer waits go through the last again; 17

	TLS  *tls.Config // nil: not encrypted
	SASL SASL        // how to prove who we are
	// Dial opens connections; nil for TCP. It may not be combined with TLS.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	Log *slog.Logger // nil: nothing is logged
}

// The defaults of Config.
const (
	defaultSession  = 6 * time.Second
	defaultCommit   = 200 * time.Millisecond
	defaultSpan     = 10_000
	defaultLinger   = time.Millisecond
	defaultDelivery = 30 * time.Second
	defaultMaxBytes = 1<<20 + 12 // the broker's own default
	defaultDrain    = 5 * time.Second
	defaultTiers    = 17
	requestTimeout  = 15 * time.Second // for what the caller did not bound
)

// complete fills the defaults in and refuses what makes no sense.
func (c *Config) complete() error {
	if len(c.Brokers) == 0 {
		return errors.New("no brokers: name at least one host:port")
	}
	if c.Group == "" {
		return errors.New("no group: sidecars that share work need the name of a consumer group")
	}
	if c.TLS != nil && c.Dial != nil {
		return errors.New("both TLS and Dial are given: let Dial speak TLS itself")
	}
	if c.Protocol == "" {
		c.Protocol = "classic"
	}
	if c.Protocol != "classic" && c.Protocol != "consumer" {
		return fmt.Errorf("unknown group protocol %q: use classic or consumer", c.Protocol)
	}
	for _, d := range []struct {
		v    *time.Duration
		def  time.Duration
		name string
	}{
		{&c.SessionTimeout, defaultSession, "session timeout"},
		{&c.CommitInterval, defaultCommit, "commit interval"},
		{&c.DeliveryTimeout, defaultDelivery, "delivery timeout"},
	} {
		if *d.v < 0 {
			return fmt.Errorf("the %s is negative", d.name)
		}
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.HeartbeatInterval <= 0 {
		c.HeartbeatInterval = c.SessionTimeout / 12
	}
	if c.HeartbeatInterval >= c.SessionTimeout {
		return fmt.Errorf("the heartbeat interval %v is not below the session timeout %v", c.HeartbeatInterval, c.SessionTimeout)
	}
	if c.Linger == 0 {
		c.Linger = defaultLinger
	}
	c.Linger = max(c.Linger, 0)
	if c.MaxSpan <= 0 {
		c.MaxSpan = defaultSpan
	}
	if codec(c.Compression) == nil {
		return fmt.Errorf("unknown compression %q: use none, gzip, snappy, lz4 or zstd", c.Compression)
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = defaultMaxBytes
	}
	if c.MaxMessageBytes < 4*overhead || c.MaxMessageBytes > 64<<20 {
		return fmt.Errorf("largest message of %d bytes: it must lie between %d and %d", c.MaxMessageBytes, 4*overhead, 64<<20)
	}
	if c.Partitions < -1 || c.Replication < -1 {
		return errors.New("partitions and replication of topics that are made cannot be negative")
	}
	if c.Partitions == 0 {
		c.Partitions = -1
	}
	if c.Replication == 0 {
		c.Replication = -1
	}
	if c.ClientID == "" {
		c.ClientID = "wasmsidecar"
	}
	if c.DelayPrefix == "" {
		c.DelayPrefix = c.Group + ".delay."
	}
	if c.DelayTiers == 0 {
		c.DelayTiers = defaultTiers
	}
	if c.DelayTiers < 1 || c.DelayTiers > defaultTiers {
		return fmt.Errorf("%d delay topics: there are between 1 and %d", c.DelayTiers, defaultTiers)
	}
	if c.Delays && !legalTopic(tierTopic(c.DelayPrefix, c.longest())) {
		return fmt.Errorf("delay topics cannot be named %s…: topics are named with letters, digits, '.', '_' and '-'; set another delay prefix", c.DelayPrefix)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Transport is a connection to one Kafka cluster.
type Transport struct {
	cfg    Config
	log    *slog.Logger
	pub    *publisher
	adm    *kadm.Client // on the publisher's client
	limits sync.Map     // topic to its max.message.bytes, an int32, as Prepare found it

	gaps       atomic.Int64
	rebalances atomic.Int64
	recreated  atomic.Int64

	mu      sync.Mutex
	sources map[*source]string // to their routes
	mover   *mover             // nil until the first source of a transport with delays
	closed  bool
}

var _ transport.Transport = (*Transport)(nil)

// Open makes a transport. It opens no connection and needs no broker: Prepare tells whether there is one. ctx ends nothing;
// errors are mistakes of the configuration.
func Open(_ context.Context, cfg Config) (*Transport, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	t := &Transport{cfg: cfg, log: cfg.Log, sources: map[*source]string{}}
	cl, err := t.client(&health{t: t}, t.producerOpts()...)
	if err != nil {
		return nil, err
	}
	t.pub = newPublisher(t, cl)
	t.adm = kadm.NewClient(cl)
	return t, nil
}

// client makes a client with the options that all clients of a transport share.
func (t *Transport) client(h *health, more ...kgo.Opt) (*kgo.Client, error) {
	c := &t.cfg
	mech, err := c.SASL.mechanism()
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(c.ClientID),
		// A young topic, or a moved partition, is asked for again soon; by default that takes 5 s. A partition that was added is
		// found within MetadataMaxAge; by default that takes 5 min.
		kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.MetadataMaxAge(15 * time.Second),
		kgo.DialTimeout(5 * time.Second),
		// By default it grows to 2.5 s, which is too long after an outage, and where a topic was made again.
		kgo.RetryBackoffFn(backoff),
		kgo.DisableClientMetrics(),
		kgo.WithHooks(h),
		kgo.WithLogger(clientLog{c.Log}),
	}
	if mech != nil {
		opts = append(opts, kgo.SASL(mech))
	}
	if c.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(c.TLS))
	}
	if c.Dial != nil {
		opts = append(opts, kgo.Dialer(c.Dial))
	}
	cl, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka: make a client: %w", err)
	}
	return cl, nil
}

// backoff is how long the client waits before its nth try: 100 ms, doubled up to a second, less up to a fifth by chance.
func backoff(n int) time.Duration {
	d := min(100*time.Millisecond<<min(max(n-1, 0), 8), time.Second)
	return d - rand.N(d/5)
}

// Name is "kafka".
func (t *Transport) Name() string { return "kafka" }

// Features says what Kafka can do.
func (t *Transport) Features() transport.Features {
	return transport.Features{KeyedOwner: true, Persistent: true, SharedGroup: true}
}

// Publisher returns the publisher for results and dead letters.
func (t *Transport) Publisher() transport.Publisher { return t.pub }

// Replier is Publisher: Kafka has no subjects that nobody stores.
func (t *Transport) Replier() transport.Publisher { return t.pub }

// Ping tells whether a broker answers.
func (t *Transport) Ping(ctx context.Context) error {
	if err := t.pub.cl.Ping(ctx); err != nil {
		return t.describe("ping", err)
	}
	return nil
}

// Source begins to consume a topic as a member of the group. It does not wait for the broker.
func (t *Transport) Source(_ context.Context, cfg transport.SourceConfig) (transport.Source, error) {
	if err := checkTopic(cfg.Subject); err != nil {
		return nil, err
	}
	if cfg.Limit <= 0 {
		return nil, fmt.Errorf("kafka: source of %s: the limit is %d", cfg.Subject, cfg.Limit)
	}
	if cfg.DrainBudget <= 0 {
		cfg.DrainBudget = defaultDrain
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("kafka: source of %s: %w", cfg.Subject, transport.ErrClosed)
	}
	for s, route := range t.sources {
		if route != cfg.Route && s.topics[0] == cfg.Subject {
			return nil, fmt.Errorf("kafka: routes %s and %s both read %s in the group %s and would share its jobs; give one of them another topic: %w",
				route, cfg.Route, cfg.Subject, t.cfg.Group, transport.ErrUnsupported)
		}
	}
	if t.cfg.Delays && t.mover == nil {
		m, err := newMover(t)
		if err != nil {
			return nil, err
		}
		t.mover = m
	}
	s, err := newSource(t, sourceConfig{group: t.cfg.Group, topics: []string{cfg.Subject}, drain: cfg.DrainBudget})
	if err != nil {
		return nil, err
	}
	t.sources[s] = cfg.Route
	return s, nil
}

// forget drops a closed source.
func (t *Transport) forget(s *source) {
	t.mu.Lock()
	delete(t.sources, s)
	t.mu.Unlock()
}

// Close stops moving delayed messages, waits for what is being published until ctx ends, and closes the connections.
// Sources are closed before.
func (t *Transport) Close(ctx context.Context) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	m := t.mover
	t.mu.Unlock()
	var err error
	if m != nil {
		err = m.close(ctx)
	}
	return errors.Join(err, t.pub.close(ctx))
}

// Stats counts what an operator should know of.
type Stats struct {
	Gaps       int64 // messages that the broker dropped before they were read
	Rebalances int64 // times that partitions were given or taken
	Recreated  int64 // topics found deleted and made again
}

// Stats returns the counts since Open.
func (t *Transport) Stats() Stats {
	return Stats{Gaps: t.gaps.Load(), Rebalances: t.rebalances.Load(), Recreated: t.recreated.Load()}
}

// Lag returns, for the topic of each source, how many messages lie above the group's watermarks.
func (t *Transport) Lag(ctx context.Context) (map[string]int64, error) {
	t.mu.Lock()
	lag := map[string]int64{}
	for s := range t.sources {
		lag[s.topics[0]] = 0
	}
	t.mu.Unlock()
	topics := make([]string, 0, len(lag))
	for topic := range lag {
		topics = append(topics, topic)
	}
	return t.lagOf(ctx, topics...)
}

// RouteBacklog returns the consumer lag of a topic. What waits in delay topics is not told apart by route.
func (t *Transport) RouteBacklog(ctx context.Context, _, subject string) (transport.Backlog, error) {
	lag, err := t.lagOf(ctx, subject)
	return transport.Backlog{Unsettled: lag[subject], Delayed: -1}, err
}

// Depth returns how many offsets a topic has from its first to its last.
func (t *Transport) Depth(ctx context.Context, subject string) (int64, error) {
	starts, err := t.adm.ListStartOffsets(ctx, subject)
	if err != nil {
		return 0, t.describe("list first offsets", err)
	}
	ends, err := t.adm.ListEndOffsets(ctx, subject)
	if err != nil {
		return 0, t.describe("list last offsets", err)
	}
	n := int64(0)
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(end.Topic, end.Partition)
		switch bad := errors.Join(start.Err, end.Err); {
		case errors.Is(bad, kerr.UnknownTopicOrPartition):
		case bad != nil:
			err = bad
		default:
			n += max(0, end.Offset-start.Offset)
		}
	})
	if err != nil {
		return 0, t.describe("list offsets of "+subject, err)
	}
	return n, nil
}

// Losses is Stats for those who do not know Kafka.
func (t *Transport) Losses() transport.Losses {
	s := t.Stats()
	return transport.Losses{Gaps: s.Gaps, Remade: s.Recreated, Rebalance: s.Rebalances}
}

// lagOf returns how many messages of topics lie above the group's watermarks.
func (t *Transport) lagOf(ctx context.Context, topics ...string) (map[string]int64, error) {
	lag := map[string]int64{}
	if len(topics) == 0 {
		return lag, nil
	}
	committed, err := t.adm.FetchOffsetsForTopics(ctx, t.cfg.Group, topics...)
	if err != nil {
		return nil, t.describe("read the offsets of group "+t.cfg.Group, err)
	}
	starts, err := t.adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, t.describe("list first offsets", err)
	}
	ends, err := t.adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, t.describe("list last offsets", err)
	}
	ends.Each(func(end kadm.ListedOffset) {
		if end.Err != nil {
			return
		}
		from := int64(0)
		if s, ok := starts.Lookup(end.Topic, end.Partition); ok && s.Err == nil {
			from = s.Offset
		}
		if c, ok := committed.Lookup(end.Topic, end.Partition); ok && c.Err == nil {
			from = max(from, c.At)
		}
		lag[end.Topic] += max(0, end.Offset-from)
	})
	return lag, nil
}
