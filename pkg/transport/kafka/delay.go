package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A delayed message waits in one of the delay topics, of 1, 2, 4 … 65 536 seconds, one set for all routes: in the largest that
// fits into what remains. There it is due when its topic's time has passed since it was written, so that within a partition
// messages come due in the order in which they lie, and none waits for one before it. Then it hops into the topic that fits what
// remains; the last fraction of a second it waits unsettled in the mover, and then it goes to its target. A hop is written
// before it is settled: a crash repeats, and never loses.

const (
	shortest        = time.Second // below it a message waits unsettled
	delayPartitions = 2
	moverBatch      = 512
	moverSlots      = 16

	headerDelayUntil  = "Wasm-Delay-Until"  // Unix milliseconds
	headerDelayTarget = "Wasm-Delay-Target" // topic
)

// longest is the time of the last delay topic, in seconds.
func (c *Config) longest() int { return 1 << (c.DelayTiers - 1) }

// tier is the delay topic, in seconds, for a wait of at least a second: the largest that fits.
func (c *Config) tier(wait time.Duration) int {
	n := 1
	for n < c.longest() && wait >= time.Duration(2*n)*time.Second {
		n *= 2
	}
	return n
}

func tierTopic(prefix string, n int) string { return prefix + strconv.Itoa(n) + "s" }

// delayTopics names them all.
func (t *Transport) delayTopics() []string {
	var topics []string
	for n := 1; n <= t.cfg.longest(); n *= 2 {
		topics = append(topics, tierTopic(t.cfg.DelayPrefix, n))
	}
	return topics
}

// delayGroup is the consumer group of the delay topics.
func (t *Transport) delayGroup() string { return t.cfg.Group + ".delay" }

// delayConfig is that of delay topics, whatever the cluster's defaults are: nothing compacted away, a week of outage survived,
// room for all that may be written.
func (t *Transport) delayConfig() map[string]*string {
	policy, retention, stamp, size := "delete", strconv.Itoa(7*24*3600*1000), "CreateTime", strconv.Itoa(t.cfg.MaxMessageBytes)
	return map[string]*string{"cleanup.policy": &policy, "retention.ms": &retention, "message.timestamp.type": &stamp, "max.message.bytes": &size}
}

// delayed makes the record that waits for a message. Its wait is at least a second.
func (t *Transport) delayed(m *transport.Message, target string, until time.Time) *kgo.Record {
	now := time.Now()
	// Round up: never early.
	ms := (until.UnixNano() + int64(time.Millisecond) - 1) / int64(time.Millisecond)
	c := *m
	c.Header = append(headersOf(m.Header, headerDelayUntil, headerDelayTarget),
		job.Field{Name: headerDelayUntil, Value: strconv.FormatInt(ms, 10)}, job.Field{Name: headerDelayTarget, Value: target})
	r := record(&c, tierTopic(t.cfg.DelayPrefix, t.cfg.tier(until.Sub(now))), 0)
	r.Timestamp = now
	return r
}

// mover carries delayed messages on. It is a source of its own, in a group of its own; every replica has one.
type mover struct {
	t      *Transport
	s      *source
	cancel context.CancelFunc
	done   chan struct{}
	slots  chan struct{} // one for each batch that is being written
	wg     sync.WaitGroup
}

func newMover(t *Transport) (*mover, error) {
	m := &mover{t: t, done: make(chan struct{}), slots: make(chan struct{}, moverSlots)}
	s, err := newSource(t, sourceConfig{
		group: t.delayGroup(), topics: t.delayTopics(), drain: defaultDrain, partBytes: 256 << 10, due: m.due,
	})
	if err != nil {
		return nil, err
	}
	m.s = s
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go func() {
		defer close(m.done)
		m.run(ctx)
	}()
	return m, nil
}

// due is when a record's time in its topic is over.
func (m *mover) due(r *kgo.Record) time.Time {
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Topic, m.t.cfg.DelayPrefix), "s"))
	if err != nil {
		return time.Time{}
	}
	at := r.Timestamp.Add(time.Duration(n) * time.Second)
	for i := range r.Headers {
		if r.Headers[i].Key == headerDelayUntil {
			// Where the broker stamps records its clock may be ahead of ours.
			if ms, err := strconv.ParseInt(string(r.Headers[i].Value), 10, 64); err == nil && time.UnixMilli(ms).Before(at) {
				return time.UnixMilli(ms)
			}
		}
	}
	return at
}

func (m *mover) run(ctx context.Context) {
	pause := 250 * time.Millisecond
	for ctx.Err() == nil {
		ds, err := m.s.Fetch(ctx, moverBatch)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, transport.ErrClosed) {
				return
			}
			m.t.log.Warn("delayed messages cannot be read; trying again", "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, 10*time.Second)
			continue
		}
		pause = 250 * time.Millisecond
		m.move(ctx, ds)
	}
}

// hop is a delivery and the record that carries it on.
type hop struct {
	d *delivery
	r *kgo.Record
}

// move carries messages on; it blocks while too many batches are being written, so that one dead topic holds up no other.
func (m *mover) move(ctx context.Context, ds []transport.Delivery) {
	hops := make([]hop, 0, len(ds))
	for _, x := range ds {
		d := x.(*delivery)
		h := d.msg.Header
		ms, err := strconv.ParseInt(h.Get(headerDelayUntil), 10, 64)
		target := h.Get(headerDelayTarget)
		if err != nil || !legalTopic(target) {
			m.t.log.Error("a message in a delay topic does not say where it belongs and is left out; only the sidecar writes there",
				"position", d.Position())
			d.Ack()
			continue
		}
		until := time.UnixMilli(ms)
		switch left := time.Until(until); {
		case left >= shortest:
			hops = append(hops, hop{d, m.t.delayed(&d.msg, target, until)})
		case left > 0:
			d.later(left, nil)
		default:
			msg := d.msg
			msg.Header = headersOf(h, headerDelayUntil, headerDelayTarget)
			hops = append(hops, hop{d, record(&msg, target, 0)})
		}
	}
	if len(hops) == 0 {
		return
	}
	select {
	case m.slots <- struct{}{}:
	case <-ctx.Done():
		return // uncommitted: they come again
	}
	m.wg.Go(func() {
		m.write(ctx, hops)
		<-m.slots
	})
}

// write settles what is taken. What is refused for good waits a minute in its delay topics, lest it holds the watermark; what
// fails otherwise is tried again.
func (m *mover) write(ctx context.Context, hops []hop) {
	rs := make([]*kgo.Record, len(hops))
	for i := range hops {
		rs[i] = hops[i].r
	}
	errs := m.t.pub.produceEach(ctx, rs)
	for i, h := range hops {
		if errs == nil || errs[i] == nil {
			h.d.Ack()
			continue
		}
		err := errs[i]
		if ctx.Err() == nil {
			m.t.log.Warn("a delayed message could not be carried on; trying again", "position", h.d.Position(), "to", h.r.Topic, "err", err)
		}
		if transport.Permanent(err) {
			target := h.d.msg.Header.Get(headerDelayTarget)
			err = m.t.pub.produce(ctx, []*kgo.Record{m.t.delayed(&h.d.msg, target, time.Now().Add(64*time.Second))})
		}
		if err == nil {
			h.d.Ack()
		} else {
			h.d.later(time.Second, nil)
		}
	}
}

// close stops moving and settles what was moved.
func (m *mover) close(ctx context.Context) error {
	m.cancel()
	<-m.done
	m.wg.Wait()
	if err := m.s.Close(ctx); err != nil {
		return fmt.Errorf("kafka: stop moving delayed messages: %w", err)
	}
	return nil
}
