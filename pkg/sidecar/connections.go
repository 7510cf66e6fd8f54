package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/memkv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/natskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/rediskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/inmem"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/jetstream"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/kafka"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/redisstream"
)

// shutdownTimeout bounds how long each part may take to close.
const shutdownTimeout = 10 * time.Second

// connections holds what talks to servers. A connection that transport and store share is made once.
type connections struct {
	cfg *config.Config
	log *slog.Logger

	server *jetstream.Server
	nats   map[string]*nats.Conn // by transport: embedded or nats
	redis  redis.UniversalClient

	transport transport.Transport
	store     store.Store
}

// transports are the brokers there are; a new one is a line here.
var transports = map[string]func(context.Context, *connections) (transport.Transport, error){
	config.Embedded: openEmbedded,
	config.NATS:     openNATS,
	config.Kafka:    openKafka,
	config.Redis:    openRedis,
	config.Memory: func(context.Context, *connections) (transport.Transport, error) {
		return inmem.Open(inmem.Config{})
	},
}

// stores are the databases there are; a new one is a line here.
var stores = map[string]func(context.Context, *connections) (store.Store, error){
	config.Embedded: func(ctx context.Context, c *connections) (store.Store, error) {
		nc, err := c.embeddedConn(ctx)
		if err != nil {
			return nil, err
		}
		return natskv.Open(ctx, nc, natskv.Config{Stream: stateStream(embeddedGroup), Health: c.server.Err, Log: c.log})
	},
	config.NATS: func(ctx context.Context, c *connections) (store.Store, error) {
		nc, err := c.natsConn(ctx)
		if err != nil {
			return nil, err
		}
		n := c.cfg.NATS
		return natskv.Open(ctx, nc, natskv.Config{
			Stream: stateStream(n.Group), NoCreate: !n.Create, Replicas: n.Replicas, Memory: n.Storage == "memory", Log: c.log,
		})
	},
	config.Redis: func(ctx context.Context, c *connections) (store.Store, error) {
		client, err := c.redisClient()
		if err != nil {
			return nil, err
		}
		return rediskv.Open(ctx, client, rediskv.Config{Prefix: c.cfg.Redis.Prefix, Log: c.log})
	},
	config.Memory: func(_ context.Context, c *connections) (store.Store, error) {
		return memkv.Open(memkv.Config{MaxBytes: int64(c.cfg.Memory.MaxStore)})
	},
}

