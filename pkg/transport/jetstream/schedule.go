package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A message that is moved waits in a stream of the group: as a scheduled message under <prefix>.at.<id>, which the server turns
// into one under <prefix>.due.<subject> when its time has come. The server schedules within one stream only, so a mover
// carries what is due home to its subject. Every transport with a source runs one; they share a consumer.
const (
	atToken  = "at"
	dueToken = "due"
	// headerMoveID keeps the message id on the way, since the server takes Nats-* headers off what it schedules.
	headerMoveID = "Wasm-Move-Id"
	// headerMoveDue is when the message is due, in Unix nanoseconds by the server's clock.
	headerMoveDue = "Wasm-Move-Due"
	// moverLead is by how much sooner a mover is given a message: the server gathers what is due for a quarter of a second, and then needs
	// as long as there is much of it. The mover keeps the message for the rest.
	moverLead = 500 * time.Millisecond
	// moverHeld is how many messages a mover has at once, moverWindow how many of them it carries.
	moverHeld   = 4096
	moverWindow = 128
	// moverTick is the grain of that: messages that are due at about the same time share their way.
	moverTick = 10 * time.Millisecond
)

// scheduleSubject is wasm.schedules.<group>.<token>.<rest>.
func (t *Transport) scheduleSubject(token, rest string) string {
	return "wasm.schedules." + legal(t.cfg.Group) + "." + token + "." + rest
}

// scheduleStream is the stream of delayed messages, as it is made where it is missing.
func (t *Transport) scheduleStream() *jetstream.StreamConfig {
	c := t.stream("")
	c.Name = "WASM_SCHEDULES_" + legal(t.cfg.Group)
	c.Subjects = []string{t.scheduleSubject(atToken, "*"), t.scheduleSubject(dueToken, ">")}
	c.Retention = jetstream.WorkQueuePolicy
	c.AllowMsgSchedules, c.AllowRollup = true, true
	return c
}

// schedule stores moved so that it is delivered to its subject after the given time: at once by the subject's own stream,
// later by the stream of delayed messages. Storing the same move again changes nothing.
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
	m.Subject = t.scheduleSubject(atToken, hash(home+" "+id)+hash(id))
	m.Header.Set(headerMoveID, id)
	// The server's clock decides; a schedule in whole seconds would come too early.
	due := time.Now().Add(after + t.ahead(ctx))
	m.Header.Set(headerMoveDue, strconv.FormatInt(due.UnixNano(), 10))
	m.Header.Set(jetstream.ScheduleHeader, "@at "+due.Add(-moverLead).UTC().Format(time.RFC3339Nano))
	m.Header.Set(jetstream.ScheduleTargetHeader, t.scheduleSubject(dueToken, home))
	if err := t.pub.publish(ctx, []*nats.Msg{m}); err != nil {
		return fmt.Errorf("move a job of %q by %v: %w", home, after, err)
	}
	return nil
}

// ahead is the most by which the server's clock is ahead of ours, negative when it is behind. Clocks drift, so it is measured
// again from time to time.
func (t *Transport) ahead(ctx context.Context) time.Duration {
	if last := t.skewed.Load(); last == 0 || time.Since(t.epoch)-time.Duration(last) > time.Minute {
		// Without an answer the old figure has to do: the publish that follows will tell what is wrong.
		_ = t.api(ctx, "ask for the server's clock", func(ctx context.Context) error {
			_, err := t.streamInfo(ctx, t.scheduleStream().Name)
			return err
		})
	}
	return time.Duration(t.skew.Load())
}

func isTooLarge(err error) bool { return errors.Is(err, transport.ErrTooLarge) }

// mover carries due messages home.
type mover struct {
	t    *Transport
	pull *pull
	stop context.CancelFunc
	done chan struct{}
	busy sync.WaitGroup
}

