package sidecar_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// TestCredentials sends a job through servers that ask for credentials, by configuration alone.
func TestCredentials(t *testing.T) {
	t.Parallel()
	dir := services.TLSDir(t)
	tls := func(client bool) string {
		out := fmt.Sprintf("tls: {ca: %q", filepath.Join(dir, "ca.crt"))
		if client {
			out += fmt.Sprintf(", cert: %q, key: %q", filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
		}
		return out + "}"
	}
	user := fmt.Sprintf("username: %s, password: %s", services.User, services.Password)
	acl, aclTLS := services.RedisACL(t)
	keys := services.NATSKeysDir(t)
	redis := func(more string) string { return "transport: redis\nredis: {" + more + "}\n" }
	nats := func(url, more string) string {
		return fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\", group: %q, %s}\n", strings.TrimPrefix(url, "nats://"), services.UniqueName(t), more)
	}
	kafka := func(listener, more string) string {
		return fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%q], group: %q, partitions: 1, %s}\n",
			services.Redis(t), services.KafkaListener(t, listener), services.UniqueName(t), more)
	}
	sasl := func(mechanism string) string { return fmt.Sprintf("sasl: {mechanism: %s, %s}", mechanism, user) }
	cases := map[string]string{
		"redis user":           redis(fmt.Sprintf("addr: %q, %s", acl, user)),
		"redis user over TLS":  redis(fmt.Sprintf("addr: %q, %s, %s", aclTLS, user, tls(false))),
		"redis client cert":    redis(fmt.Sprintf("addr: %q, %s, %s", aclTLS, user, tls(true))),
		"nats user":            nats(services.NATSAuth(t), user),
		"nats user over TLS":   nats(services.NATSAuth(t), user+", "+tls(false)),
		"nats nkey":            nats(services.NATSAuth(t), fmt.Sprintf("nkey: %q", filepath.Join(keys, "user.nk"))),
		"nats client cert":     nats(services.NATSMTLS(t), tls(true)),
		"nats credentials":     nats(services.NATSCreds(t), fmt.Sprintf("creds: %q", filepath.Join(keys, "user.creds"))),
		"kafka SCRAM-SHA-256":  kafka("SCRAM", sasl("SCRAM-SHA-256")),
		"kafka SCRAM-SHA-512":  kafka("SCRAM", sasl("SCRAM-SHA-512")),
		"kafka PLAIN":          kafka("PLAIN", sasl("PLAIN")),
		"kafka TLS":            kafka("TLS", tls(false)),
		"kafka client cert":    kafka("MTLS", tls(true)),
		"kafka SCRAM over TLS": kafka("SCRAM_TLS", sasl("SCRAM-SHA-512")+", "+tls(false)),
	}
	for name, head := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := open(t, head, "", map[string]job.Runner{"m": job.RunnerFunc(upper)})
			l.submit("job-1", "hello")
			if m := l.next(l.results, "the result"); string(m.Body) != "HELLO" {
				t.Errorf("result %q", m.Body)
			}
		})
	}
}
