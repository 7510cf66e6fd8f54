package natskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// roundBytes bounds a bundle, unless one transaction alone is larger.
	roundBytes = 64 << 10
	// roundMembers bounds the transactions of a round.
	roundMembers = maxPlaces
	// slowLog is after how long a log that does not go on casts doubt on the consumer.
	slowLog = time.Second
	// turnAfter is after how many rounds lost to others a store asks them to let it write, and turnPause how long they wait for it.
	turnAfter = 3
	turnPause = 50 * time.Millisecond
)

// headerExpect makes the server refuse a bundle unless its stream ends as its writer believes.
const headerExpect = "Nats-Expected-Last-Sequence"

// errLate says that the consumer does not tell what the stream has.
var errLate = errors.New("the log does not come: is the server overloaded, or the user not allowed to make consumers of the stream?")

// writer runs rounds: all that waits is looked at together, and what may be done is written as one bundle, on the condition that the
// log ends where the state does. So what was looked at holds at that moment, and what is written needs no second look by anyone. If
// another process was faster, the round begins anew with what that one has done. None waits for others to come.
func (s *Store) writer() {
	var waiting []*member
	for {
		if len(waiting) == 0 {
			select {
			case <-s.queue.wanted:
			case <-s.ctx.Done():
				return
			}
		}
		waiting = s.round(s.queue.take(waiting))
		if s.ctx.Err() != nil {
			return
		}
	}
}

// round is what was chosen of what waits.
type round struct {
	after    uint64    // the log's end
	accepted []*member // to be written
	others   []*member // that write nothing: reads, and those whose conditions do not hold
	rest     []*member // for the next round
	body     []byte
}

// round does what it can of what waits and returns the rest.
func (s *Store) round(waiting []*member) []*member {
	err := s.await(func() bool { return s.st.ready || s.st.bad != nil })
	if err == nil {
		err = s.yield()
	}
	if err != nil {
		for _, m := range waiting {
			m.end(err)
		}
		return nil
	}
	r := s.choose(waiting)
	switch {
	case len(r.accepted) > 0:
		if err = s.commit(r); !isConflict(err) {
			s.lost = 0
		} else {
			// Another was faster, or a bundle of ours went through unheard.
			if s.lost++; s.lost%turnAfter == 0 {
				s.askTurn()
			}
			if err = s.await(func() bool { return s.st.applied > r.after || !s.st.ready }); err == nil {
				return append(append(r.accepted, r.others...), r.rest...)
			}
		}
	case len(r.others) > 0:
		err = s.barrier(r)
	}
	if err != nil {
		if len(r.accepted) == 0 {
			r.accepted, r.others = r.others, nil
		}
		for _, m := range r.accepted {
			m.end(err)
		}
		return append(r.others, r.rest...)
	}
	return r.rest
}

// yield lets another write that asked for it: one that is further from the server than we are would else never be the first. It returns
// why nothing can be written.
func (s *Store) yield() error {
	s.mu.Lock()
	wanted, bad := s.st.turn.wanted && s.st.turn.of != s.id, s.st.bad
	s.mu.Unlock()
	if bad != nil || !wanted {
		return bad
	}
	timer := time.NewTimer(turnPause)
	defer timer.Stop()
	for {
		s.mu.Lock()
		wanted, changed := s.st.turn.wanted, s.changed
		s.mu.Unlock()
		if !wanted {
			return nil
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return store.ErrClosed
		case <-timer.C:
			s.mu.Lock()
			s.st.turn.wanted = false
			s.mu.Unlock()
			return nil
		}
	}
}

// askTurn asks the others to let us write, in a bundle that is taken wherever the log ends.
func (s *Store) askTurn() {
	_, err := s.publish(s.ctx, &nats.Msg{Subject: s.subject, Data: append(s.id.begin(), effectNext, effectTurn)})
	if err != nil {
		s.cfg.Log.Debug("cannot ask for a turn at the store's stream", "err", err)
	}
}

// choose looks at what waits, in order. Nobody reads or has a condition on what another of the round writes.
func (s *Store) choose(waiting []*member) *round {
	r := &round{body: s.id.begin()}
	var written map[string]struct{}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.after = s.st.applied
	now := s.clock.now().UnixNano()
	for i, m := range waiting {
		if m.ctx.Err() != nil {
			continue // its caller has gone
		}
		if n := len(r.accepted); n == roundMembers || n > 0 && len(r.body)+len(m.writes) > roundBytes {
			r.rest = append(r.rest, waiting[i:]...)
			break
		}
		switch {
		case m.touches(written):
			r.rest = append(r.rest, m)
		case s.lacks(m, now):
			m.end(nil)
		case !s.holds(m, now) || len(m.writes) == 0:
			r.others = append(r.others, m)
		case !m.room && s.isFull(len(r.body)+len(m.writes)):
			m.end(s.fullError())
		default:
			s.answer(m, now)
			r.accepted = append(r.accepted, m)
			r.body = append(append(r.body, effectNext), m.writes...)
			if written == nil {
				written = make(map[string]struct{}, len(waiting))
			}
			for _, k := range m.keys {
				written[k] = struct{}{}
			}
		}
	}
	if len(r.accepted) > 0 { // else the moment that they are answered about is still to come
		for _, m := range r.others {
			s.answer(m, now)
		}
	}
	return r
}

// holds says whether the conditions of m hold. s.mu is held.
func (s *Store) holds(m *member, now int64) bool {
	m.held = true
	if m.test != nil {
		m.held = m.test(now)
	}
	for _, c := range m.conds {
		if it, _ := s.st.find(c.Key, now); it.revision != c.Revision {
			m.held = false
		}
	}
	return m.held
}

