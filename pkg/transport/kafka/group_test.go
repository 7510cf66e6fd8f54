package kafka

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// worker fetches and settles until ctx ends.
func worker(ctx context.Context, s transport.Source, work func(transport.Delivery)) {
	for ctx.Err() == nil {
		ds, err := s.Fetch(ctx, 64)
		if isClosed(err) {
			return
		}
		if err != nil {
			pause(ctx, 20*time.Millisecond)
		}
		for _, d := range ds {
			work(d)
		}
	}
}

type tally struct {
	mu   sync.Mutex
	seen map[string]int
	last map[int32]time.Time // by partition
}

func newTally() *tally { return &tally{seen: map[string]int{}, last: map[int32]time.Time{}} }

func (c *tally) add(d transport.Delivery) {
	c.mu.Lock()
	c.seen[body(d)]++
	c.last[d.(*delivery).p.num] = time.Now()
	c.mu.Unlock()
}

func (c *tally) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.seen)
}

// spread writes bodies over the partitions of a topic in turn.
func spread(t testing.TB, brokers []string, topic string, parts int32, bodies []string) {
	t.Helper()
	cl, _ := admin(t, brokers, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	rs := make([]*kgo.Record, len(bodies))
	for i, b := range bodies {
		rs[i] = &kgo.Record{Topic: topic, Partition: int32(i) % parts, Value: []byte(b)}
	}
	if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
		t.Fatalf("produce: %v", err)
	}
}

// D-14: two members share the work while a job keeps failing; nothing is lost, and the failing job holds nobody up.
func TestRebalanceWhileAJobFails(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"classic", "consumer"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			topic := unique(t)
			cfg := config(t, real(t))
			cfg.Partitions, cfg.Protocol = 4, protocol
			tr := open(t, cfg)
			prepare(t, tr, topic)
			const n = 2000
			spread(t, cfg.Brokers, topic, 4, numbered(n))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := newTally()
			var wg sync.WaitGroup
			var mu sync.Mutex
			by := map[string]int{}
			member := func(name string) *source {
				s := openSource(t, open(t, cfg), topic)
				wg.Go(func() {
					worker(ctx, s, func(d transport.Delivery) {
						if body(d) == "17" { // fails for ever
							_ = d.Retry(ctx, 100*time.Millisecond, nil)
							return
						}
						mu.Lock()
						by[name]++
						mu.Unlock()
						done.add(d)
						time.Sleep(500 * time.Microsecond)
						d.Ack()
					})
				})
				return s
			}
			member("a")
			await(t, "first jobs", func() bool { return done.len() > 50 })
			b := member("b")
			await(t, "the rest", func() bool { return done.len() == n-1 })
			await(t, "partitions for b", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.parts) == 2 })
			spread(t, cfg.Brokers, topic, 4, []string{"x0", "x1", "x2", "x3"})
			await(t, "jobs for both", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return done.len() == n+3 && by["b"] >= 2
			})
			closeSource(t, b)
			spread(t, cfg.Brokers, topic, 4, []string{"y0", "y1", "y2", "y3"})
			await(t, "jobs after b has left", func() bool { return done.len() == n+7 })
			cancel()
			wg.Wait()
			t.Logf("by %v, duplicates %d", by, func() (dup int) {
				for _, k := range done.seen {
					dup += k - 1
				}
				return dup
			}())
		})
	}
}

