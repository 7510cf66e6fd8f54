// Package inmem is a broker in memory, for tests and for a sidecar that needs nothing to outlive it.
//
// Subjects may hold wildcards. Sources of the same subject share its messages, each of which goes to one of them and is gone
// once it is settled; two sources whose subjects overlap without being equal are refused. What no source has asked for
// (results, dead letters) is kept for those who Tail it, the newest Config.MaxMessages of it. Messages of one key are out at
// one source at a time. All times are those of package time, so that testing/synctest can drive it.
package inmem

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Config is how a Broker is made.
type Config struct {
	// MaxMessages bounds the messages that are held: those of each source's subject, where Publish then waits, and those
	// that no source has asked for, where the oldest give way. 0 for the default of 100 000.
	MaxMessages int
	// MaxBytes is the largest message; 0 for no limit.
	MaxBytes int
}

const (
	defaultMaxMessages = 100_000
	defaultLease       = 30 * time.Second
)

// Broker holds the messages. Transports that it opens see the same ones, as connections to one server would. It needs no
// closing and may be used by many goroutines at once.
type Broker struct {
	cfg  Config
	born string // tells the positions of this broker from those of the last process's

	mu     sync.Mutex
	seq    uint64
	all    map[uint64]*entry
	groups []*group
	loose  []*entry // what no group has asked for, oldest first; some may be gone
	tails  map[*tail]struct{}
	room   chan struct{} // closed and made anew when a settled message leaves room
}

// entry is one message that the broker holds.
type entry struct {
	seq       uint64
	position  string
	msg       *transport.Message
	key       string
	published time.Time
	group     *group // nil while loose

	deliveries int       // also tells an earlier delivery of this entry from the present one
	owner      *source   // who has it out; nil for nobody
	deadline   time.Time // until when owner has it
	prev, next *entry    // neighbours in group.ready
}

// group is the sources of one subject and what waits for them.
type group struct {
	subject string
	held    int   // messages, those that are out or delayed included
	ready   entry // ring of what can be handed out, by seq; the entry itself is its root
	sources map[*source]struct{}
	keys    map[string]*keyed
}

// keyed is a key with messages out.
type keyed struct {
	owner *source
	out   int
}

// NewBroker makes an empty broker.
func NewBroker(cfg Config) (*Broker, error) {
	if cfg.MaxMessages < 0 || cfg.MaxBytes < 0 {
		return nil, fmt.Errorf("make a memory broker: MaxMessages %d and MaxBytes %d must not be negative", cfg.MaxMessages, cfg.MaxBytes)
	}
	if cfg.MaxMessages == 0 {
		cfg.MaxMessages = defaultMaxMessages
	}
	return &Broker{
		cfg: cfg, born: strconv.FormatInt(time.Now().UnixNano(), 36), room: make(chan struct{}),
		all: map[uint64]*entry{}, tails: map[*tail]struct{}{},
	}, nil
}

// Drop forgets all messages of a subject, as deleting and making it anew does on other brokers.
func (b *Broker) Drop(subject string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.all {
		if transport.MatchSubject(subject, e.msg.Subject) {
			b.remove(e)
		}
	}
}

// Held is the number of messages that match subject and are not settled.
func (b *Broker) Held(subject string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, e := range b.all {
		if transport.MatchSubject(subject, e.msg.Subject) {
			n++
		}
	}
	return n
}

// join returns the group of a subject, made if need be; it then takes over what waits for it.
func (b *Broker) join(subject string) (*group, error) {
	for _, g := range b.groups {
		if g.subject == subject {
			return g, nil
		}
		if overlap(g.subject, subject) {
			return nil, fmt.Errorf("%w: subject %q overlaps %q, which has a source; a message can go to one of them only", transport.ErrRejected, subject, g.subject)
		}
	}
	g := &group{subject: subject, sources: map[*source]struct{}{}, keys: map[string]*keyed{}}
	g.ready.prev, g.ready.next = &g.ready, &g.ready
	b.groups = append(b.groups, g)
	kept := b.loose[:0]
	for _, e := range b.loose {
		switch {
		case b.all[e.seq] != e:
		case transport.MatchSubject(subject, e.msg.Subject):
			g.adopt(e)
		default:
			kept = append(kept, e)
		}
	}
	clear(b.loose[len(kept):])
	b.loose = kept
	return g, nil
}

func (g *group) adopt(e *entry) {
	e.group = g
	g.held++
	g.enqueue(e)
}

