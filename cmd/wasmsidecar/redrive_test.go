package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/inmem"
)

// interrupted is a broker with which publishing, or taking letters away, fails once, as for a process that is killed there.
type interrupted struct {
	transport.Transport
	publish, discard error
}

func (x *interrupted) Discard(ctx context.Context, subject string, ms ...*transport.Stored) error {
	err := x.discard
	x.discard = nil
	if err != nil {
		return err
	}
	return x.Transport.Discard(ctx, subject, ms...)
}

func (x *interrupted) Publisher() transport.Publisher {
	return &interruptedPublisher{x.Transport.Publisher(), x}
}

type interruptedPublisher struct {
	transport.Publisher
	x *interrupted
}

func (p *interruptedPublisher) Publish(ctx context.Context, ms ...*transport.Message) error {
	err := p.x.publish
	p.x.publish = nil
	if err != nil {
		return err
	}
	return p.Publisher.Publish(ctx, ms...)
}

// A redrive that is interrupted anywhere loses no letter, and repeats the same message.
func TestRedriveInterrupted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		publish, discard error
		messages         int // of the job, in the end
	}{
		"not at all":      {messages: 1},
		"before the job":  {publish: errors.New("cut"), messages: 1},
		"before the mark": {discard: errors.New("cut"), messages: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr, err := inmem.Open(inmem.Config{})
			if err != nil {
				t.Fatal(err)
			}
			cfg := config.Default()
			r := config.DefaultRoute()
			r.Name, r.From, r.DeadLetter = "jobs", "jobs", "dead"
			cfg.Routes = append(cfg.Routes, r)
			orig := &transport.Message{Subject: "jobs", Body: []byte("body")}
			letter := transport.DeadLetter(&job.Job{ID: "id", Route: "jobs", Subject: "jobs"}, &job.Outcome{Kind: job.KindTrap}, orig, "dead", 0)
			if err := tr.Publisher().Publish(t.Context(), letter); err != nil {
				t.Fatal(err)
			}
			broker := &interrupted{tr, c.publish, c.discard}
			again := func() error {
				var out, talk bytes.Buffer
				d := &dlq{cfg: cfg, t: broker, subjects: []string{"dead"}}
				return (&redrive{dlq: d, s: streams{strings.NewReader(""), &out, &talk}, yes: true}).run(t.Context())
			}
			err = again()
			if wrong := c.publish != nil || c.discard != nil; wrong != (err != nil) {
				t.Fatalf("the first time: %v", err)
			}
			if err != nil && held(t, tr, "dead") == nil {
				t.Fatal("the letter is lost")
			}
			if err := again(); err != nil {
				t.Fatal(err)
			}
			if left := held(t, tr, "dead"); left != nil {
				t.Errorf("%d letters are left", len(left))
			}
			jobs := held(t, tr, "jobs")
			if len(jobs) != c.messages {
				t.Errorf("%d messages of the job, want %d", len(jobs), c.messages)
			}
			for _, m := range jobs {
				if id := m.Header.Get(transport.HeaderMsgID); id != "id/jobs/1.0/redrive" {
					t.Errorf("message id %q", id)
				}
			}
		})
	}
}

func held(t *testing.T, tr transport.Transport, subject string) []*transport.Stored {
	t.Helper()
	b, err := tr.Browse(t.Context(), subject, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var out []*transport.Stored
	for {
		m, err := b.Next(t.Context())
		if err != nil {
			return out
		}
		out = append(out, m)
	}
}

func TestParseSince(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Time{"": {}, "1h": now.Add(-time.Hour), "2025-12-31T00:00:00Z": time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC)} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"yesterday", "-1h", "2025-12-31"} {
		if _, err := parseSince(in, now); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}
