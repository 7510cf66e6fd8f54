package jetstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// backlog is how many messages may wait for their acknowledgement at once; more make Publish wait.
const backlog = 4096

// publisher writes to streams. All its calls share one inbox, and a call waits for the acknowledgements of its own messages
// only, so concurrent calls share round trips.
type publisher struct {
	t      *Transport
	prefix string
	sub    *nats.Subscription
	slots  chan struct{}
	wave   atomic.Pointer[wave] // the last

	mu     sync.Mutex
	closed bool
	number uint64
	calls  map[uint64]*call
}

// wave is calls that began at about the same time, which wait for as long: a timer for each would cost as much as writing its message.
type wave struct {
	since time.Time
	over  chan struct{}
}

// wait returns what is closed once a call that begins now has waited for apiTimeout, or a quarter longer.
func (p *publisher) wait(now time.Time) <-chan struct{} {
	w := p.wave.Load()
	if w == nil || now.Sub(w.since) > apiTimeout/4 {
		w = &wave{now, make(chan struct{})}
		time.AfterFunc(apiTimeout+apiTimeout/4, func() { close(w.over) })
		p.wave.Store(w)
	}
	return w.over
}

// call is one message on its way.
type call struct {
	b       *batch
	subject string
}

// batch is what one Publish waits for; the publisher's mutex guards it.
type batch struct {
	left, failed int
	err          error
	done         chan struct{}
}

func newPublisher(t *Transport) (*publisher, error) {
	p := &publisher{
		t: t, prefix: t.nc.NewInbox() + ".", slots: make(chan struct{}, backlog), calls: make(map[uint64]*call),
	}
	var err error
	if p.sub, err = t.nc.Subscribe(p.prefix+"*", p.answered); err != nil {
		return nil, fmt.Errorf("subscribe to acknowledgements: %w", err)
	}
	return p, p.sub.SetPendingLimits(-1, -1) // bounded by backlog
}

// MaxBytes is the largest message that the server and the streams take.
func (p *publisher) MaxBytes() int {
	if n := p.t.maxBytes.Load(); n > 0 {
		return int(n)
	}
	return p.t.payloadRoom()
}

// payloadRoom is the server's max_payload without the room for the form; 0 while it is unknown.
func (t *Transport) payloadRoom() int {
	n := int(t.nc.MaxPayload())
	if n <= 0 {
		return 0
	}
	return max(1, n-formRoom)
}

// Publish stores messages in the streams that hold their subjects.
func (p *publisher) Publish(ctx context.Context, ms ...*transport.Message) error {
	msgs := make([]*nats.Msg, len(ms))
	limit := p.MaxBytes()
	for i, m := range ms {
		if size := m.Size(); limit > 0 && size > limit {
			return fmt.Errorf("publish to %q: %d bytes, and %d are taken: %w", m.Subject, size, limit, transport.ErrTooLarge)
		}
		msgs[i] = toNATS(m)
	}
	return p.publish(ctx, msgs)
}

// publish is Publish for what has NATS' form already.
func (p *publisher) publish(ctx context.Context, msgs []*nats.Msg) error {
	for _, m := range msgs {
		if err := p.t.check(m); err != nil {
			return err
		}
	}
	for len(msgs) > 0 {
		n := min(len(msgs), backlog/4) // a call larger than the backlog would wait for itself
		if err := p.send(ctx, msgs[:n], false); err != nil {
			return err
		}
		msgs = msgs[n:]
	}
	return nil
}

// check says what is wrong with a message before the server is asked.
func (t *Transport) check(m *nats.Msg) error {
	if err := transport.ValidSubject(m.Subject); err != nil {
		return fmt.Errorf("publish: %w: %w", err, transport.ErrRejected)
	}
	if name, bad := badHeader(m.Header); bad {
		return fmt.Errorf("publish to %q: header name %q cannot be written: %w", m.Subject, name, transport.ErrRejected)
	}
	if limit, size := t.nc.MaxPayload(), wireSize(m); limit > 0 && int64(size) > limit {
		return fmt.Errorf("publish to %q: %d bytes are more than the server's max_payload of %d: %w", m.Subject, size, limit,
			transport.ErrTooLarge)
	}
	return nil
}

// send writes msgs and waits for all their acknowledgements; again says that they have been sent before.
func (p *publisher) send(ctx context.Context, msgs []*nats.Msg, again bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("publish to %q: %w", msgs[0].Subject, err)
	}
	start := time.Now()
	over := p.wait(start)
	if err := p.t.health(); err != nil {
		return fmt.Errorf("publish to %q: %w", msgs[0].Subject, err)
	}
	if err := p.t.awaitConnection(ctx, over); err != nil {
		return fmt.Errorf("publish to %q: %w", msgs[0].Subject, err)
	}
	taken := 0
	defer func() {
		for range taken {
			<-p.slots
		}
	}()
	for range msgs {
		select { // with one case it takes a tenth of the time
		case p.slots <- struct{}{}:
			taken++
			continue
		default:
		}
		select {
		case p.slots <- struct{}{}:
			taken++
		case <-ctx.Done():
			return fmt.Errorf("publish to %q: waiting for %d others: %w", msgs[0].Subject, backlog, ctx.Err())
		case <-over:
			return fmt.Errorf("publish to %q: waiting for %d others: %w", msgs[0].Subject, backlog, context.DeadlineExceeded)
		}
	}
	b := &batch{left: len(msgs), done: make(chan struct{})}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return fmt.Errorf("publish to %q: %w", msgs[0].Subject, transport.ErrClosed)
	}
	first := p.number
	calls := make([]call, len(msgs))
	for i, m := range msgs {
		calls[i] = call{b: b, subject: m.Subject}
		p.calls[first+uint64(i)] = &calls[i]
	}
	p.number += uint64(len(msgs))
	p.mu.Unlock()
	defer p.drop(first, len(msgs))

	for i, m := range msgs {
		// The caller's message may be sent again by the caller: its reply must not stay ours.
		out := nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data, Reply: p.prefix + strconv.FormatUint(first+uint64(i), 36)}
		if err := p.t.nc.PublishMsg(&out); err != nil {
			return fmt.Errorf("publish to %q: %w", m.Subject, classify(err))
		}
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return p.silent(start, msgs[0].Subject, ctx.Err())
	case <-over:
		return p.silent(start, msgs[0].Subject, context.DeadlineExceeded)
	}
	p.mu.Lock()
	err, failed := b.err, b.failed
	p.mu.Unlock()
	if !errors.Is(err, nats.ErrNoResponders) {
		return err
	}
	if err := p.unheld(ctx, msgs); err != nil {
		return err
	}
	if failed < len(msgs) || again {
		return err // transient: some were stored, and whether they may be sent twice is for the caller to say
	}
	return p.send(ctx, msgs, true)
}

