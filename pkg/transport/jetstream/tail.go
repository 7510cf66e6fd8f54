package jetstream

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// tail is a transport.Tail: an ordered consumer, which nats.go makes again after an interruption where it had got to.
type tail struct {
	subject string
	it      jetstream.MessagesContext
}

// Tail observes a subject that a stream holds.
func (t *Transport) Tail(ctx context.Context, subject string, fromStart bool) (transport.Tail, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	if err := transport.ValidPattern(subject); err != nil {
		return nil, fmt.Errorf("tail: %w: %w", err, transport.ErrRejected)
	}
	tl := &tail{subject: subject}
	err := t.api(ctx, fmt.Sprintf("tail %q", subject), func(ctx context.Context) error {
		name, err := t.streamFor(ctx, subject, nil)
		if err != nil {
			return err
		}
		cfg := jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}, DeliverPolicy: jetstream.DeliverAllPolicy}
		if !fromStart {
			// By sequence rather than "new": a consumer that is made again before its first message must not skip what came.
			info, err := t.streamInfo(ctx, name)
			if err != nil {
				return err
			}
			cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, info.State.LastSeq+1
		}
		c, err := t.js.OrderedConsumer(ctx, name, cfg)
		if err != nil {
			return err
		}
		tl.it, err = c.Messages()
		return err
	})
	if err != nil {
		return nil, err
	}
	return tl, nil
}

// Next waits for the next message.
func (tl *tail) Next(ctx context.Context) (*transport.Message, error) {
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
func (tl *tail) Close() error {
	tl.it.Stop()
	return nil
}
