package redisstream

import (
	"crypto/tls"
	"errors"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// minPool is the least default pool: more than go-redis' own, as each route holds a connection while it waits for work.
const minPool = 64

// ClientConfig says where Redis is and how to be let in.
type ClientConfig struct {
	// Addrs are host:port: one for a single server; some of the nodes with Cluster; the sentinels with MasterName.
	Addrs      []string
	Cluster    bool   // the servers are a Redis Cluster
	MasterName string // the servers are sentinels that watch over this master

	Username, Password                 string // an ACL user, or only the password of the default one
	SentinelUsername, SentinelPassword string
	DB                                 int // database; not with Cluster

	TLS *tls.Config // nil for none

	PoolSize     int           // connections per server; 0 for 64
	MinIdle      int           // connections that are kept open
	DialTimeout  time.Duration // 0 for 5 s
	ReadTimeout  time.Duration // 0 for 5 s
	WriteTimeout time.Duration // 0 for ReadTimeout
}

// NewClient makes a client for Open and for a store in the same Redis. It connects when it is first used; close it after all
// that use it.
func NewClient(cfg ClientConfig) (redis.UniversalClient, error) {
	switch {
	case len(cfg.Addrs) == 0:
		return nil, errors.New("make redis client: no address; give host:port")
	case cfg.Cluster && cfg.MasterName != "":
		return nil, errors.New("make redis client: cluster and Sentinel master name exclude each other")
	case cfg.Cluster && cfg.DB != 0:
		return nil, errors.New("make redis client: Redis Cluster has only database 0")
	case len(cfg.Addrs) > 1 && !cfg.Cluster && cfg.MasterName == "":
		return nil, errors.New("make redis client: several addresses need cluster or a Sentinel master name")
	case cfg.DB < 0 || cfg.PoolSize < 0 || cfg.MinIdle < 0:
		return nil, errors.New("make redis client: database and pool sizes may not be negative")
	case cfg.DialTimeout < 0 || cfg.ReadTimeout < 0 || cfg.WriteTimeout < 0:
		return nil, errors.New("make redis client: timeouts may not be negative: everything that waits has an end")
	case cfg.MasterName == "" && (cfg.SentinelUsername != "" || cfg.SentinelPassword != ""):
		return nil, errors.New("make redis client: Sentinel credentials without a Sentinel master name")
	}
	for _, a := range cfg.Addrs {
		if a == "" {
			return nil, errors.New("make redis client: empty address; give host:port")
		}
		if strings.Contains(a, "://") {
			return nil, errors.New("make redis client: address " + a + " has a scheme; give host:port and say TLS apart")
		}
	}
	pool := cfg.PoolSize
	if pool == 0 {
		pool = minPool
	}
	return redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:            cfg.Addrs,
		IsClusterMode:    cfg.Cluster,
		MasterName:       cfg.MasterName,
		Username:         cfg.Username,
		Password:         cfg.Password,
		SentinelUsername: cfg.SentinelUsername,
		SentinelPassword: cfg.SentinelPassword,
		DB:               cfg.DB,
		TLSConfig:        cfg.TLS,
		PoolSize:         pool,
		MinIdleConns:     cfg.MinIdle,
		DialTimeout:      cfg.DialTimeout,
		ReadTimeout:      cfg.ReadTimeout,
		WriteTimeout:     cfg.WriteTimeout,
		// Only Redis Enterprise knows these; elsewhere they cost a refused command for each connection.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}), nil
}

// readTimeout returns how long c waits for a reply; 0 when it is not known or has no end.
func readTimeout(c redis.UniversalClient) time.Duration {
	switch c := c.(type) {
	case *redis.Client:
		return c.Options().ReadTimeout
	case *redis.ClusterClient:
		return c.Options().ReadTimeout
	}
	return 0
}

// poolSize returns how many connections c opens to one server; 0 when it is not known.
func poolSize(c redis.UniversalClient) int {
	switch c := c.(type) {
	case *redis.Client:
		return c.Options().PoolSize
	case *redis.ClusterClient:
		return c.Options().PoolSize
	}
	return 0
}

// hashTag returns the part of a key that Redis Cluster makes the slot from.
func hashTag(key string) string {
	if i := strings.IndexByte(key, '{'); i >= 0 {
		if j := strings.IndexByte(key[i+1:], '}'); j > 0 {
			return key[i+1 : i+1+j]
		}
	}
	return key
}

// taggable says whether other keys can be given the slot of key. A name with a brace that is no tag cannot be put in braces.
func taggable(key string) bool { return !strings.Contains(hashTag(key), "}") }
