package natskv_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/natskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/storetest"
)

// stream is what Open would create, for tests that create another.
func stream(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: name, Subjects: []string{name + ".>"}, MaxBytes: -1, Discard: jetstream.DiscardNew, AllowDirect: true,
	}
}

func create(t testing.TB, nc *nats.Conn, cfg jetstream.StreamConfig) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), cfg); err != nil {
		t.Fatalf("create stream: %v", err)
	}
}

// A stream without direct reads is read from its leader, as one on several servers is.
func TestStoreReadsFromTheLeader(t *testing.T) {
	t.Parallel()
	conn := embedded(t)
	h := harness(conn)
	h.Full = nil
	h.Open = func(t testing.TB) store.Store {
		cfg := config(t)
		own := stream(cfg.Stream)
		own.AllowDirect = false
		create(t, conn(t), own)
		return open(t, conn, cfg)
	}
	storetest.Run(t, h)
}

func TestStoreInMemory(t *testing.T) {
	t.Parallel()
	conn := embedded(t)
	h := harness(conn)
	h.Full = nil
	h.Open = func(t testing.TB) store.Store {
		cfg := config(t)
		cfg.Memory = true
		return open(t, conn, cfg)
	}
	storetest.Run(t, h)
}

// What was acknowledged is there after the server was killed, with its revision; watchers and sets come back by themselves.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, "")
	s := open(t, func(t testing.TB) *nats.Conn { return connect(t, "nats://"+srv.Addr) }, config(t))
	txn := func(x store.Txn) store.Reply {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			r, err := s.Txn(t.Context(), x)
			if err == nil {
				return r
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	members := func() []store.Member {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			m, err := s.Range(t.Context(), store.Range{Set: "p/s", Max: 100})
			if err == nil {
				return m
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	w, err := s.Watch(t.Context(), "p/")
	if err != nil {
		t.Fatal(err)
	}
	first := txn(store.Txn{Then: []store.Op{store.Put("p/a", []byte("1"), time.Hour), store.Add("p/s", "a", 1), store.Add("p/s", "b", 2)}})
	if m := members(); len(m) != 2 {
		t.Fatalf("set has %v", m)
	}
	<-w.Changes()
	srv.Kill()
	srv.Start()
	again := txn(store.Txn{
		If:   []store.Cond{{Key: "p/a", Revision: first.Revision}},
		Then: []store.Op{store.Put("p/a", []byte("2"), time.Hour), store.Remove("p/s", "a")}, Read: []string{"p/a"},
	})
	if !again.Done && string(again.Read[0].Value) != "2" {
		t.Fatalf("after the kill the key is %q at revision %d, want 1 at %d", again.Read[0].Value, again.Read[0].Revision, first.Revision)
	}
	if m := members(); len(m) != 1 || m[0].Name != "b" {
		t.Fatalf("set has %v, want b", m)
	}
	for resync := false; !resync; {
		select {
		case c := <-w.Changes():
			resync = c.Resync
		case <-time.After(30 * time.Second):
			t.Fatal("no Resync after the kill")
		}
	}
	last := txn(store.Txn{Then: []store.Op{store.Put("p/z", nil, 0)}})
	for {
		select {
		case c := <-w.Changes():
			if c.KV.Key == "p/z" && c.KV.Revision == last.Revision {
				return
			}
		case <-time.After(30 * time.Second):
			t.Fatal("no change after the kill")
		}
	}
}

// An embedded server that ends before its store leaves errors behind, and nothing that hangs.
func TestServerAbandoned(t *testing.T) {
	t.Parallel()
	srv, err := server.NewServer(&server.Options{JetStream: true, StoreDir: t.TempDir(), DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("nats server does not start")
	}
	s := open(t, func(t testing.TB) *nats.Conn { return connect(t, "", nats.InProcessServer(srv)) }, config(t))
	w, err := s.Watch(t.Context(), "p/")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ended := make(chan struct{})
	go func() { // writes go on while the server ends
		defer close(ended)
		for {
			if _, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put("p/a", nil, 0), store.Add("p/s", "a", 1)}}); err != nil {
				return
			}
		}
	}()
	<-w.Changes()
	srv.Shutdown()
	srv.WaitForShutdown()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("a transaction hangs")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A user who may not create streams uses the one that is there.
func TestOpenWithoutPermissionToCreate(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, `authorization: { users: [ { user: "all", password: "x" },
		{ user: "few", password: "x", permissions: { publish: { deny: "$JS.API.STREAM.CREATE.>" } } } ] }`)
	cfg := config(t)
	create(t, connect(t, "nats://"+srv.Addr, nats.UserInfo("all", "x")), stream(cfg.Stream))
	s, err := natskv.Open(t.Context(), connect(t, "nats://"+srv.Addr, nats.UserInfo("few", "x")), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	conn := embedded(t)
	for _, c := range []struct {
		name, want string
		change     func(*jetstream.StreamConfig)
		cfg        natskv.Config
	}{
		{name: "a stream that keeps one message of each subject", want: "for good", change: func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }},
		{name: "a stream that cannot be purged", want: "purged", change: func(c *jetstream.StreamConfig) { c.DenyPurge = true }},
		{name: "a stream that forgets", want: "for good", change: func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }},
		{name: "a stream of other subjects", want: "subjects", change: func(c *jetstream.StreamConfig) { c.Subjects = []string{"other." + c.Name} }},
		{name: "a stream name that is none", want: "stream name", cfg: natskv.Config{Stream: "a.b"}},
		{name: "no stream name", want: "stream name", cfg: natskv.Config{Stream: " "}},
		{name: "a prefix that is none", want: "prefix", cfg: natskv.Config{Stream: "ok", Prefix: "a.>"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := c.cfg
			if c.change != nil {
				cfg = config(t)
				own := stream(cfg.Stream)
				c.change(&own)
				create(t, conn(t), own)
			}
			s, err := natskv.Open(t.Context(), conn(t), cfg)
			if err == nil {
				_ = s.Close()
				t.Fatal("Open succeeded")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %q does not say %q", err, c.want)
			}
		})
	}
}

