package jetstream

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// What a consumer is told about a message.
var (
	ackAck      = []byte("+ACK")
	ackNak      = []byte("-NAK")
	ackProgress = []byte("+WPI")
)

// settleTimeout is how long a batch of settlements waits for the server before it is written again; a lost connection does not
// end that wait.
const settleTimeout = 2 * time.Second

// States of a delivery.
const (
	out = int32(iota)
	moving
	settled
)

// delivery is a transport.Delivery.
type delivery struct {
	s           *source
	m           transport.Message
	reply       string // speaks to the consumer about this delivery
	to          *target
	place       place
	published   int64
	delivered   uint64
	redelivered bool

	state  atomic.Int32
	lost   atomic.Bool
	leased atomic.Int64 // until when, in nanoseconds since the transport's epoch
}

func (d *delivery) init(s *source, a arrived) {
	d.s, d.reply, d.to = s, a.msg.Reply, a.to
	d.m = fromNATS(a.msg.Subject, a.msg.Header, a.msg.Data)
	d.place = place{a.to.created, a.meta.sequence}
	d.published, d.delivered = a.meta.published, a.meta.delivered
	d.redelivered = a.meta.delivered > 1 || a.meta.sequence <= a.to.last
	d.leased.Store(int64(a.at.Add(s.lease).Sub(s.t.epoch)))
}

// Message returns the message. JetStream keeps no reply subject: see Transport.ServeRequests.
func (d *delivery) Message() *transport.Message { return &d.m }

// Position is <stream>@<created>/<sequence>, created in Unix milliseconds.
func (d *delivery) Position() string {
	return position(d.to.stream, d.place.created, d.place.sequence)
}

// Published is when the server stored the message.
func (d *delivery) Published() time.Time { return time.Unix(0, d.published) }

// Redelivered says that the message was delivered before, or that it was in the stream already when the consumer was found: a
// consumer that was made again counts from 1, and a server that was killed forgets its last deliveries.
func (d *delivery) Redelivered() bool { return d.redelivered }

// Lost says that another may own the message; see Source.Extend.
func (d *delivery) Lost() bool {
	return d.lost.Load() || d.state.Load() != settled && int64(time.Since(d.s.t.epoch)) > d.leased.Load()
}

// Ack removes the message from the queue.
func (d *delivery) Ack() { d.settle(ackAck) }

// Dead is Ack with a reason, which the server tells in its advisories.
func (d *delivery) Dead(reason string) {
	d.settle([]byte("+TERM " + job.CleanText(reason)))
}

// Release lets the server hand the message out again at once.
func (d *delivery) Release() { d.settle(ackNak) }

// settle ends the delivery. What is lost is left to its new owner.
func (d *delivery) settle(what []byte) {
	lost := d.Lost()
	if !d.state.CompareAndSwap(out, settled) {
		return
	}
	if !lost {
		d.s.acks.add(d.reply, what)
	}
	d.s.forget(d)
}

// Retry stores moved for later and then settles the delivery. The message is delivered again under its own id, at least once,
// also when this process is gone by then. Where moved has become too large for the server, the original stays in its place and
// is delivered again instead.
func (d *delivery) Retry(ctx context.Context, after time.Duration, moved *transport.Message) error {
	if d.Lost() || !d.state.CompareAndSwap(out, moving) {
		return nil
	}
	err := d.s.t.schedule(ctx, after, moved, d)
	what := ackAck
	if isTooLarge(err) {
		what = fmt.Appendf(nil, `-NAK {"delay":%d}`, max(after, time.Millisecond))
		err = nil
	}
	if err != nil {
		d.state.Store(out)
		return err
	}
	d.state.Store(settled)
	d.s.acks.add(d.reply, what)
	d.s.forget(d)
	return nil
}

// settler writes settlements in batches: while one batch is on its way to the server, the next one gathers. A batch whose
// arrival was not confirmed is written again, which does no harm: the server ignores what it has already done.
type settler struct {
	t    *Transport
	wake chan struct{}
	done chan struct{}
	stop context.CancelFunc

	mu      sync.Mutex
	waiting []settlement
	closed  bool
}

type settlement struct {
	reply string
	what  []byte
}

func newSettler(t *Transport) *settler {
	ctx, stop := context.WithCancel(context.Background())
	q := &settler{t: t, wake: make(chan struct{}, 1), done: make(chan struct{}), stop: stop}
	go q.run(ctx)
	return q
}

// add never blocks. What is waiting is bounded by what is out.
func (q *settler) add(reply string, what []byte) {
	q.mu.Lock()
	q.waiting = append(q.waiting, settlement{reply, what})
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *settler) run(ctx context.Context) {
	defer close(q.done)
	var batch, spare []settlement
	for {
		q.mu.Lock()
		batch, q.waiting = q.waiting, spare[:0]
		closed := q.closed
		q.mu.Unlock()
		if len(batch) == 0 {
			if closed {
				return
			}
			spare = batch
			select {
			case <-ctx.Done():
				return
			case <-q.wake:
			}
			continue
		}
		for !q.write(ctx, batch) {
			if pause(ctx, 100*time.Millisecond) != nil {
				return // what was not written is handed out again
			}
		}
		clear(batch)
		spare = batch
	}
}

// write reports whether the whole batch has reached the server.
func (q *settler) write(ctx context.Context, batch []settlement) bool {
	if !q.t.nc.IsConnected() {
		return false
	}
	for _, x := range batch {
		if err := q.t.nc.Publish(x.reply, x.what); err != nil {
			return false
		}
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return q.t.nc.FlushWithContext(ctx) == nil
}

// close writes what is left until ctx ends.
func (q *settler) close(ctx context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	defer q.stop()
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
	}
	q.stop()
	<-q.done
	if q.t.nc.IsClosed() {
		return nats.ErrConnectionClosed
	}
	return ctx.Err()
}
