package jetstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// ConnectConfig says where a NATS server is and who asks. At most one of Username, Token, NKeySeedFile and CredsFile is given.
type ConnectConfig struct {
	// URLs of the servers, as nats://host:4222 or tls://host:4222; not used with InProcess.
	URLs []string
	// InProcess is a server in this process; see Server.ConnectConfig.
	InProcess nats.InProcessConnProvider

	Username, Password string
	Token              string
	NKeySeedFile       string // file with an nkey seed
	CredsFile          string // file with a JWT and an nkey seed
	// TLS to use with the server; nil means only what the URLs and the server ask for, with the system's roots.
	TLS *tls.Config

	// Name of the connection, as the server shows it.
	Name string
	// ReconnectWait is the pause between two attempts on the same server; 0 means 500 ms.
	ReconnectWait time.Duration
	// Dialer makes network connections; nil means a net.Dialer.
	Dialer nats.CustomDialer
	// Log may be nil.
	Log *slog.Logger
}

// Connect makes a connection that is never given up: it need not find a server now, and tries again for as long as it is open.
// ctx bounds nothing but the call. What goes wrong on the connection is logged, above all what the server does not permit. The
// caller closes it.
func Connect(ctx context.Context, cfg ConnectConfig) (*nats.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.ReconnectWait == 0 {
		cfg.ReconnectWait = 500 * time.Millisecond
	}
	opts := []nats.Option{
		nats.Name(cfg.Name),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(), // credentials are mended on servers too
		nats.ReconnectWait(cfg.ReconnectWait),
		nats.ReconnectJitter(100*time.Millisecond, time.Second),
		nats.ReconnectBufSize(1 << 20), // writes here are repeated by their owners; nothing needs to pile up
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.Timeout(apiTimeout),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if sub != nil {
				log.Error("NATS", "subject", sub.Subject, "err", err)
				return
			}
			log.Error("NATS", "err", err)
		}),
		nats.ConnectHandler(func(nc *nats.Conn) { log.Debug("connected to NATS", "server", nc.ConnectedUrlRedacted()) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("connection to NATS lost; trying again", "err", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("connected to NATS again", "server", nc.ConnectedUrlRedacted()) }),
	}
	kinds := 0
	if cfg.Username != "" || cfg.Password != "" {
		kinds++
		opts = append(opts, nats.UserInfo(cfg.Username, cfg.Password))
	}
	if cfg.Token != "" {
		kinds++
		opts = append(opts, nats.Token(cfg.Token))
	}
	if cfg.NKeySeedFile != "" {
		kinds++
		nkey, err := nats.NkeyOptionFromSeed(cfg.NKeySeedFile)
		if err != nil {
			return nil, fmt.Errorf("connect to NATS: nkey seed in %s: %w", cfg.NKeySeedFile, err)
		}
		opts = append(opts, nkey)
	}
	if cfg.CredsFile != "" {
		kinds++
		opts = append(opts, nats.UserCredentials(cfg.CredsFile))
	}
	if kinds > 1 {
		return nil, errors.New("connect to NATS: give at most one of user and password, token, nkey and credentials file")
	}
	if cfg.TLS != nil {
		opts = append(opts, nats.Secure(cfg.TLS.Clone()))
	}
	if cfg.Dialer != nil {
		opts = append(opts, nats.SetCustomDialer(cfg.Dialer))
	}
	where := strings.Join(cfg.URLs, ",")
	switch {
	case cfg.InProcess != nil:
		opts = append(opts, nats.InProcessServer(cfg.InProcess))
		where = "the server in this process"
	case len(cfg.URLs) == 0:
		return nil, errors.New("connect to NATS: no URL")
	default:
		opts = append(opts, func(o *nats.Options) error { o.Servers = cfg.URLs; return nil })
	}
	nc, err := nats.Connect(strings.Join(cfg.URLs, ","), opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", where, err)
	}
	return nc, nil
}