// stateStream names the stream that holds the state of the sidecars that share a name.
func stateStream(name string) string {
	return "WASM_STORE_" + strings.Map(func(r rune) rune {
		if r < '!' || r > '~' || strings.ContainsRune(`.*>/\`, r) {
			return '_'
		}
		return r
	}, name)
}

// connect makes the connections of the transport without waiting for anybody to answer. Its errors are mistakes of the
// configuration.
func connect(ctx context.Context, cfg *config.Config, log *slog.Logger) (*connections, error) {
	c := &connections{cfg: cfg, log: log, nats: map[string]*nats.Conn{}}
	open, ok := transports[cfg.Transport]
	if !ok {
		return nil, fmt.Errorf("transport %q is not known", cfg.Transport)
	}
	t, err := open(ctx, c)
	if err != nil {
		c.close(log)
		return nil, fmt.Errorf("transport %s: %w", cfg.Transport, err)
	}
	c.transport = t
	return c, nil
}

// openStore opens the store that the configuration names; it may be called again after it failed.
func (c *connections) openStore(ctx context.Context) (store.Store, error) {
	open, ok := stores[c.cfg.Store]
	if !ok {
		return nil, fmt.Errorf("store %q is not known: %w", c.cfg.Store, transport.ErrUnsupported)
	}
	st, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	c.store = st
	return st, nil
}

// close closes what was opened, from the top down.
func (c *connections) close(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	note := func(what string, err error) {
		if err != nil {
			log.Warn("closing the "+what, "err", err) //nolint:sloglint // one of two messages
		}
	}
	if c.transport != nil {
		note("transport", c.transport.Close(ctx))
	}
	if c.store != nil {
		note("store", c.store.Close())
	}
	for _, nc := range c.nats {
		nc.Close()
	}
	if c.redis != nil {
		note("Redis client", c.redis.Close())
	}
	if c.server != nil {
		note("embedded server", c.server.Shutdown(ctx))
	}
}

func openEmbedded(ctx context.Context, c *connections) (transport.Transport, error) {
	nc, err := c.embeddedConn(ctx)
	if err != nil {
		return nil, err
	}
	return jetstream.Open(ctx, jetstream.Config{
		Conn: nc, Name: config.Embedded, Group: embeddedGroup, CreateStreams: true, Replicas: 1, MaxAge: c.cfg.Embedded.MaxAge,
		Health: c.server.Err, Life: c.server.Life, Log: c.log,
	})
}

func openNATS(ctx context.Context, c *connections) (transport.Transport, error) {
	nc, err := c.natsConn(ctx)
	if err != nil {
		return nil, err
	}
	n := c.cfg.NATS
	return jetstream.Open(ctx, jetstream.Config{
		Conn: nc, Name: config.NATS, Group: n.Group, CreateStreams: n.Create, Replicas: n.Replicas, Memory: n.Storage == "memory",
		MaxAge: n.MaxAge, Log: c.log,
	})
}

// embeddedConn starts the server in this process, once, and connects to it.
func (c *connections) embeddedConn(ctx context.Context) (*nats.Conn, error) {
	if nc := c.nats[config.Embedded]; nc != nil {
		return nc, nil
	}
	e := c.cfg.Embedded
	srv, err := jetstream.Embed(jetstream.EmbedConfig{
		Dir: e.Dir, Listen: e.Listen, Username: e.Username, Password: e.Password.Reveal(), SyncAlways: e.Durability == "power-safe",
		MaxStore: int64(e.MaxStore), MaxMemory: int64(e.MaxMemory), Log: c.log,
	})
	if err != nil {
		return nil, err
	}
	c.server = srv
	if url := srv.ClientURL(); url != "" {
		c.log.Info("embedded NATS server listens", "url", url)
	}
	cc := srv.ConnectConfig()
	cc.Name, cc.Log = "wasmsidecar", c.log
	nc, err := jetstream.Connect(ctx, cc)
	if err != nil {
		return nil, err
	}
	c.nats[config.Embedded] = nc
	return nc, nil
}

// natsConn connects to the NATS servers of the configuration, once.
func (c *connections) natsConn(ctx context.Context) (*nats.Conn, error) {
	if nc := c.nats[config.NATS]; nc != nil {
		return nc, nil
	}
	n := c.cfg.NATS
	t, err := tlsConfig("nats", n.TLS)
	if err != nil {
		return nil, err
	}
	nc, err := jetstream.Connect(ctx, jetstream.ConnectConfig{
		URLs: n.URLs, Username: n.Username, Password: n.Password.Reveal(), Token: n.Token.Reveal(), NKeySeedFile: n.NKey,
		CredsFile: n.Creds, TLS: t, Name: n.Name, Log: c.log,
	})
	if err != nil {
		return nil, err
	}
	c.nats[config.NATS] = nc
	return nc, nil
}

// redisClient makes the client that transport and store share, once.
func (c *connections) redisClient() (redis.UniversalClient, error) {
	if c.redis != nil {
		return c.redis, nil
	}
	r := c.cfg.Redis
	t, err := tlsConfig("redis", r.TLS)
	if err != nil {
		return nil, err
	}
	client, err := redisstream.NewClient(redisstream.ClientConfig{
		Addrs: r.Addrs, Cluster: r.Cluster, MasterName: r.Master, Username: r.Username, Password: r.Password.Reveal(),
		SentinelUsername: r.SentinelUsername, SentinelPassword: r.SentinelPassword.Reveal(), DB: r.DB, TLS: t,
	})
	if err != nil {
		return nil, err
	}
	c.redis = client
	return client, nil
}

func openRedis(ctx context.Context, c *connections) (transport.Transport, error) {
	client, err := c.redisClient()
	if err != nil {
		return nil, err
	}
	r := c.cfg.Redis
	return redisstream.Open(ctx, redisstream.Config{Client: client, Group: r.Group, CreateStreams: r.Create, MaxLen: r.MaxLen, Log: c.log})
}

func openKafka(ctx context.Context, c *connections) (transport.Transport, error) {
	k := c.cfg.Kafka
	t, err := tlsConfig("kafka", k.TLS)
	if err != nil {
		return nil, err
	}
	linger := k.Linger
	if linger == 0 {
		linger = -1 // none; 0 would be the default
	}
	return kafka.Open(ctx, kafka.Config{
		Brokers: k.Brokers, ClientID: k.ClientID, Group: k.Group, Protocol: k.Protocol, SessionTimeout: k.SessionTimeout,
		CommitInterval: k.CommitInterval, Linger: linger, DeliveryTimeout: k.DeliveryTimeout, Compression: k.Compression,
		CreateTopics: k.Create, Partitions: k.Partitions, Replication: k.Replication, Delays: true, TLS: t, Log: c.log,
		SASL: kafka.SASL{
			Mechanism: k.SASL.Mechanism, Username: k.SASL.Username, Password: k.SASL.Password.Reveal(), Token: k.SASL.Token.Reveal(),
			TokenFile: k.SASL.TokenFile, AccessKey: k.SASL.AccessKey, SecretKey: k.SASL.SecretKey.Reveal(), SessionToken: k.SASL.SessionToken.Reveal(),
		},
	})
}

// Dial connects to a configuration's broker as a client: to submit jobs and watch for results. The embedded server is reached
// where the sidecar that runs it listens. The returned function closes everything.
func Dial(ctx context.Context, cfg *config.Config, log *slog.Logger) (transport.Transport, func(), error) {
	own, err := asClient(cfg)
	if err != nil {
		return nil, nil, err
	}
	c, err := connect(ctx, own, log)
	if err != nil {
		return nil, nil, configError{err}
	}
	return c.transport, func() { c.close(log) }, nil
}

// asClient is a configuration by which to reach, from another process, the broker of a sidecar that runs cfg.
func asClient(cfg *config.Config) (*config.Config, error) {
	if cfg.Transport == config.Memory {
		return nil, configError{errors.New("transport memory lives inside one process: nobody else can submit to it")}
	}
	own := *cfg
	if own.Transport == config.Embedded {
		if own.Embedded.Listen == "" {
			return nil, configError{errors.New("the embedded server listens nowhere: set embedded.listen, for example to 127.0.0.1:4222")}
		}
		if strings.HasSuffix(own.Embedded.Listen, ":0") {
			return nil, configError{fmt.Errorf("embedded.listen is %s: each start takes another port, which the sidecar's log names; use that address", own.Embedded.Listen)}
		}
		own.Transport = config.NATS
		own.NATS = config.Default().NATS
		own.NATS.URLs = []string{"nats://" + own.Embedded.Listen}
		own.NATS.Username, own.NATS.Password = own.Embedded.Username, own.Embedded.Password
	}
	own.NATS.Create, own.Kafka.Create, own.Redis.Create = false, false, false
	return &own, nil
}
