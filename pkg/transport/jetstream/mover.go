package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// moverEvery is how often the mover looks what waits, unless it is woken; moverPause is the least time between two looks.
	moverEvery = 250 * time.Millisecond
	moverPause = 5 * time.Millisecond
	// moverAhead is how long before a second begins the mover reads what is due in it.
	moverAhead = 1500 * time.Millisecond
	// moverBack is how many minutes that are over it looks at as a rule, for what was stored late; moverAll is how often at all of them,
	// and moverSoon how long after that has failed.
	moverBack = 2
	moverAll  = 5 * time.Minute
	moverSoon = 10 * time.Second
	// clearEvery is how often at most a second is cleared before it is over, and clearMost how much is read of it without that.
	clearEvery = 500 * time.Millisecond
	clearMost  = 4 * moverHeld
	// secondsMost is how many seconds are known at once.
	secondsMost = 4096
	// moverTick is the grain of due times: messages that are due at about the same time share their way.
	moverTick = 10 * time.Millisecond
	// moverHeld and moverBytes bound what the mover keeps, apart from one page; pageSize and pageBytes what it reads at once.
	moverHeld  = 16 << 10
	moverBytes = 32 << 20
	pageSize   = 512
	pageBytes  = 4 << 20
)

type messages = []*nats.Msg

// mover brings waiting messages home. Every transport with a source runs one, and of those of a group one works: the holder of the lease. It
// lists the seconds that come next, reads their messages in pages, keeps each until it is due, publishes it to its subject, and clears
// a second, up to what it has read, when everything read is home. So nothing is deleted that is not stored elsewhere, and whoever takes over
// begins with what is left; what was brought home before is recognised there by its message id.
type mover struct {
	t     *Transport
	lease *lease
	stop  context.CancelFunc
	done  chan struct{}
	wake  chan struct{}
	busy  sync.WaitGroup // what carries messages
	told  atomic.Int64   // when a failure was logged last, counted from a second before the transport's epoch

	// Of the goroutine that reads.
	stream  jetstream.Stream
	born    time.Time          // of the stream
	seconds map[string]*second // that are being brought home, by subject
	looked  time.Time          // at all minutes
	back    time.Time          // at those just over

	queue   queue
	refused refusals
}

// second is what the mover knows of a second's messages.
type second struct {
	subject string
	at      time.Time // when it begins, by the server's clock
	total   uint64    // messages in the stream, as far as we know
	read    uint64    // the last sequence that was read
	kept    uint64    // messages read and not cleared
	left    int       // of those, not home; the queue's mutex guards it
	cleared time.Time // when it was last
}

// startMover starts the transport's mover, once.
func (t *Transport) startMover() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mover != nil || t.closed {
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &mover{
		t: t, stop: stop, done: make(chan struct{}), wake: make(chan struct{}, 1), seconds: make(map[string]*second),
	}
	m.lease = newLease(m)
	m.queue.init(m.wake)
	sub, err := t.nc.Subscribe(t.wakeSubject(), func(*nats.Msg) { nudge(m.wake) })
	if err != nil {
		stop()
		return fmt.Errorf("subscribe to what is moved: %w", err)
	}
	t.mover = m
	go m.run(ctx, sub)
	return nil
}

// nudge fills a channel that holds one.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run moves until ctx ends; what it has begun to publish by then is finished.
func (m *mover) run(ctx context.Context, sub *nats.Subscription) {
	defer close(m.done)
	var parts sync.WaitGroup
	parts.Go(func() { m.bringScheduled(ctx) })
	parts.Go(func() { m.bringHome(ctx) })
	failing := false
	for ctx.Err() == nil {
		err := m.turn(ctx)
		wait := moverEvery
		if err != nil && ctx.Err() == nil {
			if !failing {
				m.t.log.Warn("delayed messages wait", "err", err)
			}
			wait = time.Second
		}
		failing = err != nil
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-m.wake:
			_ = pause(ctx, moverPause) // for others that come at the same time
		}
		timer.Stop()
	}
	if err := sub.Unsubscribe(); err != nil {
		m.t.log.Debug("unsubscribe from what is moved", "err", err)
	}
	parts.Wait()
	m.busy.Wait()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiTimeout)
	defer cancel()
	if m.t.nc.IsConnected() {
		if err := m.clear(end, true); err != nil {
			m.t.log.Debug("what was brought home was not cleared: it is brought again", "err", err)
		}
		m.lease.release(end)
	}
}

