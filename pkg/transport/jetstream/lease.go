package jetstream

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	// moverLease is how long the others leave a silent mover its place, and so by how much jobs are late where one was killed.
	moverLease = 4 * time.Second
	// moverRenew is how often it is heard of.
	moverRenew = moverLease / 4
)

// lease is the place of the one that moves messages: a message on a subject of its own, which its holder replaces again and again. It
// keeps two from doing the same work for long, no more: a message that two have brought home is stored once, by its id.
type lease struct {
	t       *Transport
	with    func(ctx context.Context, doing string, call func(context.Context, jetstream.Stream) error) error // on its stream
	subject string
	id      string
	host    bool      // the server is in our process
	last    uint64    // the sequence of what we have written
	until   time.Time // ours, by our clock; zero where it is not
	next    time.Time // when to write or look again
}

// hostMark begins the names of movers whose process has the server in it. A server's data has one process at a time: where another such
// one is named, it has ended.
const hostMark = "host "

func newLease(m *mover) *lease {
	l := &lease{t: m.t, with: m.withStream, subject: m.t.waitSubject(leaseToken), id: nuid.Next(), host: m.t.cfg.Life != nil}
	if l.host {
		l.id = hostMark + l.id
	}
	return l
}

// hold says whether the lease is ours now, after renewing or trying to get it where it is time for that.
func (l *lease) hold(ctx context.Context) (bool, error) {
	now := time.Now()
	if now.Before(l.next) {
		return now.Before(l.until), nil
	}
	l.next = now.Add(moverRenew)
	if now.Before(l.until) {
		err := l.write(ctx, l.id, l.last)
		if err == nil || !overtaken(err) {
			return time.Now().Before(l.until), err
		}
		l.until = time.Time{} // another's, or ours and the acknowledgement was lost
	}
	free, last, err := l.free(ctx)
	if err != nil || !free {
		return false, err
	}
	err = l.write(ctx, l.id, last)
	switch {
	case overtaken(err):
		return false, nil // another was faster
	case noRoom(err):
		// Only a mover makes room in a stream that is full of what waits. Until there is some, all of the group move.
		l.last, l.until = last, now.Add(moverLease)
		return true, nil
	}
	return err == nil, err
}

// free says whether the lease may be had and which sequence is to be replaced.
func (l *lease) free(ctx context.Context) (free bool, last uint64, err error) {
	l.t.ahead(ctx) // measures the server's clock now and then
	err = l.with(ctx, "look who moves delayed messages", func(ctx context.Context, s jetstream.Stream) error {
		m, err := s.GetLastMsgForSubject(ctx, l.subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			free = true
			return nil
		}
		if err != nil {
			return err
		}
		age := time.Now().Add(time.Duration(l.t.leastSkew.Load())).Sub(m.Time)
		holder := string(m.Data)
		free, last = holder == "" || holder == l.id || age > moverLease || l.host && strings.HasPrefix(holder, hostMark), m.Sequence
		return nil
	})
	return free, last, err
}

// write replaces the message with sequence last.
func (l *lease) write(ctx context.Context, holder string, last uint64) error {
	begun := time.Now()
	m := &nats.Msg{Subject: l.subject, Header: nats.Header{jetstream.MsgRollup: {jetstream.MsgRollupSubject}}, Data: []byte(holder)}
	return l.t.api(ctx, "take the place of the mover of delayed messages", func(ctx context.Context) error {
		if err := l.t.health(); err != nil {
			return err
		}
		ack, err := l.t.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(last), jetstream.WithRetryAttempts(0))
		if err == nil {
			l.last, l.until = ack.Sequence, begun.Add(moverLease)
		}
		return err
	})
}

// release lets another have the lease at once.
func (l *lease) release(ctx context.Context) {
	if !time.Now().Before(l.until) {
		return
	}
	l.until = time.Time{}
	if err := l.write(ctx, "", l.last); err != nil && !errors.Is(err, transport.ErrClosed) {
		l.t.log.Debug("the mover's lease was not given back: another has it in a while", "for", moverLease, "err", err)
	}
	l.until = time.Time{}
}

// overtaken says that another has written what was to be replaced.
func overtaken(err error) bool {
	return isCode(err, int(jetstream.JSErrCodeStreamWrongLastSequence)) || isCode(err, int(jetstream.JSErrCodeStreamWrongLastSequenceConstant))
}

// noRoom says that the server would have written what it was told, but could not: a limit is reached, or its disk is full.
func noRoom(err error) bool {
	var ae *jetstream.APIError
	return errors.As(err, &ae) && ae.Code >= 500
}
