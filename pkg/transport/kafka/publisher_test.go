package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A message comes back as it was written; foreign records and tombstones are messages too.
func TestMessages(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	tr := open(t, cfg)
	prepare(t, tr, topic)
	in := []*transport.Message{
		{Subject: topic, Key: []byte("k"), ReplyTo: "answers", Body: []byte("body"),
			Header: job.Header{{Name: "A", Value: "1"}, {Name: "a", Value: "2"}, {Name: "empty"}, {Name: transport.HeaderWatermillUUID, Value: "u"}}},
		{Subject: topic},
	}
	if err := tr.Publisher().Publish(t.Context(), in...); err != nil {
		t.Fatal(err)
	}
	cl, _ := admin(t, cfg.Brokers)
	for _, r := range []*kgo.Record{
		{Topic: topic, Value: nil, Key: []byte("tombstone")},
		{Topic: topic, Headers: []kgo.RecordHeader{{Key: "subject", Value: []byte("jobs.a.resize")}}},
		{Topic: topic, Headers: []kgo.RecordHeader{{Key: "subject", Value: []byte("Dear Sir, …")}}},
	} {
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	s := openSource(t, tr, topic)
	ds := fetch(t, s, 5)
	if m := ds[0].Message(); string(m.Key) != "k" || body(ds[0]) != "body" || m.Subject != topic || m.Header.Get(transport.HeaderReplyTo) != "answers" ||
		!slices.Equal(m.Header.Values("A"), []string{"1", "2"}) || m.Header.Get(transport.HeaderWatermillUUID) != "u" {
		t.Errorf("the first came as %+v", m)
	}
	if _, ok := ds[0].Message().Header.Lookup("empty"); !ok {
		t.Error("an empty header was dropped")
	}
	for i, d := range ds {
		if want := fmt.Sprintf("/0/%d", i); !strings.HasPrefix(d.Position(), topic+"@") || !strings.HasSuffix(d.Position(), want) {
			t.Errorf("position %q", d.Position())
		}
		if age := time.Since(d.Published()); age < -time.Minute || age > time.Minute {
			t.Errorf("published %v ago", age)
		}
	}
	if ds[1].Message().Key != nil || len(ds[1].Message().Body) != 0 {
		t.Errorf("the empty one came as %+v", ds[1].Message())
	}
	if string(ds[2].Message().Key) != "tombstone" || len(ds[2].Message().Body) != 0 {
		t.Errorf("the tombstone came as %+v", ds[2].Message())
	}
	if got := ds[3].Message().Subject; got != "jobs.a.resize" {
		t.Errorf("the subject of the fourth is %q", got)
	}
	if got := ds[4].Message().Subject; got != topic {
		t.Errorf("a foreign header was taken for a subject: %q", got)
	}
}

// The largest message that a topic takes is known beforehand, and one that is larger is refused by name.
func TestSizes(t *testing.T) {
	t.Parallel()
	small, large := unique(t), unique(t)
	cfg := config(t, real(t))
	cfg.MaxMessageBytes = 4 << 20
	tr := open(t, cfg)
	for topic, size := range map[string]string{small: "100000", large: "3000000"} {
		if _, err := tr.adm.CreateTopic(t.Context(), 1, 1, map[string]*string{"max.message.bytes": &size}, topic); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Prepare(t.Context(), transport.Subjects{Sinks: []string{small, large}}); err != nil {
		t.Fatal(err)
	}
	if got := tr.Publisher().MaxBytes(); got != 100_000-overhead {
		t.Errorf("MaxBytes is %d", got)
	}
	for _, c := range []struct {
		topic string
		size  int
		fits  bool
	}{
		{small, 100_000 - overhead - len(small), true},
		{small, 100_000 - overhead - len(small) + 1, false},
		{large, 2_900_000, true},
		{large, 3_100_000, false},
	} {
		err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: c.topic, Body: make([]byte, c.size)})
		if c.fits && err != nil {
			t.Errorf("%d bytes: %v", c.size, err)
		}
		if !c.fits && (!errors.Is(err, transport.ErrTooLarge) || !strings.Contains(err.Error(), c.topic)) {
			t.Errorf("%d bytes: %v, want ErrTooLarge with the topic's name", c.size, err)
		}
	}
	// The topic was made smaller since.
	size := "50000"
	if _, err := tr.adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &size}}, small); err != nil {
		t.Fatal(err)
	}
	await(t, "the broker's refusal", func() bool {
		err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: small, Body: make([]byte, 90_000)})
		return errors.Is(err, transport.ErrTooLarge)
	})
}

