package jetstream

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	pullExpires   = 30 * time.Second
	pullHeartbeat = 5 * time.Second
	// pullSilence is how long a request may go without message and heartbeat before it counts as lost.
	pullSilence = 2*pullHeartbeat + 2*time.Second
	// rebindPause keeps a consumer that is there but does not answer from being asked for in a tight loop.
	rebindPause = 250 * time.Millisecond
	// disconnectedPatience is how long fetch waits for a lost connection before it tells its caller.
	disconnectedPatience = 2 * time.Second
	// pullBytes is how much a pull may have on its way where nothing else is said.
	pullBytes = 64 << 20
	// pullRoom is what a message takes besides what max_payload bounds, its subjects, by the server's count at most.
	pullRoom = 8 << 10
	// plainLeast is how many messages a request should be able to ask for; see pull.ask.
	plainLeast = 64
)

// target is a consumer as bind found or made it.
type target struct {
	stream, consumer string
	created          int64     // when the stream was made
	born             time.Time // when the consumer was made
	last             uint64    // up to which sequence messages may have been handed out before
	out              int       // messages that are handed out and not settled
	ackWait          time.Duration
}

// arrived is a message as the server handed it out.
type arrived struct {
	msg  *nats.Msg
	meta meta
	to   *target
	at   time.Time
}

// pull reads one consumer by pull requests. The credit that the server holds, together with what has arrived and was not
// fetched yet, never exceeds the limit of the last fetch; and what is on its way never exceeds bytes, unless a message alone does.
//
// Requests belong to a generation: a consumer found or made, and an inbox of its own. Whatever casts doubt on the count of
// credit (another connection, a deleted consumer, silence) ends the generation, and its inbox with it, which the server takes
// as the end of its requests.
type pull struct {
	t    *Transport
	what string // in errors: what is fetched
	// bytes is how much may be on its way; set before the first fetch.
	bytes int64
	bind  func(ctx context.Context) (*target, error)
	wake  chan struct{}
	done  chan struct{}

	mu      sync.Mutex
	closed  bool
	stale   bool      // the generation is to be replaced
	notYet  time.Time // and not before
	gen     *generation
	ready   []arrived
	request []byte // scratch
}

// generation is a run of pull requests on one inbox.
type generation struct {
	to     *target
	sub    *nats.Subscription
	inbox  string
	ended  chan struct{} // closed when the subscription has handed over its last message
	credit int           // asked for and not arrived
	heard  time.Time

	bounded bool  // the request that is out, the only one then, has a max_bytes,
	left    int64 // of which so much is left,
	got     bool  // and it has brought something
	lone    bool  // the next request is for one message of any size
}

func newPull(t *Transport, what string, bind func(context.Context) (*target, error)) *pull {
	p := &pull{t: t, what: what, bytes: pullBytes, bind: bind, wake: make(chan struct{}, 1), done: make(chan struct{})}
	t.mu.Lock()
	t.pulls[p] = struct{}{}
	t.mu.Unlock()
	return p
}

// signal wakes fetch.
func (p *pull) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// connectionChanged ends the generation: what the server knew of it may be gone.
func (p *pull) connectionChanged() {
	p.mu.Lock()
	p.stale = true
	p.mu.Unlock()
	p.signal()
}

// doubt ends the generation after pause.
func (p *pull) doubt(pause time.Duration) {
	p.mu.Lock()
	p.doubtLocked(pause)
	p.mu.Unlock()
	p.signal()
}

func (p *pull) doubtLocked(pause time.Duration) {
	if !p.stale {
		p.stale, p.notYet = true, time.Now().Add(pause)
	}
}

// fetch waits for messages and hands at most limit of them to take, which must not call back. One goroutine calls it. What take
// was given before close returned, close does not return.
func (p *pull) fetch(ctx context.Context, limit int, take func([]arrived)) error {
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	lostAt := time.Time{}
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("fetch %s: %w", p.what, err)
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return fmt.Errorf("fetch %s: %w", p.what, transport.ErrClosed)
		}
		if n := min(limit, len(p.ready)); n > 0 {
			take(p.ready[:n])
			clear(p.ready[:n])
			if p.ready = p.ready[n:]; len(p.ready) == 0 {
				p.ready = nil
			}
			stale := p.stale
			p.mu.Unlock()
			if !stale {
				p.ask(limit - n) // the server goes on while the caller works
			}
			return nil
		}
		rebind, pause := p.gen == nil || p.stale, time.Until(p.notYet)
		if !rebind && p.gen.credit > 0 && time.Since(p.gen.heard) > pullSilence {
			p.doubtLocked(0)
			rebind, pause = true, 0
			p.t.log.Warn("no sign of the consumer: asking again", "what", p.what)
		}
		p.mu.Unlock()

		wait := pullHeartbeat
		switch {
		case !p.t.nc.IsConnected():
			if lostAt.IsZero() {
				lostAt = time.Now()
			}
			if wait = disconnectedPatience - time.Since(lostAt); wait <= 0 {
				return fmt.Errorf("fetch %s: %w", p.what, p.t.disconnected())
			}
		case rebind && pause > 0:
			wait = pause
		case rebind:
			if err := p.begin(ctx); err != nil {
				return err
			}
			continue
		default:
			p.ask(limit)
		}
		if timer == nil {
			timer = time.NewTimer(wait)
		} else {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
		case <-p.done:
		case <-p.wake:
		case <-timer.C:
		}
	}
}

