package kafka

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// headerSubject holds a message's subject where a topic carries many.
const headerSubject = "subject"

// delivery is a record that was handed out. One that is presented again is a new delivery of the same sequence number.
type delivery struct {
	p           *partition
	msg         transport.Message
	offset      int64
	seq         uint64
	published   time.Time
	redelivered bool
	settled     bool // guarded by p.mu
}

var _ transport.Delivery = (*delivery)(nil)

func (d *delivery) Message() *transport.Message { return &d.msg }
func (d *delivery) Published() time.Time        { return d.published }
func (d *delivery) Redelivered() bool           { return d.redelivered }
func (d *delivery) Lost() bool                  { return d.p.dead.Load() }

// Position is <topic>@<topic id>/<partition>/<offset>; the id is a UUID.
func (d *delivery) Position() string {
	b := strconv.AppendInt(append(make([]byte, 0, len(d.p.prefix)+20), d.p.prefix...), d.offset, 10)
	return unsafe.String(unsafe.SliceData(b), len(b)) // nobody else has b
}

func (d *delivery) Ack()          { d.settle(true) }
func (d *delivery) Dead(_ string) { d.settle(true) }

// Release lets the source present the message again at once; if it closes first, the message stays uncommitted.
func (d *delivery) Release() { d.later(0, nil) }

// Retry moves the message to a delay topic. Below a second, without delay topics, and where what was added to the message makes
// it too large to be written again, it waits in the source instead.
func (d *delivery) Retry(ctx context.Context, after time.Duration, moved *transport.Message) error {
	t := d.p.src.t
	if d.Lost() {
		return nil // its new owner delivers it
	}
	if moved == nil {
		moved = &d.msg
	}
	until := time.Now().Add(after)
	limit := min(t.messageLimit(d.p.topic), t.messageLimit(tierTopic(t.cfg.DelayPrefix, t.cfg.tier(after))))
	if after < shortest || !t.cfg.Delays || moved.Size() > limit {
		d.later(after, moved)
		return nil
	}
	if err := t.pub.produce(ctx, []*kgo.Record{t.delayed(moved, d.p.topic, until)}); err != nil {
		return fmt.Errorf("kafka: delay %s by %v: %w", d.Position(), after, err)
	}
	d.settle(true)
	return nil
}

// settle takes the delivery back, once; done says that its message is over. It says whether the delivery was still out.
func (d *delivery) settle(done bool) bool {
	p, moved := d.p, false
	p.mu.Lock()
	if d.settled {
		p.mu.Unlock()
		return false
	}
	d.settled = true
	p.out--
	live := !p.dead.Load()
	if live && done {
		moved = p.complete(d.seq)
	}
	freed := moved && p.full
	if freed {
		p.full = false
	}
	drained := p.revoking && p.out == 0
	p.mu.Unlock()
	if moved {
		p.src.wantCommit()
	}
	if freed {
		signal(p.src.wake)
	}
	if drained {
		signal(p.src.drained)
	}
	return live
}

// later takes the delivery back and presents its message again after a while, as moved unless that is nil. Nothing waits for
// that: a partition that is taken away meanwhile is read again by its new owner.
func (d *delivery) later(after time.Duration, moved *transport.Message) {
	switch {
	case !d.settle(false):
	case after <= 0:
		d.represent(moved)
	default:
		time.AfterFunc(after, func() { d.represent(moved) })
	}
}

// represent queues the message before all others of its partition.
func (d *delivery) represent(moved *transport.Message) {
	n := &delivery{p: d.p, msg: d.msg, offset: d.offset, seq: d.seq, published: d.published, redelivered: true}
	if moved != nil {
		n.msg = *moved
	}
	d.p.mu.Lock()
	live := !d.p.dead.Load() && !d.p.revoking
	if live {
		d.p.again = append(d.p.again, n)
	}
	d.p.mu.Unlock()
	if live {
		signal(d.p.src.wake)
	}
}

// slabs cuts deliveries and header fields from larger pieces: two allocations for many records. A piece lives as long as any
// delivery cut from it, so pieces are small.
type slabs struct {
	deliveries []delivery
	fields     []job.Field
}

// fill makes the delivery of a record.
func (b *slabs) fill(p *partition, r *kgo.Record) *delivery {
	if len(b.deliveries) == 0 {
		b.deliveries = make([]delivery, 64)
	}
	d := &b.deliveries[0]
	b.deliveries = b.deliveries[1:]
	d.p, d.offset, d.published = p, r.Offset, r.Timestamp
	d.msg.Subject, d.msg.Key, d.msg.Body = p.topic, r.Key, r.Value
	n := len(r.Headers)
	if n == 0 {
		return d
	}
	if len(b.fields) < n {
		b.fields = make([]job.Field, max(n, 256))
	}
	h := b.fields[:n:n]
	b.fields = b.fields[n:]
	for i := range r.Headers {
		// Values alias the record, as Message allows; records are never recycled.
		v := r.Headers[i].Value
		h[i] = job.Field{Name: r.Headers[i].Key, Value: unsafe.String(unsafe.SliceData(v), len(v))}
		if h[i].Name == headerSubject && isSubject(h[i].Value) {
			d.msg.Subject = h[i].Value
		}
	}
	d.msg.Header = h
	return d
}

// isSubject says whether s consists of dotted tokens, so that a foreign header of the same name is not taken for one.
func isSubject(s string) bool {
	if s == "" || len(s) > 1024 || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f || s[i] == '*' || s[i] == '>' {
			return false
		}
	}
	return true
}

// signal wakes whoever waits on c, which has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