// lacks says whether a value that m reads is in no memory. s.mu is held.
func (s *Store) lacks(m *member, now int64) bool {
	for _, k := range m.reads {
		it, ok := s.st.find(k, now)
		if ok && it.length > 0 && s.st.recent[it.seq] == nil && m.loaded[it.seq] == nil {
			m.lacks = it.seq
			return true
		}
	}
	return false
}

// answer makes the reply of a member that writes nothing, or has not been written yet. s.mu is held.
func (s *Store) answer(m *member, now int64) {
	m.reply = store.Reply{Done: m.held && len(m.writes) == 0, Now: time.Unix(0, now)}
	if len(m.reads) > 0 {
		m.reply.Read = make([]store.KV, len(m.reads))
	}
	for i, k := range m.reads {
		kv := &m.reply.Read[i]
		kv.Key = k
		it, ok := s.st.find(k, now)
		if !ok {
			continue
		}
		kv.Revision, kv.Modified = it.revision, time.Unix(0, it.modified)
		b := s.st.recent[it.seq]
		if b == nil {
			b = m.loaded[it.seq]
		}
		if it.length > 0 {
			kv.Value = append([]byte(nil), b[it.offset:it.offset+it.length]...)
		}
	}
	if m.look != nil {
		m.look()
	}
}

// commit writes a round and answers its members.
func (s *Store) commit(r *round) error {
	msg := &nats.Msg{Subject: s.subject, Data: r.body, Header: nats.Header{headerExpect: {strconv.FormatUint(r.after, 10)}}}
	seq, err := s.publish(s.ctx, msg)
	if err != nil {
		return err
	}
	if seq != r.after+1 {
		s.keeper.want()
		return errReplaced
	}
	s.mu.Lock()
	if s.st.applied == r.after && s.st.ready { // the consumer may have been faster
		s.apply(seq, s.clock.now(), r.body)
	}
	s.mu.Unlock()
	for i, m := range r.accepted {
		m.reply.Done, m.reply.Revision = true, revision(seq, i)
		m.end(nil)
	}
	for _, m := range r.others {
		m.end(nil)
	}
	return nil
}

// barrier answers members that write nothing, once the state has everything that the stream had when they came.
func (s *Store) barrier(r *round) error {
	last, err := s.lastSequence()
	if err != nil {
		return err
	}
	if err := s.await(func() bool { return s.st.ready && s.st.applied >= last }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.now().UnixNano()
	for _, m := range r.others {
		switch {
		case s.lacks(m, now):
		case s.holds(m, now) && len(m.writes) > 0: // things have changed in its favour
			r.rest = append(r.rest, m)
			continue
		default:
			s.answer(m, now)
		}
		m.end(nil)
	}
	return nil
}

// apply takes in a bundle. s.mu is held.
func (s *Store) apply(seq uint64, at time.Time, b []byte) {
	var send func(store.Change)
	if len(s.feeds) > 0 {
		send = func(c store.Change) {
			for f := range s.feeds {
				f.Send(c)
			}
		}
	}
	if err := s.st.apply(seq, at.UnixNano(), b, send); err != nil && s.st.bad == nil {
		s.st.bad = fmt.Errorf("message %d of stream %q: %w", seq, s.cfg.Stream, err)
		s.cfg.Log.Error("the stream of the store", "stream", s.cfg.Stream, "err", s.st.bad)
	}
	s.keeper.saw(int64(seq))
	s.wake()
}

// wake has await look again. s.mu is held.
func (s *Store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until cond, which is called under the store's lock, is true. If that takes long the consumer is made anew, and in the end
// it gives up.
func (s *Store) await(cond func() bool) error {
	var timer *time.Timer
	for waited := time.Duration(0); ; {
		s.mu.Lock()
		ok, changed := cond(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		if timer == nil {
			timer = time.NewTimer(slowLog)
			defer timer.Stop()
		}
		select {
		case <-changed: // it goes on
			waited = 0
			timer.Reset(slowLog)
			continue
		case <-s.ctx.Done():
			return store.ErrClosed
		case <-timer.C:
		}
		if t := s.keeper.trouble.Load(); t != nil {
			return t.err
		}
		if waited += slowLog; waited >= requestTimeout {
			return s.explain(s.cfg.Stream, errLate)
		}
		s.mux.epoch.Add(1)
		s.keeper.want()
		timer.Reset(slowLog)
	}
}

func (s *Store) fullError() error {
	return fmt.Errorf("%w: stream %q has come near its max_bytes of %d: raise it", store.ErrFull, s.cfg.Stream, s.limit.Load())
}

func isConflict(err error) bool {
	var api *apiError
	return errors.As(err, &api) && api.conflict()
}

// pubAck is the reply to a publication.
type pubAck struct {
	Seq   uint64    `json:"seq"`
	Error *apiError `json:"error"`
}

// publish writes a message and returns its sequence.
func (s *Store) publish(ctx context.Context, m *nats.Msg) (uint64, error) {
	if err := s.health(); err != nil {
		return 0, err
	}
	reply, err := s.request(ctx, m)
	if err != nil {
		return 0, err
	}
	var ack pubAck
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return 0, fmt.Errorf("acknowledgement %q: %w", reply.Data, err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	return ack.Seq, nil
}

// api asks JetStream for something of which only the error matters.
func (s *Store) api(ctx context.Context, request string, body []byte) error {
	reply, err := s.request(ctx, &nats.Msg{Subject: "$JS.API." + request, Data: body})
	if err != nil {
		return err
	}
	var r struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &r); err != nil {
		return fmt.Errorf("reply %q: %w", reply.Data, err)
	}
	if r.Error != nil {
		return r.Error
	}
	return nil
}