// What can never be published says so and what to do; what may be, is made.
func TestPublishRefused(t *testing.T) {
	t.Parallel()
	cfg := config(t, real(t))
	cfg.CreateTopics = false
	tr := open(t, cfg)
	err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: unique(t)})
	if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), "no such topic") {
		t.Errorf("a topic that does not exist: %v", err)
	}
	for _, subject := range []string{"", "a b", "jobs.*", "jobs.>", "..", strings.Repeat("x", 250), "zürich"} {
		if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: subject}); !errors.Is(err, transport.ErrRejected) {
			t.Errorf("%q: %v", subject, err)
		}
	}
	cfg.CreateTopics = true
	tr = open(t, cfg)
	publish(t, tr, unique(t), "made when needed")
	if err := tr.Publisher().Publish(t.Context()); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

// A producer that lives through the deletion of its topic writes into the new one.
func TestPublishToRecreated(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	tr := open(t, cfg)
	prepare(t, tr, topic)
	publish(t, tr, topic, "old")
	recreate(t, tr.adm, topic)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: topic, Body: []byte(fmt.Sprint(i))}); err != nil {
				t.Errorf("publish: %v", err)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	s := openSource(t, tr, topic)
	for len(seen) < 20 {
		for _, d := range fetch(t, s, 1) {
			seen[body(d)] = true
		}
	}
}

// While the broker is away a publish fails in time, as the caller or the configuration says, and not for good.
func TestPublishTimeout(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	net := newCut()
	cfg := config(t, real(t))
	cfg.Dial, cfg.DeliveryTimeout = net.dial, 2*time.Second
	tr := open(t, cfg)
	prepare(t, tr, topic)
	publish(t, tr, topic, "x")
	net.cut()
	for name, limit := range map[string]time.Duration{"caller": 300 * time.Millisecond, "configuration": time.Hour} {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		began := time.Now()
		err := tr.Publisher().Publish(ctx, &transport.Message{Subject: topic})
		cancel()
		if err == nil || transport.Permanent(err) {
			t.Errorf("bounded by the %s: %v", name, err)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("bounded by the %s: took %v", name, took)
		}
	}
	net.mend()
	await(t, "the broker's return", func() bool {
		return tr.Publisher().Publish(t.Context(), &transport.Message{Subject: topic}) == nil
	})
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	prepared := func(t *testing.T, cfg Config, topics ...string) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return open(t, cfg).Prepare(ctx, transport.Subjects{Sources: topics})
	}
	t.Run("names what is missing", func(t *testing.T) {
		t.Parallel()
		cfg := config(t, real(t))
		cfg.CreateTopics, cfg.Delays, cfg.DelayTiers = false, true, 0
		a, b := unique(t), unique(t)
		err := prepared(t, cfg, a, b)
		if !errors.Is(err, transport.ErrRejected) {
			t.Fatalf("got %v", err)
		}
		for _, want := range []string{a, b, cfg.Group + ".delay.1s", cfg.Group + ".delay.65536s", "CREATE"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s is not named in %v", want, err)
			}
		}
	})
	t.Run("makes what is missing, and again", func(t *testing.T) {
		t.Parallel()
		cfg := config(t, real(t))
		cfg.Delays, cfg.Partitions = true, 3
		topic := unique(t)
		for range 2 {
			if err := prepared(t, cfg, topic); err != nil {
				t.Fatal(err)
			}
		}
		_, adm := admin(t, cfg.Brokers)
		details, err := adm.ListTopics(t.Context(), topic, cfg.Group+".delay.4s")
		if err != nil {
			t.Fatal(err)
		}
		if n := len(details[topic].Partitions); n != 3 {
			t.Errorf("%d partitions", n)
		}
		if n := len(details[cfg.Group+".delay.4s"].Partitions); n != delayPartitions {
			t.Errorf("%d partitions of a delay topic", n)
		}
	})
	t.Run("replication that cannot be had", func(t *testing.T) {
		t.Parallel()
		cfg := config(t, real(t))
		cfg.Replication = 3
		if err := prepared(t, cfg, unique(t)); !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), "replication 3") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("old broker", func(t *testing.T) {
		t.Parallel()
		_, brokers := fake(t, kfake.MaxVersions(kversion.V2_7_0()))
		if err := prepared(t, config(t, brokers), "a"); !errors.Is(err, transport.ErrUnsupported) || !strings.Contains(err.Error(), "2.8") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("broker too old for the group protocol", func(t *testing.T) {
		t.Parallel()
		_, brokers := fake(t, kfake.MaxVersions(kversion.V3_6_0()))
		cfg := config(t, brokers)
		cfg.Protocol = "consumer"
		if err := prepared(t, cfg, "a"); !errors.Is(err, transport.ErrUnsupported) || !strings.Contains(err.Error(), "4.0") {
			t.Errorf("got %v", err)
		}
		cfg.Protocol = "classic"
		if err := prepared(t, cfg, "a"); err != nil {
			t.Errorf("classic: %v", err)
		}
	})
	t.Run("not authorised", func(t *testing.T) {
		t.Parallel()
		_, brokers := fake(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root"),
			kfake.User("PLAIN", "job", "secret", kfake.ACL{Resource: kmsg.ACLResourceTypeTopic, Name: "jobs",
				Pattern: kmsg.ACLResourcePatternTypePrefixed, Operation: kmsg.ACLOperationDescribe, Allow: true}))
		cfg := config(t, brokers)
		cfg.SASL = SASL{Mechanism: "PLAIN", Username: "job", Password: "secret"}
		err := prepared(t, cfg, "jobs-a")
		if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), "CREATE") || !strings.Contains(err.Error(), `"job"`) {
			t.Errorf("got %v", err)
		}
	})
}

