// Package services gives tests the real servers that scripts/services has started, servers of their own that they may kill, and
// a proxy that cuts and delays connections.
//
// Addresses come from the environment (WASMSIDECAR_TEST_KAFKA and so on; scripts/services env prints them), else from the file
// .services/env above the working directory. A test whose server is missing fails; it does not skip. The servers are shared by
// all tests, so every test takes names of its own from UniqueName and leaves no server-wide change behind. The user is User, the
// password Password.
package services

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The one account that the servers with credentials know.
const (
	User     = "job"
	Password = "secret"
)

const prefix = "WASMSIDECAR_TEST_"

// Kafka returns host:port of the plaintext listener.
func Kafka(t testing.TB) string {
	t.Helper()
	return need(t, "KAFKA")
}

// KafkaKind returns "kafka" for a real broker and "kfake" for the fake that takes its place on a machine that can have none.
func KafkaKind(t testing.TB) string {
	t.Helper()
	return need(t, "KAFKA_KIND")
}

// RealKafka skips the test, by name and with the reason, where kfake takes the place of Kafka. It is for the few cases that only
// a real broker can show; why says what that is.
func RealKafka(t testing.TB, why string) {
	t.Helper()
	if KafkaKind(t) != "kafka" {
		t.Skipf("needs a real Kafka broker (%s): set KAFKA_LIBS or KAFKA_HOME, or install Maven, and run scripts/services restart kafka", why)
	}
}

// KafkaListener returns host:port of a listener with credentials: "SCRAM" (SHA-256 and SHA-512), "PLAIN", "TLS", "MTLS" (TLS with
// client certificate) or "SCRAM_TLS" (SHA-512). kfake has none of them: there the test is skipped as by RealKafka.
func KafkaListener(t testing.TB, name string) string {
	t.Helper()
	switch name {
	case "SCRAM", "PLAIN", "TLS", "MTLS", "SCRAM_TLS":
	default:
		t.Fatalf("services: no Kafka listener %q; there are SCRAM, PLAIN, TLS, MTLS and SCRAM_TLS", name)
	}
	RealKafka(t, "listener "+name)
	return need(t, "KAFKA_"+name)
}

// Redis returns host:port of the server that asks for nothing.
func Redis(t testing.TB) string {
	t.Helper()
	return need(t, "REDIS")
}

// RedisACL returns the plain and the TLS address of the server with ACL users: "job" may use keys jobs:* and wasm:* only, "admin"
// with the password "admin" may do all, the default user is off. The TLS port takes a client certificate and asks for none.
func RedisACL(t testing.TB) (addr, tlsAddr string) {
	t.Helper()
	return need(t, "REDIS_ACL"), need(t, "REDIS_ACL_TLS")
}

// NATS returns host:port of the server that asks for nothing. All NATS servers have JetStream.
func NATS(t testing.TB) string {
	t.Helper()
	return need(t, "NATS")
}

// NATSAuth returns host:port of the server that takes User with Password or the nkey in NATSKeysDir, plain or over TLS. Its user
// "reader" with the same password may not publish to jobs.>.
func NATSAuth(t testing.TB) string {
	t.Helper()
	return need(t, "NATS_AUTH")
}

// NATSMTLS returns host:port of the server that takes the client certificate in TLSDir and nothing else.
func NATSMTLS(t testing.TB) string {
	t.Helper()
	return need(t, "NATS_MTLS")
}

// NATSCreds returns host:port of the server in operator mode, which takes user.creds in NATSKeysDir.
func NATSCreds(t testing.TB) string {
	t.Helper()
	return need(t, "NATS_CREDS")
}

// TLSDir returns the folder of ca.crt, server.crt, server.key, client.crt and client.key. The server's name is localhost or
// 127.0.0.1, the client's subject CN=client.
func TLSDir(t testing.TB) string {
	t.Helper()
	return need(t, "TLS_DIR")
}

// NATSKeysDir returns the folder of user.nk (the seed), user.pub and user.creds.
func NATSKeysDir(t testing.TB) string {
	t.Helper()
	return need(t, "NATS_KEYS_DIR")
}

// UniqueName returns a name for a topic, stream, subject token or key that no other test and no earlier run has: the test's name
// in lower-case letters, digits and hyphens, and a random end; at most 60 bytes.
func UniqueName(t testing.TB) string {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, t.Name())
	if len(name) > 43 {
		name = name[:43]
	}
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		t.Fatalf("services: %v", err)
	}
	return name + "-" + hex.EncodeToString(random)
}

// need fails the test where the variable has no value.
func need(t testing.TB, name string) string {
	t.Helper()
	value, err := lookup(name)
	if err != nil {
		t.Fatalf("services: %v; run scripts/services start", err)
	}
	return value
}

// lookup takes the variable from the environment, else from the file that scripts/services wrote.
func lookup(name string) (string, error) {
	name = prefix + name
	if v := os.Getenv(name); v != "" {
		return v, nil
	}
	file, err := envFile()
	if err != nil {
		return "", err
	}
	values, err := readEnv(file)
	if err != nil {
		return "", err
	}
	if values[name] == "" {
		return "", fmt.Errorf("%s is neither in the environment nor in %s: that server does not run", name, file)
	}
	return values[name], nil
}

func envFile() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the working directory: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		file := filepath.Join(dir, ".services", "env")
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no .services/env in %s or above", start)
		}
	}
}

// readEnv reads lines of the form export NAME=value. Values are addresses and paths; the shell's backslashes before unusual
// bytes are undone.
func readEnv(file string) (map[string]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the addresses of the test servers: %w", err)
	}
	defer f.Close()
	values := make(map[string]string)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		if ok && value != "''" {
			values[name] = strings.ReplaceAll(value, `\`, "")
		}
	}
	return values, lines.Err()
}
