package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A stream's limits take messages away whether or not they were read, and the server does not count them. But sequences have no
// holes, so where a consumer reads all of a stream, what it has passed and was not given was dropped.
//
// Every source of the group sees the same loss. The one that is first to write down how far it has counted counts it.

// lookEvery is how often a source looks whether something was lost.
const lookEvery = 15 * time.Second

// reach is how far a consumer is: past all messages up to a sequence of the stream, by so many deliveries.
type reach struct {
	Position   uint64 `json:"position"`
	Deliveries uint64 `json:"deliveries"`
}

// lost is how many messages were passed and not delivered between two reaches, at the least: some may have been delivered again.
func (r reach) lost(since reach) int64 {
	return int64(r.Position-since.Position) - int64(r.Deliveries-since.Deliveries)
}

// counted is what is written down when a loss is counted.
type counted struct {
	reach
	Born time.Time `json:"born"` // of the consumer
	By   string    `json:"by"`
}

// gapState is what a source knows of its consumer's losses; its own goroutine and bind take turns at it.
type gapState struct {
	turn chan struct{} // holds a token while somebody looks
	to   *target
	seen reach
	born time.Time // of the consumer that was seen
	mine counted   // what was to be written when the answer was lost, and how many messages it was about
	lost int64

	stop context.CancelFunc
	done chan struct{}
}

// watch looks now and then, until ctx ends.
func (s *source) watch(ctx context.Context) {
	defer close(s.gaps.done)
	for pause(ctx, lookEvery-rand.N(lookEvery/5)) == nil {
		if err := s.look(ctx, nil); err != nil && ctx.Err() == nil {
			s.t.log.Debug("looking for dropped messages is delayed", "route", s.cfg.Route, "err", err)
		}
	}
}

// look counts and tells what the stream has dropped since anybody looked; what cannot be written down now is left to the next look. to is
// the consumer that was found or made just now, which has delivered nothing to this source yet, or nil for the last one.
func (s *source) look(ctx context.Context, to *target) error {
	g := &s.gaps
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if to != nil {
		g.to = to
	}
	if g.to == nil {
		return nil
	}
	return s.t.api(ctx, fmt.Sprintf("look for messages that were dropped before route %q read them", s.cfg.Route), func(ctx context.Context) error {
		now, since, ok, err := s.reach(ctx)
		if err != nil || !ok {
			return err
		}
		if now.lost(since) > 0 {
			if err := s.claimGap(ctx, now, since); err != nil {
				g.seen, g.born = since, g.to.born // the next look counts it
				if !errors.Is(err, context.Canceled) {
					s.t.log.Warn("messages were dropped before they were read; they are not counted yet", "stream", g.to.stream, "route", s.cfg.Route, "err", err)
				}
				return nil
			}
		}
		g.seen, g.born = now, g.to.born
		return nil
	})
}

// reach asks how far the consumer is, and says from where on it is to be judged; false where nothing can be said.
func (s *source) reach(ctx context.Context) (now, since reach, ok bool, err error) {
	g := &s.gaps
	// The stream first: what had left it by then, the consumer has passed or will never see.
	info, err := s.t.streamInfo(ctx, g.to.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return now, since, false, nil // it will be made again
	}
	if err != nil || createdMS(info.Created) != g.to.created || !whole(&info.Config, s.cfg.Subject) {
		return now, since, false, err
	}
	c, err := s.t.js.Consumer(ctx, g.to.stream, g.to.consumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) || err == nil && !c.CachedInfo().Created.Equal(g.to.born) {
		return now, since, false, nil // another one will be bound
	}
	if err != nil {
		return now, since, false, err
	}
	at := c.CachedInfo().Delivered
	now = reach{max(at.Stream, max(info.State.FirstSeq, 1)-1), at.Consumer}
	if since = g.seen; !g.born.Equal(g.to.born) || at.Consumer < since.Deliveries || now.Position < since.Position {
		since = reach{at.Stream, at.Consumer} // it is new to us, or its server has forgotten
	}
	return now, since, true, nil
}

// whole says whether a subject is all that a stream can hold, so that every sequence is a message of it.
func whole(c *jetstream.StreamConfig, subject string) bool {
	return c.Mirror == nil && len(c.Sources) == 0 && c.SubjectTransform == nil && len(c.Subjects) > 0 &&
		!slices.ContainsFunc(c.Subjects, func(held string) bool { return !covers(subject, held) })
}

// claimGap counts what was lost between two reaches, unless another source has.
func (s *source) claimGap(ctx context.Context, now, since reach) error {
	g := &s.gaps
	name, err := s.t.streamFor(ctx, s.t.waitSubject(">"), s.t.waitStream())
	if err != nil {
		return err
	}
	stream, err := s.t.js.Stream(ctx, name)
	if err != nil {
		return err
	}
	subject := s.t.waitSubject("gap." + hash(g.to.stream+" "+g.to.consumer))
	for {
		var was counted
		seq := uint64(0)
		switch m, err := stream.GetLastMsgForSubject(ctx, subject); {
		case errors.Is(err, jetstream.ErrMsgNotFound):
		case err != nil:
			return err
		default:
			seq = m.Sequence
			if err := json.Unmarshal(m.Data, &was); err != nil {
				s.t.log.Debug("a count of dropped messages cannot be read and is written anew", "subject", subject, "err", err)
			}
		}
		if g.mine.By != "" && was.By == g.mine.By {
			s.tellGap(g.lost) // it was written, after all
		}
		g.mine = counted{}
		if was.Born.Equal(g.to.born) && was.Position > since.Position && was.Deliveries >= since.Deliveries {
			since = was.reach
		}
		lost := now.lost(since)
		if lost <= 0 {
			return nil
		}
		mine := counted{reach: now, Born: g.to.born, By: nats.NewInbox()}
		body, err := json.Marshal(mine)
		if err != nil {
			return err
		}
		m := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{jetstream.MsgRollup: {jetstream.MsgRollupSubject}}}
		_, err = s.t.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(seq), jetstream.WithRetryAttempts(0))
		switch {
		case err == nil:
			s.tellGap(lost)
			return nil
		case overtaken(err):
			continue // another was faster: it may have counted the same
		case transport.Permanent(classify(err)):
			s.t.log.Warn("dropped messages are counted by each sidecar, since how far they are counted cannot be written down", "stream", name, "err", err)
			s.tellGap(lost)
			return nil
		}
		g.mine, g.lost = mine, lost
		return err
	}
}

func (s *source) tellGap(n int64) {
	s.t.gaps.Add(n)
	s.t.log.Error("messages were dropped by the stream before they were read; raise its limits (max_msgs, max_bytes, max_age), or let it refuse new "+
		"ones instead (discard: new)", "stream", s.gaps.to.stream, "route", s.cfg.Route, "lost", n)
}
