package jetstream

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/transporttest"
)

// D-14, D-23
func TestSuiteOnEmbeddedServer(t *testing.T) {
	srv := embed(t, EmbedConfig{Listen: "127.0.0.1:0"})
	transporttest.Run(t, harness(srv.ConnectConfig, strings.TrimPrefix(srv.ClientURL(), "nats://")))
}

// D-14, D-23
func TestSuiteOnServer(t *testing.T) {
	addr := services.NATS(t)
	transporttest.Run(t, harness(func() ConnectConfig {
		return ConnectConfig{URLs: []string{"nats://" + addr}, Name: t.Name()}
	}, addr))
}

// harness runs the suite on the server that connect reaches and that listens on addr.
func harness(connect func() ConnectConfig, addr string) transporttest.Harness {
	manage := func(t testing.TB) (*nats.Conn, jetstream.JetStream) {
		nc := dial(t, connect())
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		return nc, js
	}
	stream := func(t testing.TB, subject string) jetstream.Stream {
		t.Helper()
		_, js := manage(t)
		name, err := js.StreamNameBySubject(t.Context(), subject)
		if err != nil {
			t.Fatal(err)
		}
		s, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	// transports of one case share a group, and no other case's delayed messages
	start := func(t testing.TB, nc *nats.Conn) transport.Transport {
		group, _, _ := strings.Cut(strings.TrimPrefix(t.Name(), "Test"), "/Use")
		tr, err := Open(t.Context(), Config{Conn: nc, Group: group, CreateStreams: true, MaxAge: time.Hour, Log: logTo(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // the server is shared and stays
			ctx, cancel := context.WithTimeout(context.Background(), within)
			defer cancel()
			_ = tr.js.DeleteStream(ctx, tr.waitStream().Name)
			for _, ref := range tr.routes {
				_ = tr.js.DeleteStream(ctx, ref.stream)
			}
		})
		return tr
	}
	return transporttest.Harness{
		Open:       func(t testing.TB) transport.Transport { return start(t, dial(t, connect())) },
		NewSubject: func(t testing.TB) string { return "jobs." + services.UniqueName(t) },
		RawPublish: func(t testing.TB, subject string, body []byte) {
			nc := dial(t, connect())
			if err := nc.Publish(subject, body); err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
		},
		DropGroup: func(t testing.TB, subject string) {
			s := stream(t, subject)
			for name := range s.ConsumerNames(t.Context()).Name() {
				if err := s.DeleteConsumer(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		},
		RecreateSubject: func(t testing.TB, subject string) {
			_, js := manage(t)
			cfg := stream(t, subject).CachedInfo().Config
			if err := js.DeleteStream(t.Context(), cfg.Name); err != nil {
				t.Fatal(err)
			}
			if _, err := js.CreateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		},
		Trim: func(t testing.TB, subject string, keep int) {
			_, js := manage(t)
			cfg := stream(t, subject).CachedInfo().Config
			cfg.Discard, cfg.MaxMsgs = jetstream.DiscardOld, int64(keep)
			if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			cfg.MaxMsgs = -1
			if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		},
		OpenCuttable: func(t testing.TB) (transport.Transport, func(time.Duration)) {
			p := services.NewProxy(t, addr)
			cfg := connect()
			cfg.InProcess, cfg.URLs = nil, []string{"nats://" + p.Addr()}
			return start(t, dial(t, cfg)), func(d time.Duration) {
				p.Cut()
				time.Sleep(d)
				p.Restore()
			}
		},
	}
}
