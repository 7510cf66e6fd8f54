package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Earlier versions had the server schedule what is moved, in a stream WASM_SCHEDULES_<group>: what is due appears there under
// wasm.schedules.<group>.due.<subject>. What they have left is still brought home.
const (
	scheduled = "wasm.schedules."
	// scheduleLead is by how much sooner they had the server bring a message.
	scheduleLead = 500 * time.Millisecond
	// scheduleHeld is how many such messages are taken at once.
	scheduleHeld = 256
)

// errNoSchedules says that no earlier version has left a stream.
var errNoSchedules = errors.New("no stream of scheduled messages")

// scheduleSubject is wasm.schedules.<group>.due.<rest>.
func (t *Transport) scheduleSubject(rest string) string {
	return scheduled + legal(t.cfg.Group) + ".due." + rest
}

// bringScheduled carries home what the server schedules for earlier versions, until ctx ends or there is no such stream.
func (m *mover) bringScheduled(ctx context.Context) {
	p := newPull(m.t, "scheduled messages", m.bindScheduled)
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiTimeout)
		defer cancel()
		for _, a := range p.close(end) {
			m.answer(a, ackNak)
		}
	}()
	slots := make(chan struct{}, scheduleHeld)
	for {
		select { // room for one at least
		case slots <- struct{}{}:
			<-slots
		case <-ctx.Done():
			return
		}
		var as []arrived
		err := p.fetch(ctx, scheduleHeld-len(slots), func(ready []arrived) { as = append(as, ready...) })
		switch {
		case ctx.Err() != nil, errors.Is(err, transport.ErrClosed), errors.Is(err, errNoSchedules):
			return
		case err != nil:
			m.t.log.Warn("scheduled messages wait", "err", err)
			if pause(ctx, time.Second) != nil {
				return
			}
		}
		for _, a := range as {
			slots <- struct{}{}
			m.busy.Go(func() {
				defer func() { <-slots }()
				m.carryScheduled(ctx, a)
			})
		}
	}
}

func (m *mover) bindScheduled(ctx context.Context) (*target, error) {
	var to *target
	err := m.t.api(ctx, "consume scheduled messages", func(ctx context.Context) error {
		filter := m.t.scheduleSubject(">")
		name, err := m.t.holder(ctx, filter)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return errNoSchedules
		}
		if err != nil {
			return err
		}
		c, err := m.t.js.CreateOrUpdateConsumer(ctx, name, jetstream.ConsumerConfig{
			Durable: "mover", Description: "wasmsidecar: brings delayed messages home", FilterSubject: filter,
			AckPolicy: jetstream.AckExplicitPolicy, AckWait: defaultLease, MaxDeliver: -1, MaxAckPending: -1,
		})
		if err == nil {
			to = &target{stream: name, consumer: "mover", born: c.CachedInfo().Created}
		}
		return err
	})
	return to, err
}

// carryScheduled keeps a message until it is due and publishes it to its subject, or hands it back where ctx has ended.
func (m *mover) carryScheduled(ctx context.Context, a arrived) {
	out := homeward(strings.TrimPrefix(a.msg.Subject, m.t.scheduleSubject("")), a.msg)
	err := pause(ctx, min(time.Until(m.t.dueHere(a.msg)), scheduleLead))
	if err == nil {
		err = m.t.pub.publish(ctx, messages{out})
	}
	switch {
	case err == nil:
		m.answer(a, ackAck)
	case ctx.Err() != nil:
		m.answer(a, ackNak) // for another
	default:
		again := waitAfter(err)
		m.failed(out, again, err)
		m.answer(a, fmt.Appendf(nil, `-NAK {"delay":%d}`, again))
	}
}

func (m *mover) answer(a arrived, what []byte) {
	if err := m.t.nc.Publish(a.msg.Reply, what); err != nil {
		m.t.log.Debug("the answer to a scheduled message was lost: it comes again", "err", err)
	}
}