// A revoked partition waits for what is running, within its budget, and what ends later has no effect.
func TestRevokeDrains(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		budget time.Duration
		job    time.Duration
		again  bool
	}{
		{"within the budget", 20 * time.Second, 2 * time.Second, false},
		{"beyond the budget", 500 * time.Millisecond, 6 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			topic := unique(t)
			cfg := config(t, real(t))
			cfg.Partitions = 2
			tr := open(t, cfg)
			prepare(t, tr, topic)
			spread(t, cfg.Brokers, topic, 2, []string{"p0", "p1"})
			a := openSource(t, tr, topic, func(sc *transport.SourceConfig) { sc.DrainBudget = c.budget })
			ds := fetch(t, a, 2)
			b := openSource(t, open(t, cfg), topic)
			began := time.Now()
			got := make(chan transport.Delivery, 10)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() { worker(ctx, b, func(d transport.Delivery) { got <- d }) })
			await(t, "the revocation", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return len(a.parts) == 1
			})
			pause(t.Context(), time.Until(began.Add(c.job)))
			lost := 0
			for _, d := range ds {
				if d.Lost() {
					lost++
				}
				d.Ack()
			}
			if (lost == 1) != c.again {
				t.Errorf("%d deliveries are lost", lost)
			}
			await(t, "partition for b", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.parts) == 1 })
			select {
			case d := <-got:
				if !c.again {
					t.Errorf("%s was delivered to both", body(d))
				}
				if !d.Redelivered() {
					t.Errorf("%s is not marked as redelivered", body(d))
				}
				d.Ack()
			case <-time.After(2 * time.Second):
				if c.again {
					t.Error("what was lost was not delivered again")
				}
			}
			cancel()
			wg.Wait()
		})
	}
}

// The partitions of a member that died without a word go on.
func TestKilledMember(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	cfg.Partitions = 2
	net := newCut()
	dying := cfg
	dying.Dial = net.dial
	tr := open(t, cfg)
	prepare(t, tr, topic)
	a := openSource(t, tr, topic)
	b := openSource(t, open(t, dying), topic)
	await(t, "a partition each", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(a.parts) == 1 && len(b.parts) == 1
	})
	spread(t, cfg.Brokers, topic, 2, []string{"p0", "p1"})
	fetch(t, b, 1)
	net.cut()
	began := time.Now()
	for _, d := range fetch(t, a, 2) {
		d.Ack()
	}
	t.Logf("all went on after %v", time.Since(began))
	if took := time.Since(began); took > 15*time.Second { // promised are ten, on a machine that is not busy
		t.Errorf("the dead member's partition went on after %v", took)
	}
	crash(b)
}

// A topic that is deleted and made again is consumed from its beginning, and written to.
func TestTopicRecreated(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"classic", "consumer"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			topic := unique(t)
			cfg := config(t, real(t))
			cfg.Protocol = protocol
			tr := open(t, cfg)
			prepare(t, tr, topic)
			publish(t, tr, topic, numbered(20)...)
			s := openSource(t, tr, topic)
			ds := fetch(t, s, 20)
			for _, d := range ds[:15] {
				d.Ack()
			}
			await(t, "commit", func() bool { o, _ := offset(t, tr, topic); return o == 15 })
			recreate(t, tr.adm, topic)
			publish(t, tr, topic, "new0", "new1", "new2")
			began := time.Now()
			for i, d := range fetch(t, s, 3) {
				if want := fmt.Sprintf("new%d", i); body(d) != want || d.Redelivered() {
					t.Errorf("got %q, redelivered %v, want %q", body(d), d.Redelivered(), want)
				}
				if d.Position() == ds[i].Position() {
					t.Errorf("the position %s is that of another message", d.Position())
				}
				d.Ack()
			}
			t.Logf("consumed %v after it was made again", time.Since(began))
			if !ds[19].Lost() {
				t.Error("a delivery from the deleted topic is not lost")
			}
			ds[19].Ack()
			closeSource(t, s)
			if o, m := offset(t, tr, topic); o != 3 {
				t.Errorf("committed %d (%s), want 3", o, m)
			}
		})
	}
}