// enqueue makes e ready at its place by seq. What is new belongs at the end and what comes back near the front.
func (g *group) enqueue(e *entry) {
	at := &g.ready
	if last := g.ready.prev; last != at && last.seq > e.seq {
		for at = g.ready.next; at.seq < e.seq; at = at.next {
		}
	}
	e.prev, e.next = at.prev, at
	at.prev.next, at.prev = e, e
	g.wake()
}

func (g *group) wake() {
	for s := range g.sources {
		s.wake()
	}
}

func (e *entry) unlink() {
	if e.next != nil {
		e.prev.next, e.next.prev = e.next, e.prev
		e.prev, e.next = nil, nil
	}
}

// remove forgets an entry.
func (b *Broker) remove(e *entry) {
	delete(b.all, e.seq)
	e.unlink()
	e.give()
	if g := e.group; g != nil {
		if g.held--; g.held == b.cfg.MaxMessages-1 {
			close(b.room)
			b.room = make(chan struct{})
		}
	}
}

// take hands e to s until its lease ends.
func (e *entry) take(s *source, now time.Time) {
	e.unlink()
	e.owner, e.deadline = s, now.Add(s.lease)
	e.deliveries++
	s.out[e] = struct{}{}
	if e.key == "" {
		return
	}
	k := e.group.keys[e.key]
	if k == nil {
		k = &keyed{owner: s}
		e.group.keys[e.key] = k
	}
	k.out++
}

// give takes e away from its owner, if it has one.
func (e *entry) give() {
	if e.owner == nil {
		return
	}
	delete(e.owner.out, e)
	e.owner = nil
	if k := e.group.keys[e.key]; k != nil {
		if k.out--; k.out == 0 {
			delete(e.group.keys, e.key)
			e.group.wake() // another source may take what waits for the key
		}
	}
}

// add holds a copy of m from now on; after says when it may be handed out.
func (b *Broker) add(m *transport.Message, after time.Duration) {
	b.seq++
	m = &transport.Message{
		Subject: m.Subject, Key: slices.Clone(m.Key), Header: m.Header.Clone(0), ReplyTo: m.ReplyTo, Body: slices.Clone(m.Body),
	}
	key := string(m.Key)
	if key == "" {
		key = m.Header.Get(transport.HeaderKey)
	}
	e := &entry{
		seq: b.seq, msg: m, key: key, published: time.Now(),
		position: m.Subject + "@" + b.born + "/" + strconv.FormatUint(b.seq, 10),
	}
	b.all[e.seq] = e
	for t := range b.tails {
		t.offer(m, b.cfg.MaxMessages)
	}
	g := b.groupOf(m.Subject)
	switch {
	case g == nil:
		b.loose = append(b.loose, e)
		for len(b.loose) > b.cfg.MaxMessages {
			if old := b.loose[0]; b.all[old.seq] == old {
				b.remove(old)
			}
			b.loose[0] = nil
			b.loose = b.loose[1:]
		}
	case after <= 0:
		g.adopt(e)
	default:
		e.group = g
		g.held++
		time.AfterFunc(after, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.all[e.seq] == e {
				g.enqueue(e)
			}
		})
	}
}

func (b *Broker) groupOf(subject string) *group {
	for _, g := range b.groups {
		if transport.MatchSubject(g.subject, subject) {
			return g
		}
	}
	return nil
}

// publish adds one message, once there is room for it.
func (b *Broker) publish(ctx context.Context, closed <-chan struct{}, m *transport.Message) error {
	for {
		b.mu.Lock()
		g, room := b.groupOf(m.Subject), b.room
		if g == nil || g.held < b.cfg.MaxMessages {
			b.add(m, 0)
			b.mu.Unlock()
			return nil
		}
		b.mu.Unlock()
		select {
		case <-room:
		case <-closed:
			return fmt.Errorf("publish to %q: %w", m.Subject, transport.ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("publish to %q: %d messages wait there already: %w", m.Subject, b.cfg.MaxMessages, ctx.Err())
		}
	}
}

// matching returns everything that matches subject, oldest first.
func (b *Broker) matching(subject string) []*transport.Message {
	var es []*entry
	for _, e := range b.all {
		if transport.MatchSubject(subject, e.msg.Subject) {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(x, y *entry) int { return cmp.Compare(x.seq, y.seq) })
	out := make([]*transport.Message, len(es))
	for i, e := range es {
		out[i] = e.msg
	}
	return out
}

// overlap says whether some subject matches both patterns.
func overlap(p, q string) bool {
	for {
		a, prest, pmore := strings.Cut(p, ".")
		c, qrest, qmore := strings.Cut(q, ".")
		switch {
		case a == ">" || c == ">":
			return true
		case a != "*" && c != "*" && a != c, pmore != qmore:
			return false
		case !pmore:
			return true
		}
		p, q = prest, qrest
	}
}
