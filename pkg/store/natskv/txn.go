package natskv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// Headers of our messages.
const (
	headerTTL         = "Nats-TTL"
	headerExpect      = "Nats-Expected-Last-Subject-Sequence"
	headerExpectOther = "Nats-Expected-Last-Subject-Sequence-Subject"
	headerBatch       = "Nats-Batch-Id"
	headerBatchSeq    = "Nats-Batch-Sequence"
	headerBatchCommit = "Nats-Batch-Commit"
	headerOperation   = "KV-Operation"
	// headerAhead says how many messages of its transaction follow: all keys that it puts have the revision of the last one.
	headerAhead = "Wasm-Ahead"
)

const (
	operationDelete = "DEL"
	// goneTTL is how long a deletion is remembered, for consumers that lag.
	goneTTL     = time.Minute
	goneSeconds = "60"
	// guardSubjects is over how many subjects guards are spread.
	guardSubjects = 16
	// conflictPause is the longest pause after a race that was lost a second time.
	conflictPause = 2 * time.Millisecond
)

// Txn implements store.Store.
//
// What comes to one message is tried with the conditions as they are given: a revision usually is a sequence, and an absent key usually
// has none. Where that is refused, where values are to be read, and ahead of every batch, the keys are read first, all at one moment;
// what was read decides, and is made the expectation of the write. If the write is accepted, nothing had changed since the reading, which is then how the keys stood
// before it. If it is refused, somebody else was faster, and everything begins anew.
func (s *Store) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	part, err := t.Check()
	if err != nil {
		return store.Reply{}, err
	}
	limit := s.MaxValue()
	for _, o := range t.Then {
		if len(o.Value) > limit {
			return store.Reply{}, fmt.Errorf("%w: %d bytes for key %q: the nats server takes %d", store.ErrTooLarge, len(o.Value), o.Key, limit)
		}
	}
	if s.closed.Load() {
		return store.Reply{}, store.ErrClosed
	}
	r, err := s.txn(ctx, t)
	if err != nil {
		return store.Reply{}, fmt.Errorf("nats transaction in partition %q: %w", part, err)
	}
	return r, nil
}

func (s *Store) txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	if expect, ok := guess(t); ok && single(t, expect) {
		seq, err := s.write(ctx, t, expect)
		if err == nil {
			return s.reply(t, true, revision(t, seq), nil), nil
		}
		if !isConflict(err) {
			return store.Reply{}, err
		}
	}
	for attempt := 0; ; attempt++ {
		if attempt > 0 {
			if err := pause(ctx, rand.N(conflictPause)); err != nil {
				return store.Reply{}, err
			}
		}
		found, err := s.read(ctx, t)
		if err != nil {
			return store.Reply{}, err
		}
		for _, c := range t.If {
			if found[c.Key].kv.Revision != c.Revision {
				return s.reply(t, false, 0, found), nil
			}
		}
		if len(t.Then) == 0 {
			return s.reply(t, true, 0, found), nil
		}
		expect := make(map[string]int64, len(found))
		for key, e := range found {
			expect[key] = e.seq
		}
		seq, err := s.write(ctx, t, expect)
		if err == nil {
			return s.reply(t, true, revision(t, seq), found), nil
		}
		if !isConflict(err) {
			return store.Reply{}, err
		}
	}
}

// guess returns the sequences that t's conditions come to, and whether it is worth trying with them: nothing has to be read but keys
// that have to be absent.
func guess(t store.Txn) (map[string]int64, bool) {
	if len(t.Then) == 0 {
		return nil, false
	}
	expect := make(map[string]int64, len(t.If))
	for _, c := range t.If {
		if seq, ok := expect[c.Key]; ok && seq != c.Revision/2 {
			return nil, false
		}
		if c.Revision%2 != 0 {
			return nil, false
		}
		expect[c.Key] = c.Revision / 2
	}
	for _, k := range t.Read {
		if seq, ok := expect[k]; !ok || seq != 0 {
			return nil, false
		}
	}
	return expect, true
}