// A topic made again while nobody looked is consumed from its beginning too, though the old offset fits it.
func TestTopicRecreatedWhileAway(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	prepare(t, tr, topic)
	publish(t, tr, topic, numbered(5)...)
	s := openSource(t, tr, topic)
	for _, d := range fetch(t, s, 5) {
		d.Ack()
	}
	closeSource(t, s)
	_, meta := offset(t, tr, topic)
	recreate(t, tr.adm, topic)
	publish(t, tr, topic, numbered(8)...)
	var os kadm.Offsets // as if the broker had not dropped it yet
	os.Add(kadm.Offset{Topic: topic, At: 5, LeaderEpoch: -1, Metadata: meta})
	if _, err := tr.adm.CommitOffsets(t.Context(), tr.cfg.Group, os); err != nil {
		t.Fatal(err)
	}
	s = openSource(t, tr, topic)
	for i, d := range fetch(t, s, 8) {
		if body(d) != fmt.Sprint(i) {
			t.Errorf("delivery %d is %q", i, body(d))
		}
		d.Ack()
	}
}

// recreate deletes a topic and makes it again, and waits until the brokers know.
func recreate(t testing.TB, adm *kadm.Client, topic string) {
	t.Helper()
	id := func() kadm.TopicID {
		details, err := adm.ListTopics(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		return details[topic].ID
	}
	old := id()
	if _, err := adm.DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	await(t, "making the topic again", func() bool {
		_, err := adm.CreateTopic(t.Context(), 1, 1, nil, topic)
		return err == nil
	})
	await(t, "knowing the new topic", func() bool { now := id(); return now != old && now != kadm.TopicID{} })
}

// Records in a partition that was added are found, from its beginning.
func TestPartitionsAdded(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	tr := open(t, cfg)
	prepare(t, tr, topic)
	s := openSource(t, tr, topic)
	publish(t, tr, topic, "0")
	fetch(t, s, 1)[0].Ack()
	if _, err := tr.adm.UpdatePartitions(t.Context(), 2, topic); err != nil {
		t.Fatal(err)
	}
	await(t, "knowing the new partition", func() bool {
		details, err := tr.adm.ListTopics(t.Context(), topic)
		return err == nil && len(details[topic].Partitions) == 2 && led(details, []string{topic})
	})
	spread(t, cfg.Brokers, topic, 2, []string{"a", "b", "c", "d"})
	began := time.Now()
	for _, d := range fetch(t, s, 4) {
		d.Ack()
	}
	t.Logf("found after %v", time.Since(began))
}

// What the broker dropped before it was read is counted; the rest is consumed.
func TestGap(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	tr := open(t, cfg)
	prepare(t, tr, topic)
	publish(t, tr, topic, numbered(100)...)
	var os kadm.Offsets
	os.Add(kadm.Offset{Topic: topic, At: 10, LeaderEpoch: -1})
	if _, err := tr.adm.CommitOffsets(t.Context(), cfg.Group, os); err != nil {
		t.Fatal(err)
	}
	os = kadm.Offsets{}
	os.Add(kadm.Offset{Topic: topic, At: 60})
	if _, err := tr.adm.DeleteRecords(t.Context(), os); err != nil {
		t.Fatal(err)
	}
	s := openSource(t, tr, topic)
	ds := fetch(t, s, 40)
	if body(ds[0]) != "60" {
		t.Errorf("began with %q", body(ds[0]))
	}
	if !ds[0].Redelivered() {
		t.Error("the group's offset was another program's: anything may have been delivered")
	}
	if n := tr.Stats().Gaps; n != 50 {
		t.Errorf("counted %d lost messages, want 50", n)
	}
}

// A source says that it has no partitions yet until the group has assigned them; a member for whom there are none has joined too.
func TestJoined(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	tr := open(t, cfg)
	prepare(t, tr, topic)
	first := openSource(t, tr, topic)
	if first.Joined() == nil {
		t.Error("joined before the broker was asked")
	}
	await(t, "the partition", func() bool { return first.Joined() == nil })
	spare := openSource(t, open(t, cfg), topic)
	await(t, "the word that there is none left", func() bool { return spare.Joined() == nil })
	spare.mu.Lock()
	first.mu.Lock()
	defer first.mu.Unlock()
	defer spare.mu.Unlock()
	if len(first.parts)+len(spare.parts) != 1 {
		t.Errorf("%d and %d partitions, want one between them", len(first.parts), len(spare.parts))
	}
}
