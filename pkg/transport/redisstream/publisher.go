package redisstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	// publishBatch and publishBytes bound one pipeline; a call that is larger goes alone.
	publishBatch = 512
	publishBytes = 8 << 20
	// publishLanes is how many pipelines are under way at once: one is filled while the other travels.
	publishLanes = 2
	// trimCheck is how long it is believed that nobody consumes a stream as jobs.
	trimCheck = time.Minute
)

// publisher writes messages. Calls that wait while a pipeline is under way share the next one. go-redis repeats a pipeline
// whose connection breaks, so a message may be written twice; its Nats-Msg-Id or Wasm-Result-Of tells.
type publisher struct {
	t *Transport

	mu     sync.Mutex
	queue  []*publishCall
	lanes  int
	closed bool
	idle   chan struct{} // closed when the last lane ends after close
	trims  map[string]trim
}

// publishCall is one call.
type publishCall struct {
	ctx   context.Context
	ms    []*transport.Message
	cmds  [][]any
	bytes int
	done  chan error
}

// trim says whether a stream may be trimmed, and until when to believe it.
type trim struct {
	allowed bool
	until   time.Time
}

func newPublisher(t *Transport) *publisher {
	return &publisher{t: t, idle: make(chan struct{}), trims: make(map[string]trim)}
}

// MaxBytes is what the server takes, at most 64 MiB.
func (p *publisher) MaxBytes() int { return int(p.t.maxBytes.Load()) }

func (p *publisher) Publish(ctx context.Context, ms ...*transport.Message) error {
	if len(ms) == 0 {
		return nil
	}
	call := &publishCall{ctx: ctx, ms: ms, cmds: make([][]any, len(ms)), done: make(chan error, 1)}
	for i, m := range ms {
		if err := checkName(m.Subject); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		size := m.Size()
		if size > p.MaxBytes() {
			return fmt.Errorf("publish to stream %q: %w: %d bytes, of which %d are taken",
				m.Subject, transport.ErrTooLarge, size, p.MaxBytes())
		}
		call.bytes += size
		args := append(make([]any, 0, 12+2*len(m.Header)), "xadd", m.Subject)
		call.cmds[i] = p.entry(ctx, args, m)
	}
	if err := p.enqueue(call); err != nil {
		return err
	}
	select {
	case err := <-call.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("publish to stream %q: %w", ms[0].Subject, ctx.Err())
	}
}

// entry appends what follows the stream's name in the XADD that writes m.
func (p *publisher) entry(ctx context.Context, args []any, m *transport.Message) []any {
	if !p.t.cfg.CreateStreams {
		args = append(args, "nomkstream")
	}
	if p.mayTrim(ctx, m.Subject) {
		args = append(args, "maxlen", "~", p.t.cfg.MaxLen)
	}
	return encode(append(args, "*"), m)
}

func (p *publisher) enqueue(call *publishCall) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("publish to stream %q: %w", call.ms[0].Subject, transport.ErrClosed)
	}
	p.queue = append(p.queue, call)
	if p.lanes < publishLanes {
		p.lanes++
		go p.lane()
	}
	return nil
}

// lane writes pipelines while anything waits.
func (p *publisher) lane() {
	for {
		p.mu.Lock()
		if len(p.queue) == 0 {
			p.lanes--
			if p.closed && p.lanes == 0 {
				close(p.idle)
			}
			p.mu.Unlock()
			return
		}
		n, cmds, bytes := 0, 0, 0
		for n < len(p.queue) && (n == 0 || cmds+len(p.queue[n].cmds) <= publishBatch && bytes+p.queue[n].bytes <= publishBytes) {
			cmds, bytes = cmds+len(p.queue[n].cmds), bytes+p.queue[n].bytes
			n++
		}
		calls := p.queue[:n:n]
		if p.queue = p.queue[n:]; len(p.queue) == 0 {
			p.queue = nil
		}
		p.mu.Unlock()
		p.write(calls)
	}
}

// write sends one pipeline for several calls; each gets its own error. It goes by no caller's context, as one that leaves must
// not take the others with it: the client's timeouts bound it.
func (p *publisher) write(calls []*publishCall) {
	ctx := context.Background()
	pipe := p.t.client.Pipeline()
	sent := make([][]*redis.Cmd, len(calls))
	for i, c := range calls {
		if c.ctx.Err() != nil { // its caller has left
			continue
		}
		sent[i] = make([]*redis.Cmd, len(c.cmds))
		for j, args := range c.cmds {
			sent[i][j] = pipe.Do(ctx, args...)
		}
	}
	if pipe.Len() > 0 {
		if _, err := pipe.Exec(ctx); err != nil && !replied(err) && !isNil(err) {
			p.t.log.Debug("publishing failed", "messages", pipe.Len(), "err", err)
		}
	}
	for i, c := range calls {
		c.done <- p.outcome(c, sent[i])
	}
}

// outcome joins the errors of one call's messages.
func (p *publisher) outcome(c *publishCall, sent []*redis.Cmd) error {
	if sent == nil {
		return c.ctx.Err()
	}
	var errs []error
	for j, cmd := range sent {
		subject := c.ms[j].Subject
		switch err := cmd.Err(); {
		case err == nil:
		case isNil(err):
			errs = append(errs, fmt.Errorf("publish: %w", missing(subject)))
		default:
			errs = append(errs, fail("publish to stream", subject, err))
		}
	}
	return errors.Join(errs...)
}

// mayTrim says whether a stream holds results only. One that has our group is somebody's job stream, whoever reads it.
func (p *publisher) mayTrim(ctx context.Context, subject string) bool {
	if p.t.cfg.MaxLen == 0 || p.t.isJob(subject) {
		return false
	}
	now := time.Now()
	p.mu.Lock()
	known, ok := p.trims[subject]
	p.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.allowed
	}
	groups, err := p.t.client.XInfoGroups(ctx, subject).Result()
	if err != nil && !(replied(err) && !denied(err)) {
		return false // not known for now
	}
	known = trim{allowed: true, until: now.Add(trimCheck)}
	for _, g := range groups {
		if g.Name == p.t.cfg.Group {
			known.allowed = false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.trims) > 10_000 { // reply subjects come and go
		clear(p.trims)
	}
	p.trims[subject] = known
	return known.allowed
}

// close refuses further calls and waits for those that are under way.
func (p *publisher) close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		if p.lanes == 0 {
			close(p.idle)
		}
	}
	p.mu.Unlock()
	select {
	case <-p.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close redis publisher: messages are still being written: %w", ctx.Err())
	}
}
