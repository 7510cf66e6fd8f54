package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

// What tests have named on the shared broker, to be deleted when they are over.
var used struct {
	sync.Mutex
	names   []string
	brokers []string
}

// unique names a topic or group that nobody has used. What begins with it is deleted after the tests.
func unique(t testing.TB) string {
	name := services.UniqueName(t)
	used.Lock()
	used.names = append(used.names, name)
	used.Unlock()
	return name
}

// real returns the address of the plain listener of the shared broker.
func real(t testing.TB) []string {
	t.Helper()
	brokers := []string{services.Kafka(t)}
	used.Lock()
	used.brokers = brokers
	used.Unlock()
	return brokers
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := deleteUsed(); err != nil {
			fmt.Fprintln(os.Stderr, "delete the topics of the tests:", err)
		}
		os.Exit(code)
	}))
}

// deleteUsed spares the shared broker thousands of partitions.
func deleteUsed() error {
	if used.brokers == nil {
		return nil
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(used.brokers...))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	details, err := adm.ListTopics(ctx)
	if err != nil {
		return err
	}
	var topics []string
	for topic := range details {
		if slices.ContainsFunc(used.names, func(name string) bool { return strings.HasPrefix(strings.TrimPrefix(topic, "g-"), name) }) {
			topics = append(topics, topic)
		}
	}
	adm.SetTimeoutMillis(int32(patience.Milliseconds()))
	for few := range slices.Chunk(topics, 100) { // the broker refuses more than some thousand partitions at once
		deleted, err := adm.DeleteTopics(ctx, few...)
		if err = errors.Join(err, deleted.Error()); err != nil {
			return err
		}
	}
	return nil
}

// fake starts a broker within the process.
func fake(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, []string) {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatalf("start kfake: %v", err)
	}
	t.Cleanup(c.Close)
	return c, c.ListenAddrs()
}

// config is one for a test of its own: a group of its own, topics made as needed, one replica.
func config(t testing.TB, brokers []string) Config {
	return Config{Brokers: brokers, Group: "g-" + unique(t), CreateTopics: true, Partitions: 1, Replication: 1,
		DelayTiers: 3, Log: testLog(t)}
}

// testLog writes to the test's log until the test is over.
func testLog(t testing.TB) *slog.Logger {
	w := &logWriter{t: t}
	t.Cleanup(w.stop)
	level := slog.LevelInfo
	if os.Getenv("KAFKA_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

type logWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func (w *logWriter) stop() {
	w.mu.Lock()
	w.t = nil
	w.mu.Unlock()
}

// open makes a transport that is closed when the test is over.
func open(t testing.TB, cfg Config) *Transport {
	t.Helper()
	tr, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := tr.Close(ctx); err != nil {
			t.Errorf("close the transport: %v", err)
		}
	})
	return tr
}

// prepare makes the topic.
func prepare(t testing.TB, tr *Transport, topics ...string) {
	t.Helper()
	if err := tr.Prepare(t.Context(), transport.Subjects{Sources: topics, Sinks: topics}); err != nil {
		t.Fatalf("prepare: %v", err)
	}
}

// source begins to consume; it is closed when the test is over.
func openSource(t testing.TB, tr *Transport, topic string, edit ...func(*transport.SourceConfig)) *source {
	t.Helper()
	cfg := transport.SourceConfig{Route: topic, Subject: topic, Limit: 256, DrainBudget: 2 * time.Second}
	for _, e := range edit {
		e(&cfg)
	}
	s, err := tr.Source(t.Context(), cfg)
	if err != nil {
		t.Fatalf("source: %v", err)
	}
	t.Cleanup(func() { closeSource(t, s) })
	return s.(*source)
}

func closeSource(t testing.TB, s transport.Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("close the source: %v", err)
	}
}

// publish writes bodies to a topic.
func publish(t testing.TB, tr *Transport, topic string, bodies ...string) {
	t.Helper()
	ms := make([]*transport.Message, len(bodies))
	for i, b := range bodies {
		ms[i] = &transport.Message{Subject: topic, Body: []byte(b)}
	}
	if err := tr.Publisher().Publish(t.Context(), ms...); err != nil {
		t.Fatalf("publish: %v", err)
	}
}

// numbered returns the texts "0" … n-1.
func numbered(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(i)
	}
	return out
}

// fetch returns exactly n deliveries, and fails the test when they do not come.
func fetch(t testing.TB, s transport.Source, n int) []transport.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out []transport.Delivery
	for len(out) < n {
		ds, err := s.Fetch(ctx, n-len(out))
		if ctx.Err() != nil {
			t.Fatalf("fetched %d of %d within %v", len(out), n, patience)
		}
		if err != nil {
			t.Logf("fetch: %v", err)
			pause(ctx, 50*time.Millisecond)
		}
		out = append(out, ds...)
	}
	return out
}

// none fails the test when anything is delivered within d.
func none(t testing.TB, s transport.Source, d time.Duration, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for ctx.Err() == nil {
		ds, err := s.Fetch(ctx, 100)
		if len(ds) > 0 {
			t.Fatalf("%s: %q was delivered", why, ds[0].Message().Body)
		}
		if err != nil && ctx.Err() == nil {
			pause(ctx, 10*time.Millisecond)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// await polls until ok.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// admin is a client of its own.
func admin(t testing.TB, brokers []string, opts ...kgo.Opt) (*kgo.Client, *kadm.Client) {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(100 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatalf("admin client: %v", err)
	}
	t.Cleanup(cl.Close)
	return cl, kadm.NewClient(cl)
}

// offset returns what a group has committed for partition 0 of a topic, -1 for nothing.
func offset(t testing.TB, tr *Transport, topic string) (int64, string) {
	t.Helper()
	os, err := tr.adm.FetchOffsets(t.Context(), tr.cfg.Group)
	if err != nil {
		t.Fatalf("fetch offsets: %v", err)
	}
	o, ok := os.Lookup(topic, 0)
	if !ok {
		return -1, ""
	}
	return o.At, o.Metadata
}

func body(d transport.Delivery) string { return string(d.Message().Body) }

func isClosed(err error) bool { return errors.Is(err, transport.ErrClosed) }
