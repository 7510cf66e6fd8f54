package kafka

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestTier(t *testing.T) {
	t.Parallel()
	for wait, want := range map[time.Duration]int{
		time.Second: 1, 1999 * time.Millisecond: 1, 2 * time.Second: 2, 5300 * time.Millisecond: 4, time.Hour: 2048,
		65536 * time.Second: 65536, 100 * time.Hour: 65536,
	} {
		if got := (&Config{DelayTiers: defaultTiers}).tier(wait); got != want {
			t.Errorf("tier(%v) = %d, want %d", wait, got, want)
		}
	}
	if got := (&Config{DelayTiers: 3}).tier(time.Hour); got != 4 {
		t.Errorf("an hour waits in the topic of %d s, want the last", got)
	}
}

// Retries come when they are due, whatever waits beside them, and keep what they carry.
func TestDelays(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	cfg.Delays = true
	tr := open(t, cfg)
	prepare(t, tr, topic)
	// The first hops through the last topic twice.
	waits := []time.Duration{9300 * time.Millisecond, 5300 * time.Millisecond, 1900 * time.Millisecond, 1500 * time.Millisecond, 1100 * time.Millisecond,
		200 * time.Millisecond, 3 * time.Second, 0, 30 * time.Minute}
	publish(t, tr, topic, numbered(len(waits))...)
	s := openSource(t, tr, topic)
	due := map[string]time.Time{}
	for i, d := range fetch(t, s, len(waits)) {
		m := &transport.Message{Subject: topic, Key: []byte("k"), Body: d.Message().Body, Header: job.Header{{Name: "Wasm-Moved", Value: "0.1"}, {Name: "a", Value: "1"}, {Name: "a", Value: "2"}}}
		due[body(d)] = time.Now().Add(waits[i])
		if err := d.Retry(t.Context(), waits[i], m); err != nil {
			t.Fatalf("retry after %v: %v", waits[i], err)
		}
	}
	for range len(waits) - 1 {
		d := fetch(t, s, 1)[0]
		late := time.Since(due[body(d)])
		t.Logf("%s: %v after it was due", body(d), late)
		if late < -time.Millisecond {
			t.Errorf("%s came %v early", body(d), -late)
		}
		if late > 3*time.Second { // promised is one, on a machine that is not busy
			t.Errorf("%s came %v late", body(d), late)
		}
		m := d.Message()
		if got := fmt.Sprintf("%v %s %v", m.Header.Values("a"), m.Header.Get("Wasm-Moved"), m.Subject == topic); got != "[1 2] 0.1 true" {
			t.Errorf("%s came as %v %s", body(d), m.Header, m.Subject)
		}
		for _, f := range m.Header {
			if strings.HasPrefix(f.Name, "Wasm-Delay") {
				t.Errorf("%s still carries %s", body(d), f.Name)
			}
		}
		d.Ack()
	}
	closeSource(t, s)
	if o, _ := offset(t, tr, topic); o < int64(len(waits)) {
		t.Errorf("committed %d: a delayed job holds the watermark", o)
	}
}

// Delayed jobs survive a restart of everything.
func TestDelaySurvivesRestart(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	cfg.Delays = true
	tr := open(t, cfg)
	prepare(t, tr, topic)
	publish(t, tr, topic, "x")
	s := openSource(t, tr, topic)
	d := fetch(t, s, 1)[0]
	due := time.Now().Add(3500 * time.Millisecond)
	if err := d.Retry(t.Context(), time.Until(due), d.Message()); err != nil {
		t.Fatal(err)
	}
	closeSource(t, s)
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr = open(t, cfg)
	s = openSource(t, tr, topic)
	d = fetch(t, s, 1)[0]
	if early := time.Until(due); early > 0 {
		t.Errorf("came %v early", early)
	}
	d.Ack()
	none(t, s, 300*time.Millisecond, "one delivery")
}

// A delayed job whose target is gone holds up no other.
func TestDelayTargetGone(t *testing.T) {
	t.Parallel()
	topic, other := unique(t), unique(t)
	cfg := config(t, real(t))
	cfg.Delays = true
	tr := open(t, cfg)
	prepare(t, tr, topic, other)
	publish(t, tr, topic, "lost")
	publish(t, tr, other, "kept")
	s, o := openSource(t, tr, topic), openSource(t, tr, other)
	for _, x := range []*source{s, o} {
		d := fetch(t, x, 1)[0]
		if err := d.Retry(t.Context(), 1200*time.Millisecond, d.Message()); err != nil {
			t.Fatal(err)
		}
	}
	closeSource(t, s)
	tr.cfg.CreateTopics = false
	if _, err := tr.adm.DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	d := fetch(t, o, 1)[0]
	if body(d) != "kept" {
		t.Errorf("got %q", body(d))
	}
	d.Ack()
}

// The mover holds enough of a partition that it does not run dry, at some thousands a second, while a pause of its fetching ends.
func TestMoverReadsAhead(t *testing.T) {
	t.Parallel()
	cl, err := kgo.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	for name, c := range map[string]struct {
		due        func(*kgo.Record) time.Time
		most, dry  int
		perMessage int
	}{
		"route":       {nil, queueMax, queueMax / 2, 1},
		"mover":       {func(*kgo.Record) time.Time { return time.Time{} }, dueMax, dueMax / 2, 1},
		"mover bytes": {func(*kgo.Record) time.Time { return time.Time{} }, queueBytes >> 9, queueBytes >> 10, 1 << 9},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &source{cl: cl, due: c.due}
			p := &partition{topicPartition: topicPartition{name, 0}, gated: true}
			for _, x := range []struct {
				queued int
				paused bool
			}{{c.most - 1, false}, {c.most, true}, {c.most - 1, true}, {c.dry - 1, false}} {
				p.records, p.bytes = make([]*kgo.Record, x.queued), x.queued*c.perMessage
				if s.pauseOrResume(p); p.paused != x.paused {
					t.Errorf("with %d queued: paused %v", x.queued, p.paused)
				}
			}
			if c.due != nil && time.Duration(c.dry)*time.Second/4000 < fetchWait {
				t.Errorf("%d messages last less than %v", c.dry, fetchWait)
			}
		})
	}
}
