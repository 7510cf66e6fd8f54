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

// carryOne publishes a message to its subject or, after some attempts, has it wait once more. Where neither can be, it goes on until ctx ends.
func (m *mover) carryOne(ctx context.Context, w *waiter) {
	for attempt := 1; ; attempt++ {
		err := m.t.pub.publish(ctx, messages{w.msg})
		if err != nil && ctx.Err() == nil && (attempt%carryTries == 0 || transport.Permanent(err)) {
			err = m.putBack(ctx, w, m.failed(w.msg, err))
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

// failed logs that a message cannot be brought home, of many that fail one each second, and returns when to try again.
func (m *mover) failed(out *nats.Msg, err error) time.Duration {
	again := waitAgain
	if transport.Permanent(err) {
		again = waitLong // until an operator has mended it
	}
	level := slog.LevelDebug
	now := int64(time.Since(m.t.epoch)) + int64(time.Second)
	if last := m.told.Load(); now-last >= int64(time.Second) && m.told.CompareAndSwap(last, now) {
		level = slog.LevelError
	}
	m.t.log.Log(context.Background(), level, "a delayed message cannot be brought home", "subject", out.Subject, "again_in", again, "err", err)
	return again
}

// putBack has a message wait once more, as another message.
func (m *mover) putBack(ctx context.Context, w *waiter, after time.Duration) error {
	due := time.Now().Add(after + m.t.ahead(ctx))
	out := &nats.Msg{Subject: m.t.secondSubject(due), Header: maps.Clone(w.msg.Header), Data: w.msg.Data}
	id := out.Header.Get(transport.HeaderMsgID)
	out.Header.Set(headerMoveID, id)
	out.Header.Set(headerMoveTo, w.msg.Subject)
	out.Header.Set(headerMoveDue, strconv.FormatInt(due.UnixNano(), 10))
	out.Header.Set(transport.HeaderMsgID, id+"+"+strconv.FormatInt(due.UnixNano(), 36))
	return m.t.pub.publish(ctx, messages{out})
}
