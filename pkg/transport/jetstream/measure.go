package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

var _ transport.Measured = (*Transport)(nil)

// relayPending is how many publications of Relay may be unacknowledged.
const relayPending = 4096

// Relay implements transport.Measured by nats.go's Consume, asynchronous publications and an acknowledgement once each is taken.
func (t *Transport) Relay(ctx context.Context, from, to string, n int) (time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	js, err := jetstream.New(t.nc, jetstream.WithPublishAsyncMaxPending(relayPending))
	if err != nil {
		return 0, fmt.Errorf("relay from %q: %w", from, err)
	}
	name, err := t.streamFor(ctx, from, nil)
	if err != nil {
		return 0, fmt.Errorf("relay from %q: %w", from, err)
	}
	c, err := t.js.CreateConsumer(ctx, name, jetstream.ConsumerConfig{FilterSubject: from, AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: -1})
	if err != nil {
		return 0, fmt.Errorf("relay from %q: %w", from, err)
	}
	// Without its consumer the queue may be given another one. The context may have ended.
	defer func() {
		err := t.js.DeleteConsumer(context.WithoutCancel(ctx), name, c.CachedInfo().Name)
		if err != nil {
			t.log.Debug("removing the consumer of a measurement", "err", err)
		}
	}()
	done := errors.New("all relayed")
	var settled atomic.Int64
	settle := func(m jetstream.Msg) {
		if err := m.Ack(); err != nil {
			cancel(err)
		}
		if settled.Add(1) == int64(n) {
			cancel(done)
		}
	}
	type pending struct {
		m jetstream.Msg
		f jetstream.PubAckFuture
	}
	taken := make(chan pending, relayPending)
	go func() { // ends with ctx
		for {
			select {
			case <-ctx.Done():
				return
			case p := <-taken:
				select {
				case <-p.f.Ok():
					settle(p.m)
				case err := <-p.f.Err():
					cancel(err)
				case <-ctx.Done():
				}
			}
		}
	}()
	var began time.Time
	cc, err := c.Consume(func(m jetstream.Msg) {
		if began.IsZero() {
			began = time.Now()
		}
		if to == "" {
			settle(m)
			return
		}
		out := nats.NewMsg(to)
		out.Header[transport.HeaderResultOf] = m.Headers()[transport.HeaderJobID]
		out.Data = m.Data()
		f, err := js.PublishMsgAsync(out)
		if err != nil {
			cancel(err)
			return
		}
		select {
		case taken <- pending{m, f}:
		case <-ctx.Done():
		}
	})
	if err != nil {
		return 0, fmt.Errorf("relay from %q: %w", from, err)
	}
	<-ctx.Done()
	cc.Stop()
	<-cc.Closed()
	if err := t.nc.FlushWithContext(context.WithoutCancel(ctx)); err != nil && !errors.Is(err, nats.ErrNoDeadlineContext) {
		return 0, fmt.Errorf("relay from %q: %w", from, err)
	}
	if err := context.Cause(ctx); !errors.Is(err, done) {
		return 0, fmt.Errorf("relay from %q: %w", from, err)
	}
	return time.Since(began), nil
}

// Remove implements transport.Measured. Streams that hold more than the subject stay.
func (t *Transport) Remove(ctx context.Context, subjects ...string) error {
	remove := func(name string) error {
		err := t.js.DeleteStream(ctx, name)
		if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("remove stream %q: %w", name, classify(err))
		}
		return nil
	}
	var errs []error
	for _, s := range subjects {
		name, err := t.holder(ctx, s)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		info, err2 := t.streamInfo(ctx, name)
		if err = errors.Join(err, err2); err != nil {
			errs = append(errs, fmt.Errorf("remove %q: %w", s, classify(err)))
		} else if len(info.Config.Subjects) == 1 && info.Config.Subjects[0] == s {
			errs = append(errs, remove(name))
		}
	}
	return errors.Join(append(errs, remove(t.waitStream().Name))...)
}
