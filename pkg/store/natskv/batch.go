package natskv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// groupMessages and groupBytes bound a batch; the server takes 1000 messages.
	groupMessages = 900
	groupBytes    = 4 << 20
	// groupQueue is how many transactions may wait for the next batch before their callers do.
	groupQueue = 1024
	// busyPause is the longest pause when other processes have as many batches open as the server takes.
	busyPause = 20 * time.Millisecond
)

// errOvertaken stands for the server's refusal where it is known in advance.
var errOvertaken = &apiError{Code: 400, ErrCode: codeWrongLast, Description: "overtaken by another transaction"}

// member is a transaction that waits for its batch.
type member struct {
	ctx     context.Context
	msgs    []*nats.Msg
	size    int
	written []string // subjects that it writes
	expects []string // subjects that its conditions are about
	done    chan struct{}
	rev     int64
	err     error
}

// group makes atomic batches of the transactions of several messages. A server with files flushes each batch to disk before it
// commits it, which takes longer than all the rest; so all that wait share a batch, as long as they have nothing to do with each
// other. None waits for others to come.
type group struct {
	store *Store
	queue chan *member
	no    uint64
	// patience is for how long a batch is sent again that the server does not take.
	patience time.Duration
}

// do has msgs written at once and returns the sequence of the last one.
func (g *group) do(ctx context.Context, msgs []*nats.Msg) (int64, error) {
	m := &member{ctx: ctx, msgs: msgs, done: make(chan struct{})}
	for _, msg := range msgs {
		msg.Data = bytes.Clone(msg.Data) // the caller may be gone, and its buffer be another's, before the batch is sent
		m.size += len(msg.Data) + 200
		m.written = append(m.written, msg.Subject)
		if msg.Header.Get(headerExpect) != "" {
			subject := msg.Header.Get(headerExpectOther)
			if subject == "" {
				subject = msg.Subject
			}
			m.expects = append(m.expects, subject)
		}
	}
	select {
	case g.queue <- m:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-g.store.ctx.Done():
		return 0, store.ErrClosed
	}
	select {
	case <-m.done:
		return m.rev, m.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-g.store.ctx.Done():
		return 0, store.ErrClosed
	}
}

// run sends batches until the store is closed.
func (g *group) run() {
	var waiting []*member
	for {
		if len(waiting) == 0 {
			select {
			case m := <-g.queue:
				waiting = append(waiting, m)
			case <-g.store.ctx.Done():
				return
			}
		}
		for more := true; more && len(waiting) < groupQueue; {
			select {
			case m := <-g.queue:
				waiting = append(waiting, m)
			default:
				more = false
			}
		}
		batch, rest := g.choose(waiting)
		g.send(batch)
		waiting = settle(batch, rest)
		if g.store.ctx.Err() != nil {
			return
		}
	}
}

// choose takes from waiting, in order, what may go together: nobody writes what another writes or has a condition on.
func (g *group) choose(waiting []*member) (batch, rest []*member) {
	written, expected := make(map[string]bool), make(map[string]bool)
	messages, size := 0, 0
	for _, m := range waiting {
		if m.ctx.Err() != nil {
			continue // its caller has gone
		}
		fits := messages+len(m.msgs) <= groupMessages && (size+m.size <= groupBytes || len(batch) == 0)
		for _, s := range m.written {
			fits = fits && !written[s] && !expected[s]
		}
		for _, s := range m.expects {
			fits = fits && !written[s]
		}
		if !fits {
			rest = append(rest, m)
			continue
		}
		for _, s := range m.written {
			written[s] = !g.store.isGuard(s)
		}
		for _, s := range m.expects {
			expected[s] = true
		}
		batch, messages, size = append(batch, m), messages+len(m.msgs), size+m.size
	}
	return batch, rest
}

// settle answers those in rest whose conditions were about what batch has just written: they cannot hold any more.
func settle(batch, rest []*member) []*member {
	written := make(map[string]bool)
	for _, m := range batch {
		if m.err == nil {
			for _, s := range m.written {
				written[s] = true
			}
		}
	}
	var left []*member
	for _, m := range rest {
		overtaken := false
		for _, s := range m.expects {
			overtaken = overtaken || written[s]
		}
		if !overtaken {
			left = append(left, m)
			continue
		}
		m.err = errOvertaken
		close(m.done)
	}
	return left
}

// send writes a batch and answers its members. If one of several is refused, all are: then they are sent in halves, until each refusal
// is the fault of the one that gets it.
func (g *group) send(batch []*member) {
	if len(batch) == 0 {
		return
	}
	last, err := g.write(batch)
	if isConflict(err) && len(batch) > 1 {
		g.send(batch[:len(batch)/2])
		g.send(batch[len(batch)/2:])
		return
	}
	for i := len(batch) - 1; i >= 0; i-- {
		m := batch[i]
		m.rev, m.err = last, err
		last -= int64(len(m.msgs))
		close(m.done)
	}
}

// write publishes one batch and returns the sequence of its last message.
func (g *group) write(batch []*member) (int64, error) {
	var msgs []*nats.Msg
	for _, m := range batch {
		msgs = append(msgs, m.msgs...)
	}
	for began := time.Now(); ; {
		g.no++
		id := g.store.id + "-" + strconv.FormatUint(g.no, 36)
		for i, msg := range msgs {
			msg.Header.Set(headerBatch, id)
			msg.Header.Set(headerBatchSeq, strconv.Itoa(i+1))
			msg.Header.Del(headerBatchCommit)
			msg.Reply = ""
		}
		msgs[len(msgs)-1].Header.Set(headerBatchCommit, "1")
		last, err := g.store.publish(g.store.ctx, msgs...)
		var api *apiError
		if err == nil || !errors.As(err, &api) || !api.busy() {
			return last, err
		}
		// Nothing of this batch was written. A server whose disk is full may say so without end.
		if time.Since(began) > g.patience {
			return 0, fmt.Errorf("the server has taken no batch for %s: is its disk full? %w", g.patience, err)
		}
		if err := pause(g.store.ctx, rand.N(busyPause)); err != nil {
			return 0, err
		}
	}
}