// silent says why no acknowledgement came, as far as that is known.
func (p *publisher) silent(start time.Time, subject string, err error) error {
	if denied := p.t.denials.explain(start, subject); denied != nil {
		return fmt.Errorf("publish to %q: %w", subject, denied)
	}
	if known := p.t.health(); known != nil {
		err = known
	}
	return fmt.Errorf("publish to %q: no acknowledgement: %w", subject, err)
}

// drop forgets the calls of a batch that nobody waits for any more.
func (p *publisher) drop(first uint64, n int) {
	p.mu.Lock()
	for i := range uint64(n) {
		delete(p.calls, first+i)
	}
	p.mu.Unlock()
}

// unheld finds out why nothing answered: a subject without a stream, or a server that is not ready. A stream that we have made,
// or might have, is made again.
func (p *publisher) unheld(ctx context.Context, msgs []*nats.Msg) error {
	for i, m := range msgs {
		if i > 0 && m.Subject == msgs[i-1].Subject {
			continue
		}
		err := p.t.api(ctx, fmt.Sprintf("publish to %q", m.Subject), func(ctx context.Context) error {
			_, err := p.t.streamFor(ctx, m.Subject, p.t.wanted(m.Subject))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// answered takes an acknowledgement.
func (p *publisher) answered(m *nats.Msg) {
	n, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, p.prefix), 36, 64)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.calls[n]
	if c == nil {
		return
	}
	delete(p.calls, n)
	c.end(ackError(m, c.subject))
}

// end counts a call as over.
func (c *call) end(err error) {
	if err != nil {
		c.b.failed++
		if c.b.err == nil {
			c.b.err = err
		}
	}
	if c.b.left--; c.b.left == 0 {
		close(c.b.done)
	}
}

// ackError says what an acknowledgement means. A duplicate was stored before: that is what was wanted.
func ackError(m *nats.Msg, subject string) error {
	if m.Header.Get("Status") == "503" {
		return fmt.Errorf("publish to %q: %w", subject, nats.ErrNoResponders)
	}
	if !bytes.Contains(m.Data, []byte(`"error"`)) {
		if bytes.Contains(m.Data, []byte(`"stream"`)) {
			return nil
		}
		return fmt.Errorf("publish to %q: what answered is not JetStream", subject)
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &ack); err != nil {
		return fmt.Errorf("publish to %q: acknowledgement: %w", subject, err)
	}
	if ack.Error == nil {
		return nil
	}
	return kindOf(fmt.Errorf("publish to %q: %w", subject, ack.Error), ack.Error)
}

// fail ends all calls, as a connection that broke has lost their acknowledgements.
func (p *publisher) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, c := range p.calls {
		delete(p.calls, n)
		c.end(fmt.Errorf("publish to %q: %w", c.subject, err))
	}
}

// deny ends the calls to a subject that the server has refused.
func (p *publisher) deny(subject string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, c := range p.calls {
		if c.subject == subject {
			delete(p.calls, n)
			c.end(deniedError(subject))
		}
	}
}

func deniedError(subject string) error {
	return fmt.Errorf("publish to %q: the NATS user may not; grant it publish permission: %w", subject, transport.ErrRejected)
}

func ofSubject(msgs []*nats.Msg, subject string) bool {
	for _, m := range msgs {
		if m.Subject == subject {
			return true
		}
	}
	return false
}

func (p *publisher) close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.fail(transport.ErrClosed)
	if err := p.sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return fmt.Errorf("unsubscribe from acknowledgements: %w", err)
	}
	return nil
}

// awaitConnection waits until the connection is up, and says why it is not when ctx or the time is over. Refused credentials are no
// reason to give up: they may be mended on the server. See Prepare.
func (t *Transport) awaitConnection(ctx context.Context, over <-chan struct{}) error {
	for !t.nc.IsConnected() {
		err := t.disconnected()
		if t.nc.IsClosed() || errors.Is(err, errRefused) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		case <-over:
			return fmt.Errorf("%w: %w", err, context.DeadlineExceeded)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

var errRefused = errors.New("the server refuses the credentials")

// disconnected says why there is no connection.
func (t *Transport) disconnected() error {
	last := t.nc.LastError()
	switch {
	case t.nc.IsClosed():
		return fmt.Errorf("connection to NATS: %w", transport.ErrClosed)
	case errors.Is(last, nats.ErrAuthorization), errors.Is(last, nats.ErrAuthExpired), errors.Is(last, nats.ErrAuthRevoked):
		return fmt.Errorf("connection to NATS: %w: %w", errRefused, last)
	case last == nil:
		last = nats.ErrDisconnected
	}
	return fmt.Errorf("connection to NATS: %w", last)
}
