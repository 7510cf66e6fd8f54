package jetstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// logBuffer keeps a log that is written by other goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// deleteStreams tidies a server that other tests share.
func deleteStreams(tr *Transport, subjects ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for _, s := range subjects {
		_ = tr.js.DeleteStream(ctx, streamName(s)) // what stays does no harm
	}
	_ = tr.js.DeleteStream(ctx, tr.waitStream().Name)
}

func TestPrepareMakesStreams(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{
		Sources: []string{"jobs.echo", "orders.eu", "orders.*", "twice", "twice"}, Sinks: []string{"results.>", "dead", "results.echo"},
	})
	type kept struct {
		retention jetstream.RetentionPolicy
		maxAge    time.Duration
	}
	want := map[string]kept{
		"jobs.echo":    {jetstream.WorkQueuePolicy, 0},
		"orders.*":     {jetstream.InterestPolicy, 0}, // two routes read it
		"twice":        {jetstream.InterestPolicy, 0},
		"results.>":    {jetstream.LimitsPolicy, time.Hour},
		"dead":         {jetstream.LimitsPolicy, time.Hour},
		"results.echo": {jetstream.LimitsPolicy, time.Hour},
	}
	names := make(map[string]bool)
	for subject, k := range want {
		name, err := tr.streamFor(t.Context(), subject, nil)
		if err != nil {
			t.Fatal(err)
		}
		names[name] = true
		info, err := tr.streamInfo(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if c := info.Config; c.Retention != k.retention || c.MaxAge != k.maxAge || c.Storage != jetstream.FileStorage {
			t.Errorf("%s: %v, max age %v, %v", subject, c.Retention, c.MaxAge, c.Storage)
		}
	}
	if len(names) != 5 {
		t.Errorf("streams %v", names)
	}
	// Two routes on one subject both get every job.
	a := consume(t, tr, transport.SourceConfig{Route: "a", Subject: "orders.eu"})
	b := consume(t, tr, transport.SourceConfig{Route: "b", Subject: "orders.*"})
	publish(t, tr, "orders.eu", "x")
	fetch(t, a, 1, 1)[0].Ack()
	fetch(t, b, 1, 1)[0].Ack()
}

func TestPrepareUsesStreamsThatExist(t *testing.T) {
	t.Parallel()
	tr := local(t)
	made := jetstream.StreamConfig{Name: "OWN", Subjects: []string{"own.>"}, MaxMsgSize: 10_000}
	if _, err := tr.js.CreateStream(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	prepare(t, tr, transport.Subjects{Sources: []string{"own.jobs", "own.*.in"}, Sinks: []string{"own.results"}})
	if n := tr.Publisher().MaxBytes(); n != 10_000-formRoom {
		t.Errorf("MaxBytes %d", n)
	}
	// What fits by the server's measure only is refused by the stream.
	if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: "own.jobs", Body: make([]byte, 9000)}); !errors.Is(err, transport.ErrTooLarge) {
		t.Errorf("Publish: %v", err)
	}
	s := consume(t, tr, transport.SourceConfig{Subject: "own.*.in"})
	publish(t, tr, "own.a.in", "1")
	d := fetch(t, s, 1, 1)[0]
	if !strings.HasPrefix(d.Position(), "OWN@") || d.Message().Subject != "own.a.in" {
		t.Errorf("%s on %s", d.Position(), d.Message().Subject)
	}
	if err := d.Retry(t.Context(), time.Millisecond, moved("own.a.in", "m")); err != nil {
		t.Fatal(err)
	}
	if m := fetch(t, s, 1, 1)[0].Message(); m.Subject != "own.a.in" || string(m.Body) != "moved m" {
		t.Errorf("got %+v", m)
	}
	info, err := tr.streamInfo(t.Context(), "OWN")
	if err != nil || info.Config.MaxMsgSize != 10_000 || len(info.Config.Subjects) != 1 || info.Config.AllowMsgSchedules {
		t.Errorf("the stream was changed: %+v %v", info.Config, err)
	}
}

func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	tr := local(t)
	for _, c := range []jetstream.StreamConfig{
		{Name: "NARROW", Subjects: []string{"part.a"}},
		{Name: "DEAF", Subjects: []string{"deaf"}, NoAck: true},
	} {
		if _, err := tr.js.CreateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{"part.*", "good"}, Sinks: []string{"deaf"}})
	if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), `"NARROW"`) || !strings.Contains(err.Error(), `"DEAF"`) {
		t.Errorf("Prepare: %v", err)
	}

	fixed := open(t, tr.nc, func(c *Config) { c.CreateStreams, c.Group = false, "other" })
	err = fixed.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs.x"}, Sinks: []string{"results.x", "deaf"}})
	for _, want := range []string{`"jobs.x"`, `"results.x"`, "nats stream add WASM_jobs_x", "wasm.waiting.other"} {
		if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), want) {
			t.Errorf("Prepare: %v; want %s", err, want)
		}
	}
	if err := fixed.Publisher().Publish(t.Context(), &transport.Message{Subject: "jobs.x"}); !errors.Is(err, transport.ErrRejected) {
		t.Errorf("Publish to what no stream holds: %v", err)
	}
}

