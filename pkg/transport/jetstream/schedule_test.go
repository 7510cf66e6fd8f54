package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// moved is a message as the router moves it.
func moved(subject, id string) *transport.Message {
	return &transport.Message{Subject: subject, Body: []byte("moved " + id), Key: []byte("key"), Header: job.Header{
		{Name: transport.HeaderMsgID, Value: id}, {Name: transport.HeaderJobID, Value: "j"}, {Name: "Wasm-Was-Nats-Rollup", Value: "all"},
	}}
}

// D-06
func TestRetryIsNeverEarly(t *testing.T) {
	t.Parallel()
	tr := local(t)
	for _, after := range []time.Duration{0, time.Millisecond, 300 * time.Millisecond, time.Second, 2500 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			t.Parallel()
			subject := "jobs." + strings.ReplaceAll(after.String(), ".", "_")
			s := consume(t, tr, transport.SourceConfig{Route: after.String(), Subject: subject})
			publish(t, tr, subject, "first")
			d := fetch(t, s, 1, 1)[0]
			begun := time.Now()
			if err := d.Retry(t.Context(), after, moved(subject, after.String())); err != nil {
				t.Fatal(err)
			}
			got := fetch(t, s, 1, 1)[0]
			took := time.Since(begun)
			t.Logf("came after %v", took)
			if took < after {
				t.Errorf("came after %v", took)
			}
			if took > after+time.Second {
				t.Logf("late by more than a second")
				if took > after+within/2 {
					t.Errorf("came after %v", took)
				}
			}
			m := got.Message()
			if string(m.Body) != "moved "+after.String() || m.Subject != subject || string(m.Key) != "key" {
				t.Errorf("got %+v", m)
			}
			for _, f := range m.Header {
				if strings.HasPrefix(f.Name, "Nats-") && f.Name != transport.HeaderMsgID || f.Name == headerMoveID {
					t.Errorf("header %s: %s is left over", f.Name, f.Value)
				}
			}
			if m.Header.Get(transport.HeaderMsgID) != after.String() || m.Header.Get("Wasm-Was-Nats-Rollup") != "all" {
				t.Errorf("headers %v", m.Header)
			}
			got.Ack()
			none(t, s, 300*time.Millisecond)
			if n, err := tr.Backlog(t.Context(), after.String()); err != nil || n != 0 {
				t.Errorf("backlog %d, %v", n, err)
			}
		})
	}
}

// A delayed job waits on the server: neither the process nor the server need be there in between.
func TestRetrySurvivesRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	srv := embed(t, EmbedConfig{Dir: dir})
	nc := dial(t, srv.ConnectConfig())
	tr := open(t, nc)
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "x")
	begun := time.Now()
	if err := fetch(t, s, 1, 1)[0].Retry(t.Context(), 2*time.Second, moved("jobs", "1")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []interface{ Close(context.Context) error }{s, tr} {
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	nc.Close()
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = consume(t, open(t, dial(t, embed(t, EmbedConfig{Dir: dir}).ConnectConfig())), transport.SourceConfig{})
	d := fetch(t, s, 1, 1)[0]
	if took := time.Since(begun); took < 2*time.Second || string(d.Message().Body) != "moved 1" {
		t.Errorf("%q after %v", d.Message().Body, took)
	}
	d.Ack()
	none(t, s, 300*time.Millisecond)
}

// The same move again, after a crash before the settlement, leads to one message.
func TestRetryTwice(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "x")
	d := fetch(t, s, 1, 1)[0].(*delivery)
	for range 2 {
		if err := tr.schedule(t.Context(), time.Second, moved("jobs", "1"), d); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Retry(t.Context(), time.Second, moved("jobs", "1")); err != nil {
		t.Fatal(err)
	}
	fetch(t, s, 1, 1)[0].Ack()
	none(t, s, 1500*time.Millisecond)
}

// A job that has grown too large for a move stays where it is, until it is due.
func TestRetryOfWhatHasBecomeTooLarge(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "original")
	m := moved("jobs", "1")
	m.Body = make([]byte, 2<<20)
	begun := time.Now()
	if err := fetch(t, s, 1, 1)[0].Retry(t.Context(), 500*time.Millisecond, m); err != nil {
		t.Fatal(err)
	}
	d := fetch(t, s, 1, 1)[0]
	if took := time.Since(begun); string(d.Message().Body) != "original" || took < 500*time.Millisecond {
		t.Errorf("got %d bytes after %v", len(d.Message().Body), took)
	}
	d.Ack()
}

// The stream of delayed messages may be deleted while we run.
func TestRetryMakesItsStreamAgain(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	publish(t, tr, "jobs", "x", "y")
	ds := fetch(t, s, 2, 2)
	if err := ds[0].Retry(t.Context(), time.Millisecond, moved("jobs", "1")); err != nil {
		t.Fatal(err)
	}
	fetch(t, s, 1, 1)[0].Ack()
	if err := tr.js.DeleteStream(t.Context(), tr.waitStream().Name); err != nil {
		t.Fatal(err)
	}
	for { // what meets the stream as it ends is not acknowledged
		err := ds[1].Retry(t.Context(), time.Millisecond, moved("jobs", "2"))
		if err == nil {
			break
		}
		if transport.Permanent(err) || t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
	fetch(t, s, 1, 1)[0].Ack()
}

func TestManyRetriesAtOnce(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{Limit: 256})
	const n = 500
	for i := range n {
		publish(t, tr, "jobs", fmt.Sprint(i))
	}
	ds := fetch(t, s, n, 256)
	begun := time.Now()
	errs := make(chan error, n)
	for i, d := range ds {
		go func() { errs <- d.Retry(t.Context(), time.Second, moved("jobs", fmt.Sprint("m", i))) }()
	}
	var err error
	for range n {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, d := range fetch(t, s, n, 256) {
		seen[string(d.Message().Body)] = true
		d.Ack()
	}
	if took := time.Since(begun); len(seen) != n || took < time.Second {
		t.Errorf("%d of %d after %v", len(seen), n, took)
	}
}
