package jetstream

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	goleak.VerifyTestMain(m, services.ServerLeaks()...)
}

// within is how long a test waits for what must come; a busy machine is slow.
const within = 30 * time.Second

// logTo sends the log to the test.
func logTo(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// embed starts a server that ends with the test.
func embed(t testing.TB, cfg EmbedConfig) *Server {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Embed(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// dial makes a connection that ends with the test.
func dial(t testing.TB, cfg ConnectConfig) *nats.Conn {
	t.Helper()
	nc, err := Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	t.Cleanup(func() {
		nc.Close()
		<-closed
	})
	return nc
}

// open makes a transport that ends with the test.
func open(t testing.TB, nc *nats.Conn, change ...func(*Config)) *Transport {
	t.Helper()
	cfg := Config{Conn: nc, Name: "embedded", Group: "test", CreateStreams: true, MaxAge: time.Hour, Log: logTo(t)}
	for _, f := range change {
		f(&cfg)
	}
	tr, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := tr.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// local is a transport on a server of its own.
func local(t testing.TB, change ...func(*Config)) *Transport {
	t.Helper()
	return open(t, dial(t, embed(t, EmbedConfig{}).ConnectConfig()), change...)
}

// consume opens a source that ends with the test.
func consume(t testing.TB, tr *Transport, cfg transport.SourceConfig) *source {
	t.Helper()
	if cfg.Route == "" {
		cfg.Route = "r"
	}
	if cfg.Subject == "" {
		cfg.Subject = "jobs"
	}
	if cfg.Limit == 0 {
		cfg.Limit = 64
	}
	s, err := tr.Source(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s.(*source)
}

// publish stores messages.
func publish(t testing.TB, tr *Transport, subject string, bodies ...string) {
	t.Helper()
	ms := make([]*transport.Message, len(bodies))
	for i, b := range bodies {
		ms[i] = &transport.Message{Subject: subject, Body: []byte(b)}
	}
	if err := tr.Publisher().Publish(t.Context(), ms...); err != nil {
		t.Fatal(err)
	}
}

// fetch waits for n deliveries and asks for at most limit at a time: never for more in all than the larger of the two.
func fetch(t testing.TB, s transport.Source, n, limit int) []transport.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var all []transport.Delivery
	for len(all) < n {
		ds, err := s.Fetch(ctx, min(limit, max(n, limit)-len(all)))
		if ctx.Err() != nil {
			t.Fatalf("%d of %d messages after %v: %v", len(all), n, within, err)
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // as a caller pauses
			continue
		}
		if len(ds) > limit {
			t.Fatalf("fetched %d, limit %d", len(ds), limit)
		}
		all = append(all, ds...)
	}
	return all
}

// none checks that nothing is delivered for a while.
func none(t testing.TB, s transport.Source, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for ctx.Err() == nil {
		ds, err := s.Fetch(ctx, 1)
		if err == nil && len(ds) > 0 {
			t.Fatalf("unexpected delivery of %q", ds[0].Message().Body)
		}
	}
}

// await polls until ok.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
