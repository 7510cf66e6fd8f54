package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A message that is moved waits in a stream of the group, under a subject for the second in which it is due:
// wasm.waiting.<group>.at.<minute>.<second>, both counted from 1970. The mover (see mover) reads each second shortly before it comes. The
// server's own schedules are not used, since each of them costs it a timer, a subject and a purge.
const (
	atToken = "at"
	// leaseToken ends the subject of the mover's lease.
	leaseToken = "mover"
	// headerMoveID keeps the message id on the way: a copy that has to wait once more needs one of its own.
	headerMoveID = "Wasm-Move-Id"
	// headerMoveDue is when the message is due, in Unix nanoseconds by the server's clock.
	headerMoveDue = "Wasm-Move-Due"
	// headerMoveTo is the subject that the message is due at.
	headerMoveTo = "Wasm-Move-To"
)

// waitSubject is wasm.waiting.<group>.<rest>.
func (t *Transport) waitSubject(rest string) string {
	return "wasm.waiting." + legal(t.cfg.Group) + "." + rest
}

// secondSubject is where what is due at a time waits.
func (t *Transport) secondSubject(due time.Time) string {
	s := due.Unix()
	return t.waitSubject(atToken + "." + strconv.FormatInt(s/60, 10) + "." + strconv.FormatInt(s, 10))
}

// wakeSubject is where those who move a message tell the mover that it is due soon. No stream need hold it: the mover looks by itself, too.
func (t *Transport) wakeSubject() string { return "wasm.wake." + legal(t.cfg.Group) }

// waitStream is the stream of waiting messages, as it is made where it is missing.
func (t *Transport) waitStream() *jetstream.StreamConfig {
	c := t.stream("")
	c.Name = "WASM_WAITING_" + legal(t.cfg.Group)
	c.Subjects = []string{t.waitSubject(">")}
	c.Retention = jetstream.LimitsPolicy
	c.AllowDirect, c.AllowRollup = true, true
	return c
}

// canWait says what a stream of waiting messages that was made by others lacks.
func canWait(c *jetstream.StreamConfig) error {
	drops := c.Discard == jetstream.DiscardOld && (c.MaxMsgs > 0 || c.MaxBytes > 0)
	if !c.AllowDirect || !c.AllowRollup || c.DenyPurge || c.Retention != jetstream.LimitsPolicy || c.MaxAge > 0 || c.MaxMsgsPerSubject > 0 || drops {
		return fmt.Errorf("stream %q cannot hold delayed messages: it needs limits retention, allow_direct, allow_rollup_hdrs, no deny_purge, "+
			"no max_age, no max_msgs_per_subject, and discard new where it has max_msgs or max_bytes: %w", c.Name, transport.ErrRejected)
	}
	return nil
}

// schedule stores moved so that it is delivered to its subject after the given time: at once by the subject's own stream, later by the
// stream of waiting messages. Storing the same move again within the time that the stream knows message ids for changes nothing.
func (t *Transport) schedule(ctx context.Context, after time.Duration, moved *transport.Message, d *delivery) error {
	m := toNATS(moved)
	if m.Subject == "" {
		m.Subject = d.m.Subject
	}
	id := m.Header.Get(transport.HeaderMsgID)
	if id == "" {
		id = d.Position() + "/" + strconv.FormatUint(d.delivered, 10)
		m.Header.Set(transport.HeaderMsgID, id)
	}
	if after <= 0 {
		return t.pub.publish(ctx, []*nats.Msg{m})
	}
	home := m.Subject
	due := time.Now().Add(after + t.ahead(ctx)) // the server's clock decides
	m.Subject = t.secondSubject(due)
	m.Header.Set(headerMoveID, id)
	m.Header.Set(headerMoveDue, strconv.FormatInt(due.UnixNano(), 10))
	m.Header.Set(headerMoveTo, home)
	if err := t.pub.publish(ctx, []*nats.Msg{m}); err != nil {
		return fmt.Errorf("move a job of %q by %v: %w", home, after, err)
	}
	if after < moverAhead+2*moverEvery {
		if err := t.nc.Publish(t.wakeSubject(), nil); err != nil {
			t.log.Debug("the mover was not woken, it looks by itself a little later", "err", err)
		}
	}
	return nil
}

// ahead is the most by which the server's clock is ahead of ours, negative when it is behind. Clocks drift, so it is measured
// again from time to time.
func (t *Transport) ahead(ctx context.Context) time.Duration {
	if t.skewStale() {
		// Without an answer the old figure has to do: the publish that follows will tell what is wrong.
		_ = t.api(ctx, "ask for the server's clock", func(ctx context.Context) error {
			_, err := t.streamInfo(ctx, t.waitStream().Name)
			return err
		})
	}
	return time.Duration(t.skew.Load())
}

// dueHere is when a message is due by our clock, never too early.
func (t *Transport) dueHere(m *nats.Msg) time.Time {
	due, err := strconv.ParseInt(m.Header.Get(headerMoveDue), 10, 64)
	if err != nil {
		return time.Time{} // no move of ours: it is due now
	}
	now := time.Now()
	left := time.Unix(0, due-t.leastSkew.Load()).Sub(now)
	return t.epoch.Add((now.Sub(t.epoch) + left + moverTick - 1).Truncate(moverTick)) // by the monotonic clock, which nobody sets
}

// homeward is a waiting message as it is published to its subject.
func homeward(to string, m *nats.Msg) *nats.Msg {
	out := &nats.Msg{Subject: to, Header: make(nats.Header, len(m.Header)), Data: m.Data}
	for name, values := range m.Header {
		if !strings.HasPrefix(name, "Nats-") && name != headerMoveID && name != headerMoveDue && name != headerMoveTo {
			out.Header[name] = values
		}
	}
	if id := m.Header.Get(headerMoveID); id != "" {
		out.Header.Set(transport.HeaderMsgID, id)
	}
	return out
}

func isTooLarge(err error) bool { return errors.Is(err, transport.ErrTooLarge) }