// Names that differ only in what a stream's name cannot hold are kept apart.
func TestStreamNamesThatCollide(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sources: []string{"a.b", "a_b"}})
	x, err := tr.streamFor(t.Context(), "a.b", nil)
	if err != nil {
		t.Fatal(err)
	}
	y, err := tr.streamFor(t.Context(), "a_b", nil)
	if err != nil || x == y {
		t.Errorf("%s %s %v", x, y, err)
	}
	if n := streamName(strings.Repeat("x.", 200)); len(n) > 120 {
		t.Errorf("a name of %d characters", len(n))
	}
}

func TestTwoRoutesOnAWorkQueue(t *testing.T) {
	t.Parallel()
	tr := local(t)
	consume(t, tr, transport.SourceConfig{Route: "a"})
	_, err := tr.Source(t.Context(), transport.SourceConfig{Route: "b", Subject: "jobs", Limit: 1})
	if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), "work-queue retention") {
		t.Errorf("Source: %v", err)
	}
}

func TestJetStreamNotEnabled(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, "accounts: { NOJS: { users: [ { user: u, password: p } ] } }\n# jetstream")
	tr := open(t, dial(t, ConnectConfig{URLs: []string{srv.Addr}, Username: "u", Password: "p"}))
	if err := tr.Prepare(t.Context(), transport.Subjects{}); !errors.Is(err, transport.ErrUnsupported) || !strings.Contains(err.Error(), "enable JetStream") {
		t.Errorf("Prepare: %v", err)
	}
}

func TestOlder(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]bool{
		"2.11.9": true, "2.12.0": false, "2.12.0-RC.1": false, "2.9.25": true, "2.15.2": false, "3.0.0": false, "": true,
	} {
		if older(v, minVersion) != want {
			t.Errorf("older(%q) is %v", v, !want)
		}
	}
}

func TestCoversAndOverlap(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b            string
		covers, overlap bool
	}{
		{"a", "a", true, true}, {"a", "b", false, false}, {"a.*", "a.b", true, true}, {"a.b", "a.*", false, true},
		{"a.>", "a.*", true, true}, {"a.*", "a.>", false, true}, {"a.>", "a", false, false}, {">", "a.b.c", true, true},
		{"a.*.c", "a.b.*", false, true}, {"a.*", "a.b.c", false, false}, {"*.b", "a.*", false, true},
	} {
		if covers(c.a, c.b) != c.covers || overlap(c.a, c.b) != c.overlap || overlap(c.b, c.a) != c.overlap {
			t.Errorf("%s and %s: covers %v, overlap %v", c.a, c.b, covers(c.a, c.b), overlap(c.a, c.b))
		}
	}
	if got := broadFirst([]string{"a.b", "x", "a.*", "a.>", "x"}); !slices.Equal(got, []string{"a.>", "a.*", "a.b", "x"}) {
		t.Errorf("broadFirst: %v", got)
	}
}

func TestParseMeta(t *testing.T) {
	t.Parallel()
	for reply, want := range map[string]string{
		"$JS.ACK.S.C.3.17.29.1700000000000000001.5":           "{3 17 1700000000000000001} true",
		"$JS.ACK.hub.HASH.S.C.3.17.29.1700000000000000001.5":  "{3 17 1700000000000000001} true",
		"$JS.ACK._.HASH.S.C.3.17.29.1700000000000000001.5.xy": "{3 17 1700000000000000001} true",
		"$JS.ACK.S.C.3.x.29.1700000000000000001.5":            "{0 0 0} false",
		"$JS.ACK.S": "{0 0 0} false", "": "{0 0 0} false", "_INBOX.1": "{0 0 0} false",
	} {
		m, ok := parseMeta(reply)
		if got := fmt.Sprint(m, ok); got != want {
			t.Errorf("%s: %s, want %s", reply, got, want)
		}
	}
}

// A server that is too old is named, with the version that is needed.
func TestOldServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "INFO {\"server_id\":\"X\",\"version\":\"2.11.9\",\"headers\":true,\"max_payload\":1048576,\"proto\":1}\r\n")
		for lines := bufio.NewScanner(c); lines.Scan(); {
			if lines.Text() == "PING" {
				fmt.Fprint(c, "PONG\r\n")
			}
		}
	})
	tr := open(t, dial(t, ConnectConfig{URLs: []string{l.Addr().String()}}))
	err = tr.Prepare(t.Context(), transport.Subjects{})
	if !errors.Is(err, transport.ErrUnsupported) || !strings.Contains(err.Error(), "2.11.9") || !strings.Contains(err.Error(), "2.12.0 or newer is needed") {
		t.Errorf("Prepare: %v", err)
	}
}

// A stream that Prepare made and somebody deleted is made again by the next publish.
func TestResultStreamMadeAgain(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sinks: []string{"results.>"}})
	if err := tr.js.DeleteStream(t.Context(), streamName("results.>")); err != nil {
		t.Fatal(err)
	}
	publish(t, tr, "results.a", "1", "2")
	info, err := tr.streamInfo(t.Context(), streamName("results.>"))
	if err != nil || info.State.Msgs != 2 || info.Config.Retention != jetstream.LimitsPolicy {
		t.Errorf("%+v %v", info, err)
	}
	if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: "other"}); !errors.Is(err, transport.ErrRejected) {
		t.Errorf("publish to a subject that nobody wants: %v", err)
	}
}