// turn looks once what waits, where the place is ours, and takes as much of it as there is room for.
func (m *mover) turn(ctx context.Context) error {
	ours, err := m.lease.hold(ctx)
	if !ours {
		m.forget()
		return err
	}
	if err := m.list(ctx); err != nil {
		return err
	}
	if err := m.clear(ctx, false); err != nil { // of the stream that was there just now
		return err
	}
	for _, s := range slices.SortedFunc(maps.Values(m.seconds), func(a, b *second) int { return a.at.Compare(b.at) }) {
		for s.total > s.kept && s.kept < clearMost {
			if !m.queue.room() {
				return nil // it wakes us
			}
			if ours, err := m.lease.hold(ctx); !ours {
				return err
			}
			n, err := m.page(ctx, s)
			if err != nil {
				return err
			}
			if n == 0 { // a replica is behind, or another mover was here
				s.total = s.kept
				m.looked = time.Now().Add(time.Second - moverAll)
			}
		}
	}
	return nil
}

// forget drops what is kept, since another may bring it home.
func (m *mover) forget() {
	clear(m.seconds)
	m.queue.drop()
	m.looked = time.Time{}
}

// list learns how much there is in the seconds that are to be read by now.
func (m *mover) list(ctx context.Context) error {
	begun := time.Now()
	now := begun.Add(time.Duration(m.t.skew.Load()))
	until := now.Add(moverAhead)
	first, last := now.Unix()/60, until.Unix()/60
	if begun.Sub(m.back) > time.Second {
		first -= moverBack
		m.back = begun
	}
	for ; first <= last; first++ {
		counts, err := m.count(ctx, strconv.FormatInt(first, 10)+".*")
		if err != nil {
			return err
		}
		m.note(counts, until)
	}
	if begun.Sub(m.looked) > moverAll {
		m.looked = begun
		counts, err := m.count(ctx, ">")
		if err != nil { // it holds up nothing that comes in its time
			m.looked = begun.Add(moverSoon - moverAll)
			m.t.log.Warn("delayed messages that are overdue may wait", "err", err)
			return nil
		}
		m.note(counts, until)
	}
	return nil
}

// note keeps the counts of seconds that have begun by a time. Of very many, as after a long standstill, it keeps the first.
func (m *mover) note(counts map[string]uint64, until time.Time) {
	var due []*second
	for subject, n := range counts {
		text := subject[strings.LastIndexByte(subject, '.')+1:]
		unix, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			m.t.log.Debug("this names no second and was not written by a sidecar", "subject", subject, "messages", n)
			continue
		}
		if at := time.Unix(unix, 0); !at.After(until) {
			due = append(due, &second{subject: subject, at: at, total: n})
		}
	}
	slices.SortFunc(due, func(a, b *second) int { return a.at.Compare(b.at) })
	for _, s := range due {
		switch old := m.seconds[s.subject]; {
		case old != nil:
			old.total = s.total
		case len(m.seconds) < secondsMost:
			m.seconds[s.subject] = s
		default:
			m.looked = time.Time{} // as soon as some are done
			return
		}
	}
}

// count returns how many messages each second has of those that a pattern of minutes and seconds names; of very many, the first.
func (m *mover) count(ctx context.Context, pattern string) (map[string]uint64, error) {
	var counts map[string]uint64
	err := m.withStream(ctx, "look for delayed messages", func(ctx context.Context, s jetstream.Stream) error {
		begun := time.Now()
		info, err := m.t.subjectsOf(ctx, s.CachedInfo().Config.Name, m.t.waitSubject(atToken+"."+pattern))
		if err != nil {
			return err
		}
		m.t.measureClock(begun, info)
		if !info.Created.Equal(m.born) { // what was kept is gone
			m.forget()
			m.born = info.Created
		}
		counts = info.State.Subjects
		return nil
	})
	return counts, err
}

// withStream makes a request about the stream, which is found or made.
func (m *mover) withStream(ctx context.Context, doing string, call func(context.Context, jetstream.Stream) error) error {
	return m.t.api(ctx, doing, func(ctx context.Context) error {
		if m.stream == nil {
			name, err := m.t.streamFor(ctx, m.t.waitSubject(">"), m.t.waitStream())
			if err != nil {
				return err
			}
			if m.stream, err = m.t.js.Stream(ctx, name); err != nil {
				return err
			}
		}
		err := call(ctx, m.stream)
		if err != nil {
			m.stream = nil // it may be gone
		}
		return err
	})
}

