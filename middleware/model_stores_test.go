package middleware_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/natskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/rediskv"
)

// modelStores opens each kind of store, empty, as three processes have it.
var modelStores = map[string]func(t *testing.T) []store.Store{
	"memory": func(t *testing.T) []store.Store {
		return []store.Store{newStore(t)}
	},
	"redis": func(t *testing.T) []store.Store {
		addr, prefix := services.Redis(t), "wasm:"+services.UniqueName(t)+":"
		return three(t, func() (store.Store, error) {
			client := redis.NewClient(&redis.Options{Addr: addr})
			t.Cleanup(func() { _ = client.Close() })
			return rediskv.Open(t.Context(), client, rediskv.Config{Prefix: prefix})
		})
	},
	"nats": func(t *testing.T) []store.Store {
		return overNATS(t, "nats://"+services.NATS(t))
	},
	"embedded": func(t *testing.T) []store.Store {
		srv, err := server.NewServer(&server.Options{JetStream: true, StoreDir: t.TempDir(), DontListen: true, NoSigs: true, NoLog: true})
		if err != nil {
			t.Fatal(err)
		}
		go srv.Start()
		t.Cleanup(func() {
			srv.Shutdown()
			srv.WaitForShutdown()
		})
		if !srv.ReadyForConnections(30 * time.Second) {
			t.Fatal("nats server does not start")
		}
		return overNATS(t, "", nats.InProcessServer(srv))
	},
}

func overNATS(t *testing.T, url string, opts ...nats.Option) []store.Store {
	stream := services.UniqueName(t)
	return three(t, func() (store.Store, error) {
		nc, err := nats.Connect(url, opts...)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() {
			if js, err := jetstream.New(nc); err == nil {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				_ = js.DeleteStream(ctx, stream) // who comes second finds it gone
			}
			nc.Close()
		})
		return natskv.Open(t.Context(), nc, natskv.Config{Stream: stream})
	})
}

// three opens one store three times, over connections of their own.
func three(t *testing.T, open func() (store.Store, error)) []store.Store {
	t.Helper()
	var out []store.Store
	for range 3 {
		s, err := open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		out = append(out, s)
	}
	return out
}
