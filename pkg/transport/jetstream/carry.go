package jetstream

import (
	"context"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	// batchSize is how many messages go home together, moverWindow how many batches at once.
	batchSize   = 64
	moverWindow = 16
	// carryTries is how often a message is published before it waits again. Between two lies carryPause, longer each time, up to a second.
	carryTries = 5
	carryPause = 100 * time.Millisecond
	// waitAgain and waitLong are how long a message waits once more that could not be brought home, and where an operator has to mend that.
	waitAgain = 5 * time.Second
	waitLong  = 30 * time.Second
	// carrySlow is how long a stream may leave a message unanswered.
	carrySlow = 3 * time.Second
)

// bringHome publishes what is due until ctx ends.
func (m *mover) bringHome(ctx context.Context) {
	slots := make(chan struct{}, moverWindow)
	for {
		ws := m.queue.due(ctx)
		if ws == nil {
			return
		}
		slots <- struct{}{}
		m.busy.Go(func() {
			defer func() { <-slots }()
			m.carry(ctx, ws)
		})
	}
}

// carry publishes messages to their subjects. A repeat is recognised by its message id.
func (m *mover) carry(ctx context.Context, ws []*waiter) {
	if ws = m.setAside(ctx, ws); len(ws) == 0 {
		return
	}
	ms := make(messages, len(ws))
	for i, w := range ws {
		ms[i] = w.msg
	}
	if m.t.pub.publish(ctx, ms) == nil {
		m.queue.done(ws...)
		return
	}
	var each sync.WaitGroup
	for _, w := range ws {
		each.Go(func() { m.carryOne(ctx, w) })
	}
	each.Wait()
}

// setAside has messages wait once more whose subjects took nothing just now, and returns the others.
func (m *mover) setAside(ctx context.Context, ws []*waiter) []*waiter {
	var aside, others []*waiter
	var again messages
	for _, w := range ws {
		if d := m.refused.wait(w.msg.Subject); d > 0 {
			aside, again = append(aside, w), append(again, m.again(ctx, w, d))
		} else {
			others = append(others, w)
		}
	}
	if len(aside) == 0 {
		return ws
	}
	if m.t.pub.publish(ctx, again) != nil {
		return ws
	}
	m.queue.done(aside...)
	return others
}

// carryOne publishes a message to its subject or, after some attempts, has it wait once more. Where neither can be, it goes on until ctx ends.
func (m *mover) carryOne(ctx context.Context, w *waiter) {
	begun := time.Now()
	for attempt := 1; ; attempt++ {
		err := m.t.pub.publish(ctx, messages{w.msg})
		slow := time.Since(begun) > carrySlow
		if err != nil && ctx.Err() == nil && (attempt%carryTries == 0 || slow || transport.Permanent(err)) {
			again, full := waitAfter(err), slow || noRoom(err)
			m.failed(w.msg, again, err)
			err = m.t.pub.publish(ctx, messages{m.again(ctx, w, again)})
			if err == nil && full { // so it is the subject, and not the message or the server
				m.refused.note(w.msg.Subject, again)
			}
		}
		if err == nil {
			m.queue.done(w)
			return
		}
		if pause(ctx, min(time.Duration(attempt)*carryPause, time.Second)) != nil {
			return
		}
	}
}

// waitAfter is how long a message waits once more.
func waitAfter(err error) time.Duration {
	if transport.Permanent(err) {
		return waitLong
	}
	return waitAgain
}

// failed logs that a message cannot be brought home, of many that fail one each second.
func (m *mover) failed(out *nats.Msg, again time.Duration, err error) {
	level := slog.LevelDebug
	now := int64(time.Since(m.t.epoch)) + int64(time.Second)
	if last := m.told.Load(); now-last >= int64(time.Second) && m.told.CompareAndSwap(last, now) {
		level = slog.LevelError
	}
	m.t.log.Log(context.Background(), level, "a delayed message cannot be brought home", "subject", out.Subject, "again_in", again, "err", err)
}

// again is a message that has to wait once more, as another message.
func (m *mover) again(ctx context.Context, w *waiter, after time.Duration) *nats.Msg {
	due := time.Now().Add(after + m.t.ahead(ctx))
	out := &nats.Msg{Subject: m.t.secondSubject(due), Header: maps.Clone(w.msg.Header), Data: w.msg.Data}
	id := out.Header.Get(transport.HeaderMsgID)
	out.Header.Set(headerMoveID, id)
	out.Header.Set(headerMoveTo, w.msg.Subject)
	out.Header.Set(headerMoveDue, strconv.FormatInt(due.UnixNano(), 10))
	out.Header.Set(transport.HeaderMsgID, id+"+"+strconv.FormatInt(due.UnixNano(), 36))
	return out
}
