package services

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEveryServerIsThere(t *testing.T) {
	t.Parallel()
	plain, withTLS := RedisACL(t)
	for name, addr := range map[string]string{
		"kafka": Kafka(t), "redis": Redis(t), "redis acl": plain, "redis acl tls": withTLS,
		"nats": NATS(t), "nats auth": NATSAuth(t), "nats mtls": NATSMTLS(t), "nats creds": NATSCreds(t),
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c.Close()
	}
	if kind := KafkaKind(t); kind != "kafka" && kind != "kfake" {
		t.Errorf("kind of Kafka is %q", kind)
	}
	for _, file := range []string{
		filepath.Join(TLSDir(t), "ca.crt"), filepath.Join(TLSDir(t), "client.key"),
		filepath.Join(NATSKeysDir(t), "user.nk"), filepath.Join(NATSKeysDir(t), "user.creds"),
	} {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
}

func TestKafkaListeners(t *testing.T) {
	t.Parallel()
	seen := map[string]string{Kafka(t): "plaintext"}
	for _, name := range []string{"SCRAM", "PLAIN", "TLS", "MTLS", "SCRAM_TLS"} {
		addr := KafkaListener(t, name)
		if other, dup := seen[addr]; dup {
			t.Errorf("%s and %s are both at %s", name, other, addr)
		}
		seen[addr] = name
	}
}

func TestReadEnv(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "env")
	text := "export A=127.0.0.1:1\nexport B=''\nexport C=/a\\ folder/tls\n\nnothing\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readEnv(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"A": "127.0.0.1:1", "B": "", "C": "/a folder/tls"} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
}

func TestUniqueName(t *testing.T) {
	t.Parallel()
	t.Run("With Spaces/and_more: "+strings.Repeat("x", 100), func(t *testing.T) {
		t.Parallel()
		a, b := UniqueName(t), UniqueName(t)
		if a == b {
			t.Errorf("twice %q", a)
		}
		if len(a) > 60 || strings.Trim(a, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("%q is too long or has a byte that some broker refuses", a)
		}
	})
}

func TestServerKeepsPortAndDataThroughKill(t *testing.T) {
	t.Parallel()
	s := StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	redis := func(command, want string) {
		t.Helper()
		c := dial(t, s.Addr)
		defer c.Close()
		if _, err := c.Write([]byte(command + "\r\n")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 64)
		n, err := c.Read(got)
		if err != nil || !strings.HasPrefix(string(got[:n]), want) {
			t.Fatalf("%s: %q (%v), want %q", command, got[:n], err, want)
		}
	}
	redis("SET k v", "+OK")
	s.Kill()
	if c, err := net.Dial("tcp", s.Addr); err == nil {
		c.Close()
		t.Error("it still listens after Kill")
	}
	s.Start()
	redis("GET k", "$1\r\nv")
	s.Stop()
	s.Start()
	redis("GET k", "$1\r\nv")
}

func TestStartNATS(t *testing.T) {
	t.Parallel()
	s := StartNATS(t, `max_payload: 4096`)
	c := dial(t, s.Addr)
	line := make([]byte, 1024)
	n, err := c.Read(line)
	if err != nil || !strings.Contains(string(line[:n]), `"max_payload":4096`) || !strings.Contains(string(line[:n]), `"jetstream":true`) {
		t.Fatalf("it says %q (%v)", line[:n], err)
	}
}