// page reads the next messages of a second and returns how many there were. What the server sends is a chain: each message names the one
// before, so that none is missing.
func (m *mover) page(ctx context.Context, s *second) (int, error) {
	var ms messages
	err := m.withStream(ctx, "read delayed messages", func(ctx context.Context, stream jetstream.Stream) error {
		inbox := m.t.nc.NewInbox()
		sub, err := m.t.nc.SubscribeSync(inbox)
		if err != nil {
			return err
		}
		defer func() { _ = sub.Unsubscribe() }()             // the connection's end has done it
		if err := sub.SetPendingLimits(-1, -1); err != nil { // the page is bounded
			return err
		}
		ask, err := json.Marshal(map[string]any{"seq": s.read + 1, "next_by_subj": s.subject, "batch": pageSize, "max_bytes": pageBytes})
		if err != nil {
			return err
		}
		if err := m.t.nc.PublishRequest("$JS.API.DIRECT.GET."+stream.CachedInfo().Config.Name, inbox, ask); err != nil {
			return err
		}
		ms, err = chain(ctx, sub)
		return err
	})
	if err != nil || len(ms) == 0 {
		return 0, err
	}
	ws := make([]*waiter, len(ms))
	for i, msg := range ms {
		ws[i] = &waiter{at: m.t.dueHere(msg), msg: homeward(msg.Header.Get(headerMoveTo), msg), s: s, size: wireSize(msg)}
	}
	last, err := strconv.ParseUint(told(ms[len(ms)-1], jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read delayed messages: sequence: %w", err)
	}
	s.read = last
	s.kept += uint64(len(ms))
	s.total = max(s.total, s.kept)
	m.queue.add(ws)
	return len(ms), nil
}

// chain receives the messages that answer one request.
func chain(ctx context.Context, sub *nats.Subscription) (messages, error) {
	var ms messages
	for last := "0"; ; {
		msg, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, context.DeadlineExceeded) && len(ms) > 0 {
			return ms, nil // over a slow line the rest comes with another page
		}
		if err != nil {
			return nil, err
		}
		linked := told(msg, "Nats-Last-Sequence") == last
		switch status := msg.Header.Get("Status"); {
		case told(msg, jetstream.SequenceHeader) != "": // a message, whose own headers may be anything
			if !linked {
				return nil, errBroken
			}
			last = told(msg, jetstream.SequenceHeader)
			ms = append(ms, msg)
		case status == "404":
			return nil, nil
		case status == "204" && linked:
			return ms, nil
		case status == "204":
			return nil, errBroken
		case status == "503":
			return nil, nats.ErrNoResponders
		default:
			return nil, fmt.Errorf("status %s: %s", status, msg.Header.Get("Description"))
		}
	}
}

var errBroken = errors.New("a part of the answer was lost")

// told is the value of a header that the server adds behind those of the message's own.
func told(msg *nats.Msg, name string) string {
	if all := msg.Header[name]; len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}

// clear deletes what is home, of seconds of which everything read is.
func (m *mover) clear(ctx context.Context, all bool) error {
	now := time.Now()
	over := now.Add(time.Duration(m.t.leastSkew.Load()) - 2*time.Second)
	for _, s := range m.seconds {
		if s.kept == 0 && s.total == 0 {
			delete(m.seconds, s.subject)
			continue
		}
		ripe := all || s.kept >= clearMost || s.at.Before(over) || now.Sub(s.cleared) > clearEvery
		if s.kept == 0 || !ripe || !m.queue.home(s) {
			continue
		}
		err := m.withStream(ctx, "clear what was brought home", func(ctx context.Context, stream jetstream.Stream) error {
			return stream.Purge(ctx, jetstream.WithPurgeSubject(s.subject), jetstream.WithPurgeSequence(s.read+1))
		})
		if err != nil {
			return err
		}
		s.total -= min(s.kept, s.total) // another may have cleared it before we counted
		s.kept, s.cleared = 0, now
	}
	return nil
}

// close stops the mover and gives its place to another.
func (m *mover) close() {
	m.stop()
	<-m.done
}