// startMover starts the transport's mover, once.
func (t *Transport) startMover() error {
	t.mu.Lock()
	if t.mover != nil || t.closed {
		t.mu.Unlock()
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &mover{t: t, stop: stop, done: make(chan struct{})}
	t.mover = m
	t.mu.Unlock()
	m.pull = newPull(t, "delayed messages", m.bind)
	go m.run(ctx)
	return nil
}

func (m *mover) bind(ctx context.Context) (*target, error) {
	var to *target
	err := m.t.api(ctx, "consume delayed messages", func(ctx context.Context) error {
		filter := m.t.scheduleSubject(dueToken, ">")
		name, err := m.t.streamFor(ctx, filter, m.t.scheduleStream())
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

func (m *mover) run(ctx context.Context) {
	defer close(m.done)
	held, slots := make(chan struct{}, moverHeld), make(chan struct{}, moverWindow)
	for {
		select { // room for one at least
		case held <- struct{}{}:
			<-held
		case <-ctx.Done():
			return
		}
		var as []arrived
		err := m.pull.fetch(ctx, moverHeld-len(held), func(ready []arrived) { as = slices.Clone(ready) })
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, transport.ErrClosed) {
				return
			}
			m.t.log.Warn("delayed messages wait", "err", err)
			if pause(ctx, time.Second) != nil {
				return
			}
			continue
		}
		m.t.ahead(ctx) // measures the clock now and then
		for _, a := range as {
			held <- struct{}{}
			m.busy.Go(func() {
				defer func() { <-held }()
				if pause(ctx, m.untilDue(a)) == nil {
					slots <- struct{}{}
					defer func() { <-slots }()
				}
				m.carry(ctx, a) // or hands it back, where ctx has ended
			})
		}
	}
}

// untilDue is how long a message is to be kept for, by the server's clock and never too short; no longer than the lead, even if the clocks
// were set meanwhile.
func (m *mover) untilDue(a arrived) time.Duration {
	due, err := strconv.ParseInt(a.msg.Header.Get(headerMoveDue), 10, 64)
	if err != nil {
		return 0 // an older version's: it is due now
	}
	at := time.Unix(0, due-m.t.leastSkew.Load()).Add(moverTick - 1).Truncate(moverTick)
	return min(time.Until(at), moverLead)
}

// carry publishes a due message to its subject. A repeat is recognised by its message id.
func (m *mover) carry(ctx context.Context, a arrived) {
	out := &nats.Msg{
		Subject: strings.TrimPrefix(a.msg.Subject, m.t.scheduleSubject(dueToken, "")),
		Header:  make(nats.Header, len(a.msg.Header)), Data: a.msg.Data,
	}
	for name, values := range a.msg.Header {
		if !strings.HasPrefix(name, "Nats-") && name != headerMoveID && name != headerMoveDue {
			out.Header[name] = values
		}
	}
	if id := a.msg.Header.Get(headerMoveID); id != "" {
		out.Header.Set(transport.HeaderMsgID, id)
	}
	err := m.t.pub.publish(ctx, []*nats.Msg{out})
	answer := ackAck
	if err != nil {
		if ctx.Err() != nil {
			answer = ackNak // for another mover
		} else {
			pause := time.Second
			if transport.Permanent(err) {
				pause = defaultLease // until an operator has mended it
			}
			m.t.log.Error("a delayed message cannot be brought home", "subject", out.Subject, "again_in", pause, "err", err)
			answer = fmt.Appendf(nil, `-NAK {"delay":%d}`, pause)
		}
	}
	if err := m.t.nc.Publish(a.msg.Reply, answer); err != nil {
		m.t.log.Debug("the mover's answer was lost: the message comes again", "err", err)
	}
}

// close stops the mover and hands back what it has not begun.
func (m *mover) close(ctx context.Context) error {
	left := m.pull.close(ctx)
	m.stop()
	<-m.done
	m.busy.Wait()
	var errs []error
	for _, a := range left {
		errs = append(errs, m.t.nc.Publish(a.msg.Reply, ackNak))
	}
	return errors.Join(errs...)
}
