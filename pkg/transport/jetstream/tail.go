package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// tailWait is how many messages a tail of a work queue keeps for a slow reader; beyond it the newest are lost to it.
const tailWait = 4096

// Tail observes a subject that a stream holds.
//
// A work queue lets nobody read beside its workers. There the tail begins with what is waiting, if asked to, and goes on with
// what is published, stored or not; it misses what comes while the connection is down, and may show a message twice that comes
// while the tail begins.
func (t *Transport) Tail(ctx context.Context, subject string, fromStart bool) (transport.Tail, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	if err := transport.ValidPattern(subject); err != nil {
		return nil, fmt.Errorf("tail: %w: %w", err, transport.ErrRejected)
	}
	var tl transport.Tail
	err := t.api(ctx, fmt.Sprintf("tail %q", subject), func(ctx context.Context) error {
		name, err := t.streamFor(ctx, subject, nil)
		if err != nil {
			return err
		}
		info, err := t.streamInfo(ctx, name)
		if err != nil {
			return err
		}
		if info.Config.Retention == jetstream.WorkQueuePolicy {
			tl, err = t.tailQueue(ctx, name, subject, fromStart)
		} else {
			tl, err = t.tailStream(ctx, info, subject, fromStart)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return tl, nil
}

// streamTail is an ordered consumer, which nats.go makes again after an interruption where it had got to.
type streamTail struct {
	subject string
	it      jetstream.MessagesContext
}

func (t *Transport) tailStream(ctx context.Context, info *jetstream.StreamInfo, subject string, fromStart bool) (transport.Tail, error) {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}, DeliverPolicy: jetstream.DeliverAllPolicy}
	if !fromStart {
		// By sequence rather than "new": a consumer that is made again before its first message must not skip what came.
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, info.State.LastSeq+1
	}
	c, err := t.js.OrderedConsumer(ctx, info.Config.Name, cfg)
	if err != nil {
		return nil, err
	}
	it, err := c.Messages()
	if err != nil {
		return nil, err
	}
	return &streamTail{subject: subject, it: it}, nil
}

// Next waits for the next message.
func (tl *streamTail) Next(ctx context.Context) (*transport.Message, error) {
	m, err := tl.it.Next(jetstream.NextContext(ctx))
	switch {
	case err == nil:
		out := fromNATS(m.Subject(), m.Headers(), m.Data())
		return &out, nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, jetstream.ErrMsgIteratorClosed):
		err = transport.ErrClosed
	}
	return nil, fmt.Errorf("tail %q: %w", tl.subject, err)
}

// Close ends the tail.
func (tl *streamTail) Close() error {
	tl.it.Stop()
	return nil
}

// queueTail reads a work queue: what waits in it by number, then what is published.
type queueTail struct {
	t       *Transport
	subject string
	stream  jetstream.Stream
	sub     *nats.Subscription
	live    chan *nats.Msg
	done    chan struct{}
	once    sync.Once

	next, last uint64 // what waits
}

func (t *Transport) tailQueue(ctx context.Context, name, subject string, fromStart bool) (transport.Tail, error) {
	tl := &queueTail{t: t, subject: subject, live: make(chan *nats.Msg, tailWait), done: make(chan struct{}), next: 1}
	var err error
	if tl.sub, err = t.nc.ChanSubscribe(subject, tl.live); err != nil {
		return nil, err
	}
	if err = t.nc.FlushWithContext(ctx); err == nil {
		tl.stream, err = t.js.Stream(ctx, name)
	}
	if err != nil {
		return nil, errors.Join(err, tl.Close())
	}
	if fromStart {
		tl.last = tl.stream.CachedInfo().State.LastSeq
	}
	return tl, nil
}

// Next waits for the next message.
func (tl *queueTail) Next(ctx context.Context) (*transport.Message, error) {
	if tl.next <= tl.last {
		m, err := tl.stream.GetMsg(ctx, tl.next, jetstream.WithGetMsgSubject(tl.subject))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence > tl.last:
			tl.next = tl.last + 1
		case err != nil:
			return nil, fmt.Errorf("tail %q: %w", tl.subject, err)
		default:
			tl.next = m.Sequence + 1
			out := fromNATS(m.Subject, m.Header, m.Data)
			return &out, nil
		}
	}
	select {
	case m := <-tl.live:
		out := fromNATS(m.Subject, m.Header, m.Data)
		return &out, nil
	case <-tl.done:
		return nil, fmt.Errorf("tail %q: %w", tl.subject, transport.ErrClosed)
	case <-ctx.Done():
		return nil, fmt.Errorf("tail %q: %w", tl.subject, ctx.Err())
	}
}

// Close ends the tail.
func (tl *queueTail) Close() error {
	var err error
	tl.once.Do(func() {
		close(tl.done)
		if err = tl.sub.Unsubscribe(); errors.Is(err, nats.ErrConnectionClosed) {
			err = nil
		}
	})
	return err
}