// An old server is refused by name and number.
func TestOpenRefusesOldServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "INFO {\"server_id\":\"x\",\"version\":\"2.10.4\",\"max_payload\":1048576,\"headers\":true}\r\n")
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			if lines.Text() == "PING" {
				fmt.Fprint(c, "PONG\r\n")
			}
		}
	}()
	nc := connect(t, "nats://"+l.Addr().String())
	_, err = natskv.Open(t.Context(), nc, natskv.Config{Stream: "state"})
	if err == nil || !strings.Contains(err.Error(), "2.10.4") || !strings.Contains(err.Error(), "2.12") {
		t.Fatalf("error %v, want one that names 2.10.4 and 2.12", err)
	}
	nc.Close()
	_ = l.Close()
	<-done
}

// Users with credentials and TLS.
func TestOpenWithCredentials(t *testing.T) {
	t.Parallel()
	ca := nats.RootCAs(services.TLSDir(t) + "/ca.crt")
	for name, nc := range map[string]*nats.Conn{
		"password and TLS": connect(t, "tls://"+services.NATSAuth(t), nats.UserInfo(services.User, services.Password), ca),
		"certificate":      connect(t, "tls://"+services.NATSMTLS(t), ca, nats.ClientCert(services.TLSDir(t)+"/client.crt", services.TLSDir(t)+"/client.key")),
		"creds":            connect(t, "nats://"+services.NATSCreds(t), nats.UserCredentials(services.NATSKeysDir(t)+"/user.creds")),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, func(testing.TB) *nats.Conn { return nc }, config(t))
			r, err := s.Txn(t.Context(), store.Txn{
				If:   []store.Cond{{Key: "p/a"}},
				Then: []store.Op{store.Put("p/a", []byte("v"), time.Minute), store.Add("p/s", "m", 1)},
			})
			if err != nil || !r.Done {
				t.Fatalf("done %v, %v", r.Done, err)
			}
		})
	}
}
