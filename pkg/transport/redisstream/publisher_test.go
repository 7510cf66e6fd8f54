package redisstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestPublishTogether(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	if err := c.Set(t.Context(), stream+"-text", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			// One that fails does not take the others with it.
			if i%10 == 0 {
				err := tr.Publisher().Publish(t.Context(), msg(stream+"-text", "x"))
				if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), stream+"-text") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err := tr.Publisher().Publish(t.Context(), msg(stream, fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := c.XLen(t.Context(), stream).Val(); n != 180 {
		t.Errorf("%d of 180 messages", n)
	}
}

func TestPublishRefuses(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c, func(cfg *Config) { cfg.CreateStreams = false })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		m    *transport.Message
		want error
		text string
	}{
		{"no subject", t.Context(), msg("", "x"), transport.ErrRejected, "no stream name"},
		{"spaces", t.Context(), msg("a b", "x"), transport.ErrRejected, "spaces"},
		{"too large", t.Context(), msg(stream, strings.Repeat("x", tr.Publisher().MaxBytes()+1)), transport.ErrTooLarge, stream},
		{"no stream", t.Context(), msg(stream, "x"), transport.ErrRejected, "does not exist"},
		{"caller left", ctx, msg(stream, "x"), context.Canceled, stream},
	} {
		if err := tr.Publisher().Publish(tc.ctx, tc.m); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tr.Publisher().Publish(t.Context(), msg(stream, "x")); !errors.Is(err, transport.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// Results are trimmed when that is asked for; job streams never are, whoever reads them.
func TestTrim(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c, func(cfg *Config) { cfg.MaxLen = 100 })
	results, known, others := stream+"-results", stream+"-known", stream+"-others"
	if err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{known}, Sinks: []string{results}}); err != nil {
		t.Fatal(err)
	}
	if err := c.XGroupCreateMkStream(t.Context(), others, "workers", "0").Err(); err != nil {
		t.Fatal(err)
	}
	const n = 2000
	for _, s := range []string{results, known, others} {
		numbered(t, tr, s, n)
	}
	// Redis trims whole nodes of a hundred entries.
	if got := c.XLen(t.Context(), results).Val(); got < 100 || got > 300 {
		t.Errorf("%d results are kept, want about 100", got)
	}
	for _, s := range []string{known, others} {
		if got := c.XLen(t.Context(), s).Val(); got != n {
			t.Errorf("%s: %d of %d jobs are left", s, got, n)
		}
	}
}

// Out of memory is the operator's to mend and not the message's fault: what is refused is tried again.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t)
	c := client(t, srv.Addr)
	tr := open(t, c)
	src := openSource(t, tr, "jobs", time.Minute)
	publish(t, tr, msg("jobs", "a"), msg("jobs", "b"))
	ds := fetch(t, src, 2)
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	err := tr.Publisher().Publish(t.Context(), msg("results", "x"))
	if err == nil || transport.Permanent(err) || !strings.Contains(err.Error(), "maxmemory") {
		t.Errorf("publish: %v", err)
	}
	if err := ds[0].Retry(t.Context(), time.Second, ds[0].Message()); err == nil || transport.Permanent(err) {
		t.Errorf("retry: %v", err)
	}
	if err := src.Extend(t.Context(), ds); err != nil || ds[0].Lost() {
		t.Errorf("extend: %v, lost %v", err, ds[0].Lost())
	}
	ds[1].Ack() // frees memory and so must be taken
	eventually(t, "the acknowledgement was written", func() bool { return c.XLen(t.Context(), "jobs").Val() == 1 })
	if err := c.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if err := ds[0].Retry(t.Context(), 0, ds[0].Message()); err != nil {
		t.Fatal(err)
	}
	fetch(t, src, 1)[0].Ack()
	empty(t, c, "jobs")
}

func TestTail(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	publish(t, tr, msg(stream, "before"))
	for _, tc := range []struct {
		fromStart bool
		want      []string
	}{{true, []string{"before", "after", "again"}}, {false, []string{"after", "again"}}} {
		t.Run(fmt.Sprint(tc.fromStart), func(t *testing.T) {
			stream := stream + fmt.Sprint(tc.fromStart)
			publish(t, tr, msg(stream, "before"))
			tail, err := tr.Tail(t.Context(), stream, tc.fromStart)
			if err != nil {
				t.Fatal(err)
			}
			publish(t, tr, msg(stream, "after", "a", "1", "a", "2"))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for i, want := range tc.want {
				if want == "again" { // a stream that is deleted and made again goes on
					last := c.XInfoStream(ctx, stream).Val().LastGeneratedID
					if err := c.Del(ctx, stream).Err(); err != nil {
						t.Fatal(err)
					}
					eventually(t, "the clock went on", func() bool {
						return less(last, fmt.Sprintf("%d-0", c.Time(ctx).Val().UnixMilli()))
					})
					publish(t, tr, msg(stream, "again"))
				}
				m, err := tail.Next(ctx)
				if err != nil || string(m.Body) != want {
					t.Fatalf("message %d: got %v, %v, want %q", i, m, err, want)
				}
				if got := m.Header.Values("a"); want == "after" && len(got) != 2 {
					t.Errorf("a header that occurs twice came as %q", got)
				}
			}
			if err := tail.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := tail.Next(ctx); !errors.Is(err, transport.ErrClosed) {
				t.Errorf("after close: %v", err)
			}
		})
	}
}

func TestBacklog(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	if b, err := tr.Backlog(t.Context(), stream); err != nil || b != (Backlog{}) {
		t.Errorf("of nothing: %+v, %v", b, err)
	}
	src := openSource(t, tr, stream, time.Minute)
	numbered(t, tr, stream, 5)
	ds := fetch(t, src, 3)
	if err := ds[0].Retry(t.Context(), time.Hour, ds[0].Message()); err != nil {
		t.Fatal(err)
	}
	want := Backlog{Waiting: 2, Pending: 2, Delayed: 1}
	if b, err := tr.Backlog(t.Context(), stream); err != nil || b != want {
		t.Errorf("got %+v, %v, want %+v", b, err, want)
	}
}

// logged collects what is logged.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