// putRevision and goneRevision make revisions of sequences. A deletion is a message, too, and has a sequence that a condition could
// name; it must not hold then. So what was put has even revisions, and what was deleted odd ones.
func putRevision(seq int64) int64  { return 2 * seq }
func goneRevision(seq int64) int64 { return 2*seq + 1 }

// revision returns that of a transaction whose last message has the sequence seq.
func revision(t store.Txn, seq int64) int64 {
	for _, o := range t.Then {
		if o.Kind == store.OpPut {
			return putRevision(seq)
		}
	}
	return goneRevision(seq)
}

// single says whether t is one message.
func single(t store.Txn, expect map[string]int64) bool {
	return len(t.Then) == 1 && len(expect) <= 1
}

func (s *Store) reply(t store.Txn, done bool, rev int64, found map[string]entry) store.Reply {
	r := store.Reply{Done: done, Revision: rev}
	for _, k := range t.Read {
		kv := found[k].kv
		kv.Key = k
		r.Read = append(r.Read, kv)
	}
	r.Now = s.clock.now()
	return r
}

// write does Then if every key stands at the sequence expected of it, and returns the sequence of the last message.
func (s *Store) write(ctx context.Context, t store.Txn, expect map[string]int64) (int64, error) {
	msgs := s.messages(t, expect)
	if len(msgs) == 1 {
		return s.publish(ctx, msgs...)
	}
	return s.group.do(ctx, msgs)
}

// messages makes the messages of a transaction. What it puts comes last, and last of all a put with a condition, so that the revision
// that its caller will expect next time is the message's own sequence.
func (s *Store) messages(t store.Txn, expect map[string]int64) []*nats.Msg {
	var rest, puts, owned []*nats.Msg
	free := make([]*nats.Msg, 0, len(t.Then)) // may carry a condition on another key
	left := make(map[string]int64, len(expect))
	for k, seq := range expect {
		left[k] = seq
	}
	for _, o := range t.Then {
		m := s.message(o)
		seq, mine := left[o.Key]
		if mine && (o.Kind == store.OpPut || o.Kind == store.OpDelete) {
			m.Header.Set(headerExpect, strconv.FormatInt(seq, 10))
			delete(left, o.Key)
		} else {
			mine = false
			free = append(free, m)
		}
		switch {
		case o.Kind != store.OpPut:
			rest = append(rest, m)
		case mine:
			owned = append(owned, m)
		default:
			puts = append(puts, m)
		}
	}
	var guards []*nats.Msg
	for k, seq := range left {
		var m *nats.Msg
		if len(free) > 0 {
			m, free = free[0], free[1:]
		} else {
			m = nats.NewMsg(s.guards + strconv.Itoa(rand.IntN(guardSubjects)))
			guards = append(guards, m)
		}
		m.Header.Set(headerExpect, strconv.FormatInt(seq, 10))
		m.Header.Set(headerExpectOther, s.keySubject(k))
	}
	msgs := append(append(append(guards, rest...), puts...), owned...)
	for i, m := range msgs[:len(msgs)-1] {
		m.Header.Set(headerAhead, strconv.Itoa(len(msgs)-1-i))
	}
	return msgs
}

// message makes the message of one operation, without its condition.
func (s *Store) message(o store.Op) *nats.Msg {
	m := &nats.Msg{Header: make(nats.Header, 4)}
	switch o.Kind {
	case store.OpPut:
		m.Subject, m.Data = s.keySubject(o.Key), o.Value
		if o.TTL > 0 {
			m.Header.Set(headerTTL, seconds(o.TTL))
		}
	case store.OpAdd:
		m.Subject, m.Data = s.memberSubject(o.Key, o.Member), strconv.AppendInt(nil, o.Score, 10)
	case store.OpDelete:
		m.Subject = s.keySubject(o.Key)
		setGone(m)
	case store.OpRemove:
		m.Subject = s.memberSubject(o.Key, o.Member)
		setGone(m)
	}
	return m
}

// setGone makes m say that what its subject names is gone.
func setGone(m *nats.Msg) {
	m.Header.Set(headerOperation, operationDelete)
	m.Header.Set(headerTTL, goneSeconds)
}

func isConflict(err error) bool {
	var api *apiError
	return errors.As(err, &api) && api.conflict()
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
