package natskv_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/natskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, services.ServerLeaks()...) }

// opened is a store that knows how it was opened, so that a second one can be opened on the same data.
type opened struct {
	store.Store
	connect func(t testing.TB) *nats.Conn
	cfg     natskv.Config
}

func open(t testing.TB, connect func(t testing.TB) *nats.Conn, cfg natskv.Config) *opened {
	t.Helper()
	nc := connect(t)
	s, err := natskv.Open(t.Context(), nc, cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		_ = s.Close()
		if nc.ConnectedAddr() == "pipe" {
			return // an embedded server goes as a whole
		}
		// The server is shared with other tests. Who opened the stream second finds it gone.
		if js, err := jetstream.New(nc); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_ = js.DeleteStream(ctx, cfg.Stream)
		}
	})
	return &opened{Store: s, connect: connect, cfg: cfg}
}

func connect(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append(opts, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(time.Millisecond, time.Millisecond))
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatalf("connect to %s: %v", url, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// embedded starts a server in this process and returns how to connect to it.
func embedded(t testing.TB) func(t testing.TB) *nats.Conn {
	t.Helper()
	srv, err := server.NewServer(&server.Options{JetStream: true, StoreDir: t.TempDir(), DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatalf("start nats server: %v", err)
	}
	go srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("nats server does not start")
	}
	return func(t testing.TB) *nats.Conn { return connect(t, "", nats.InProcessServer(srv)) }
}

func harness(conn func(t testing.TB) *nats.Conn) storetest.Harness {
	return storetest.Harness{
		Open: func(t testing.TB) store.Store { return open(t, conn, config(t)) },
		Reopen: func(t testing.TB, s store.Store) store.Store {
			o := s.(*opened)
			return open(t, o.connect, o.cfg)
		},
		Full: func(t testing.TB) store.Store {
			cfg := config(t)
			cfg.MaxBytes = 6 << 20
			return open(t, conn, cfg)
		},
		Features: storetest.Features{TTL: time.Second},
	}
}

func config(t testing.TB) natskv.Config { return natskv.Config{Stream: services.UniqueName(t)} }

func TestStoreEmbedded(t *testing.T) {
	t.Parallel()
	storetest.Run(t, harness(embedded(t)))
}

func TestStoreServer(t *testing.T) {
	t.Parallel()
	addr := services.NATS(t)
	h := harness(func(t testing.TB) *nats.Conn { return connect(t, "nats://"+addr) })
	h.Cut = func(t testing.TB) (store.Store, *services.Proxy) {
		p := services.NewProxy(t, addr)
		return open(t, func(t testing.TB) *nats.Conn { return connect(t, "nats://"+p.Addr()) }, config(t)), p
	}
	storetest.Run(t, h)
}

func BenchmarkTxn(b *testing.B) {
	storetest.Bench(b, func(t testing.TB) store.Store { return open(t, embedded(t), config(t)) })
}
