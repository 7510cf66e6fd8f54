package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// legalTopic says whether Kafka takes name for a topic.
func legalTopic(name string) bool {
	if name == "" || len(name) > 249 || name == "." || name == ".." {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// checkTopic refuses a subject that cannot be a topic.
func checkTopic(subject string) error {
	if legalTopic(subject) {
		return nil
	}
	return fmt.Errorf("kafka: %.260q is no topic: a topic is named with up to 249 letters, digits, '.', '_' and '-' (wildcards are not read); choose another subject: %w",
		subject, transport.ErrRejected)
}

// describe wraps what a request failed with: it says what was being done, what to do about the usual causes, and marks those
// that need the operator.
func (t *Transport) describe(doing string, err error) error {
	var firstRead *kgo.ErrFirstReadEOF
	var remote *net.OpError
	var unknownCA x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	remedy := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kgo.ErrClientClosed):
		return fmt.Errorf("kafka: %s: %w", doing, transport.ErrClosed)
	case errors.Is(err, kerr.SaslAuthenticationFailed), errors.Is(err, kerr.UnsupportedSaslMechanism), errors.Is(err, kerr.IllegalSaslState):
		remedy = "the broker refused the login " + t.cfg.SASL.who() + "; check sasl.mechanism and its credentials"
	case errors.As(err, &unknownCA), errors.As(err, &verify):
		remedy = "the broker's certificate is not trusted; set tls.ca and tls.server_name"
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert
		remedy = "the broker refused the TLS handshake; set tls.cert and tls.key if it asks for a client certificate"
	case errors.As(err, &header):
		remedy = "the broker does not speak TLS on this port; remove tls or use another port"
	case errors.As(err, &firstRead), errors.Is(err, io.EOF):
		// The broker may as well have been restarted: not the operator's fault for certain.
		return fmt.Errorf("kafka: %s: the broker closed the connection that was opened %s; if it keeps doing so, check sasl and tls: %w", doing, t.cfg.SASL.who(), err)
	case errors.Is(err, kerr.GroupAuthorizationFailed):
		remedy = fmt.Sprintf("grant READ on the groups %s and %s", t.cfg.Group, t.delayGroup())
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		remedy = "grant READ, WRITE and DESCRIBE on the topics " + t.cfg.SASL.who()
	case errors.Is(err, kerr.ClusterAuthorizationFailed):
		remedy = "grant IDEMPOTENT_WRITE and DESCRIBE on the cluster"
	default:
		return fmt.Errorf("kafka: %s: %w", doing, err)
	}
	return fmt.Errorf("kafka: %s: %s: %w: %w", doing, remedy, transport.ErrRejected, err)
}

// health hears of the connections that a client opens and uses, so that a source can say that its broker is away: the client itself
// tries again silently.
type health struct {
	t    *Transport
	fail func(error)  // told of failures, at most once a second; may be nil
	last atomic.Int64 // when fail was called, Unix nanoseconds
}

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (h *health) OnBrokerConnect(meta kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	h.tell("connect to ", meta, err)
}

// OnBrokerRead implements kgo.HookBrokerRead. A broker that wants a login takes the connection and closes it on the first
// request.
func (h *health) OnBrokerRead(meta kgo.BrokerMetadata, _ int16, _ int, _, _ time.Duration, err error) {
	h.tell("wait for an answer of ", meta, err)
}

func (h *health) tell(doing string, meta kgo.BrokerMetadata, err error) {
	if err == nil || h.fail == nil || errors.Is(err, context.Canceled) || errors.Is(err, kgo.ErrClientClosed) || errors.Is(err, net.ErrClosed) {
		return
	}
	now := time.Now().UnixNano()
	if last := h.last.Load(); now-last < int64(time.Second) || !h.last.CompareAndSwap(last, now) {
		return
	}
	h.fail(h.t.describe(doing+net.JoinHostPort(meta.Host, fmt.Sprint(meta.Port)), err))
}

// clientLog hands the client's own log on, at debug level: what an operator must know is logged or returned by this package.
type clientLog struct{ log *slog.Logger }

// Level implements kgo.Logger.
func (l clientLog) Level() kgo.LogLevel {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		return kgo.LogLevelInfo
	}
	return kgo.LogLevelNone
}

// Log implements kgo.Logger.
func (l clientLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	l.log.Debug("kafka client", append([]any{"msg", msg, "level", level.String()}, keyvals...)...)
}
