package jetstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// browser reads a stream message by message: a work queue has no other way for those who do not work on it.
type browser struct {
	t          *Transport
	subject    string
	stream     jetstream.Stream
	created    int64
	since      time.Time
	next, last uint64
}

// Browse reads what the stream that holds a subject has now.
func (t *Transport) Browse(ctx context.Context, subject string, since time.Time) (transport.Browser, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	if err := transport.ValidSubject(subject); err != nil {
		return nil, fmt.Errorf("browse: %w: %w", err, transport.ErrRejected)
	}
	x := &browser{t: t, subject: subject, since: since}
	err := t.api(ctx, fmt.Sprintf("browse %q", subject), func(ctx context.Context) error {
		name, err := t.streamFor(ctx, subject, nil)
		if err != nil {
			return err
		}
		if x.stream, err = t.js.Stream(ctx, name); err != nil {
			return err
		}
		info := x.stream.CachedInfo()
		x.created, x.next, x.last = createdMS(info.Created), max(info.State.FirstSeq, 1), info.State.LastSeq
		return nil
	})
	if err != nil {
		return nil, err
	}
	return x, nil
}

// Next returns the next message.
func (x *browser) Next(ctx context.Context) (*transport.Stored, error) {
	for x.next <= x.last {
		var m *jetstream.RawStreamMsg
		err := x.t.api(ctx, fmt.Sprintf("browse %q", x.subject), func(ctx context.Context) (err error) {
			m, err = x.stream.GetMsg(ctx, x.next, jetstream.WithGetMsgSubject(x.subject))
			return err
		})
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return nil, io.EOF
		case err != nil:
			return nil, err
		case m.Sequence > x.last:
			return nil, io.EOF
		}
		x.next = m.Sequence + 1
		if m.Time.Before(x.since) {
			continue
		}
		return &transport.Stored{
			Message:  fromNATS(m.Subject, m.Header, m.Data),
			Position: position(x.stream.CachedInfo().Config.Name, x.created, m.Sequence), Published: m.Time,
		}, nil
	}
	return nil, io.EOF
}

// Close does nothing: a browser holds nothing between two reads.
func (x *browser) Close() error { return nil }

// Discard deletes messages.
func (t *Transport) Discard(ctx context.Context, subject string, ms ...*transport.Stored) error {
	if len(ms) == 0 {
		return nil
	}
	return t.api(ctx, fmt.Sprintf("discard at %q", subject), func(ctx context.Context) error {
		name, err := t.streamFor(ctx, subject, nil)
		if err != nil {
			return err
		}
		s, err := t.js.Stream(ctx, name)
		if err != nil {
			return err
		}
		prefix := strings.TrimSuffix(position(name, createdMS(s.CachedInfo().Created), 0), "0")
		for _, m := range ms {
			text, ok := strings.CutPrefix(m.Position, prefix)
			seq, err := strconv.ParseUint(text, 10, 64)
			if !ok || err != nil {
				return fmt.Errorf("%q is not a position in stream %q as it is now: %w", m.Position, name, transport.ErrRejected)
			}
			if err := s.DeleteMsg(ctx, seq); err != nil {
				// What is gone already is refused by one of several codes.
				if _, gone := s.GetMsg(ctx, seq); !errors.Is(gone, jetstream.ErrMsgNotFound) {
					return err
				}
			}
		}
		return nil
	})
}