// begin starts a new generation.
func (p *pull) begin(ctx context.Context) error {
	p.mu.Lock()
	p.stale = false // what happens from here on makes it stale again
	p.notYet = time.Time{}
	p.mu.Unlock()
	to, err := p.bind(ctx)
	if err != nil {
		p.doubt(0)
		return err
	}
	g := &generation{
		to: to, inbox: p.t.nc.NewInbox(), ended: make(chan struct{}), heard: time.Now(),
	}
	sub, err := p.t.nc.Subscribe(g.inbox, func(m *nats.Msg) { p.take(g, m) })
	if err != nil {
		p.doubt(0)
		return fmt.Errorf("fetch %s: subscribe: %w", p.what, err)
	}
	sub.SetClosedHandler(func(string) { close(g.ended) })
	g.sub = sub
	// The credit bounds what can be pending.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		p.doubt(0)
		return fmt.Errorf("fetch %s: subscribe: %w", p.what, err)
	}
	p.mu.Lock()
	old, closed := p.gen, p.closed
	p.gen = g
	p.mu.Unlock()
	if old != nil {
		p.end(old)
	}
	if closed { // close has seen the old one only
		p.end(g)
	}
	return nil
}

// end unsubscribes; what is on its way still arrives.
func (p *pull) end(g *generation) {
	if err := g.sub.Drain(); err != nil {
		_ = g.sub.Unsubscribe() // the connection is closed: nothing is on its way
	}
}

// ask requests as many messages as are missing to limit, unless most of them are asked for already.
//
// Requests that cannot bring more than bytes, be each message as large as the server takes them, are plain ones. Where these would be
// too small, one request at a time has a max_bytes: the server ends a request whose max_bytes is used up exactly without telling, and
// of several it does not tell which one a message came by.
func (p *pull) ask(limit int) {
	p.mu.Lock()
	g := p.gen
	if g == nil || p.stale || p.closed || g.bounded {
		p.mu.Unlock()
		return
	}
	n := limit - g.credit - len(p.ready)
	largest := max(p.t.nc.MaxPayload(), 0) + pullRoom
	if most := int(max(p.bytes/largest, 1)); g.lone {
		n = min(n, 1)
	} else if n+g.credit > most {
		if most >= plainLeast {
			limit, n = most, most-g.credit
		} else if g.credit == 0 {
			g.bounded, g.left, g.got = true, max(p.bytes, largest), false
		} else {
			n = 0
		}
	}
	if n <= 0 || g.credit > 0 && n < (limit+3)/4 {
		p.mu.Unlock()
		return
	}
	g.lone = false
	g.credit += n
	g.heard = time.Now()
	b := append(p.request[:0], `{"batch":`...)
	b = strconv.AppendInt(b, int64(n), 10)
	if g.bounded {
		b = append(b, `,"max_bytes":`...)
		b = strconv.AppendInt(b, g.left, 10)
	}
	b = append(b, `,"expires":`...)
	b = strconv.AppendInt(b, int64(pullExpires), 10)
	b = append(b, `,"idle_heartbeat":`...)
	b = strconv.AppendInt(b, int64(pullHeartbeat), 10)
	b = append(b, '}')
	p.request = b
	subject := "$JS.API.CONSUMER.MSG.NEXT." + g.to.stream + "." + g.to.consumer
	p.mu.Unlock()
	if err := p.t.nc.PublishRequest(subject, g.inbox, b); err != nil {
		p.doubt(rebindPause)
	}
}

// take is called for each message of a generation.
func (p *pull) take(g *generation, m *nats.Msg) {
	now := time.Now()
	if x, ok := parseMeta(m.Reply); ok {
		p.mu.Lock()
		g.heard = now
		g.arrives(m)
		p.ready = append(p.ready, arrived{msg: m, meta: x, to: g.to, at: now})
		p.mu.Unlock()
		p.signal()
		return
	}
	status := m.Header.Get("Status")
	missing, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
	p.mu.Lock()
	defer p.mu.Unlock()
	g.heard = now
	switch {
	case status == "100":
		return
	case err == nil: // a request has ended with so many messages missing
		g.credit = max(0, g.credit-missing)
		if g.bounded {
			// A message that alone is more than max_bytes would end each request like it.
			g.bounded, g.credit, g.lone = false, 0, !g.got && status == "409"
		}
	default:
		p.t.log.Debug("pull request refused", "what", p.what, "status", status, "description", m.Header.Get("Description"))
		if g == p.gen {
			// 409 Consumer Deleted comes once and means what it says; 503 may come again and again.
			pause := rebindPause
			if status == "409" {
				pause = 0
			}
			p.doubtLocked(pause)
		}
	}
	p.signal()
}

// arrives takes a message off the credit. The pull's mutex is held.
func (g *generation) arrives(m *nats.Msg) {
	if g.credit > 0 {
		g.credit--
	}
	if g.bounded {
		g.got, g.left = true, g.left-int64(m.Size())
		if g.left <= 0 {
			g.credit = 0
		}
		g.bounded = g.credit > 0
	}
}

// close stops asking and returns what has arrived and was never fetched.
func (p *pull) close(ctx context.Context) []arrived {
	p.t.mu.Lock()
	delete(p.t.pulls, p)
	p.t.mu.Unlock()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	g := p.gen
	p.mu.Unlock()
	close(p.done)
	if g != nil {
		p.end(g)
		select {
		case <-g.ended:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.ready
	p.ready = nil
	return left
}