// Commits that fail are made again, and their reason is told.
func TestCommitFails(t *testing.T) {
	t.Parallel()
	cluster, brokers := fake(t, kfake.SeedTopics(1, "jobs"))
	cfg := config(t, brokers)
	tr := open(t, cfg)
	publish(t, tr, "jobs", numbered(3)...)
	s := openSource(t, tr, "jobs")
	for _, d := range fetch(t, s, 3) {
		d.Ack()
	}
	await(t, "commit", func() bool { o, _ := offset(t, tr, "jobs"); return o == 3 })
	var mu sync.Mutex
	failing := true
	cluster.ControlKey(kmsg.OffsetCommit.Int16(), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		if !failing {
			return nil, nil, false
		}
		req := kreq.(*kmsg.OffsetCommitRequest)
		resp := req.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, rt := range req.Topics {
			st := kmsg.NewOffsetCommitResponseTopic()
			st.Topic, st.TopicID = rt.Topic, rt.TopicID
			for _, rp := range rt.Partitions {
				sp := kmsg.NewOffsetCommitResponseTopicPartition()
				sp.Partition, sp.ErrorCode = rp.Partition, kerr.GroupAuthorizationFailed.Code
				st.Partitions = append(st.Partitions, sp)
			}
			resp.Topics = append(resp.Topics, st)
		}
		return resp, nil, true
	})
	publish(t, tr, "jobs", "more")
	fetch(t, s, 1)[0].Ack()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.Fetch(ctx, 1); err == nil || !strings.Contains(err.Error(), "grant READ on the groups") {
		t.Errorf("fetch: %v", err)
	}
	mu.Lock()
	failing = false
	mu.Unlock()
	await(t, "commit", func() bool { o, _ := offset(t, tr, "jobs"); return o == 4 })
}

func TestTail(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	if _, err := tr.Tail(t.Context(), topic, true); !errors.Is(err, transport.ErrRejected) {
		t.Errorf("tail of nothing: %v", err)
	}
	prepare(t, tr, topic)
	publish(t, tr, topic, "before")
	all, err := tr.Tail(t.Context(), topic, true)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	now, err := tr.Tail(t.Context(), topic, false)
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	publish(t, tr, topic, "after")
	for tail, want := range map[transport.Tail][]string{all: {"before", "after"}, now: {"after"}} {
		for _, w := range want {
			m, err := tail.Next(t.Context())
			if err != nil || string(m.Body) != w {
				t.Errorf("got %v, %v, want %q", m, err, w)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := now.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("next of nothing: %v", err)
	}
}

func TestLag(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	prepare(t, tr, topic)
	publish(t, tr, topic, numbered(10)...)
	s := openSource(t, tr, topic)
	for _, d := range fetch(t, s, 10)[:4] {
		d.Ack()
	}
	await(t, "a lag of 6", func() bool {
		lag, err := tr.Lag(t.Context())
		return err == nil && lag[topic] == 6
	})
}

// Two routes that would share one topic's jobs are refused; two members of one route are not.
func TestRoutesShareNoTopic(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	tr := open(t, config(t, real(t)))
	prepare(t, tr, topic)
	openSource(t, tr, topic)
	openSource(t, tr, topic)
	if _, err := tr.Source(t.Context(), transport.SourceConfig{Route: "another", Subject: topic, Limit: 1}); !errors.Is(err, transport.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

// A message that has nothing to share a batch with does not wait for others; several of one call do, and so does the first of a
// topic that the producer does not know yet.
func TestLoneMessageDoesNotLinger(t *testing.T) {
	t.Parallel()
	topic := unique(t)
	cfg := config(t, real(t))
	cfg.Linger = 6 * time.Second
	tr := open(t, cfg)
	prepare(t, tr, topic)
	for _, c := range []struct {
		n       int
		lingers bool
	}{{2, true}, {1, false}, {1, false}} {
		ms := make([]*transport.Message, c.n)
		for i := range ms {
			ms[i] = &transport.Message{Subject: topic, Key: []byte("k"), Body: []byte("b")}
		}
		began := time.Now()
		if err := tr.Publisher().Publish(t.Context(), ms...); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); (took >= cfg.Linger) != c.lingers {
			t.Errorf("%d messages took %v with a linger of %v", c.n, took, cfg.Linger)
		}
	}
}
