package redisstream

import (
	"context"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// tailCount is how many entries a tail reads at once.
const tailCount = 64

// tail reads a stream without a group.
type tail struct {
	t      *Transport
	stream string
	stop   chan struct{}
	once   sync.Once

	mu      sync.Mutex // held by Next
	pending chan tailed
	spare   []*transport.Message

	// The fields below belong to the read that is under way.
	last  string
	buf   buffer
	count int
}

type tailed struct {
	ms  []*transport.Message
	err error
}

// Tail observes a stream, which need not exist yet. What it has not read is lost to it when the stream is trimmed, or when its
// jobs are done.
func (t *Transport) Tail(ctx context.Context, subject string, fromStart bool) (transport.Tail, error) {
	if err := checkName(subject); err != nil {
		return nil, fmt.Errorf("observe: %w", err)
	}
	if t.isClosed() {
		return nil, fmt.Errorf("observe stream %q: %w", subject, transport.ErrClosed)
	}
	tl := &tail{t: t, stream: subject, stop: make(chan struct{}), last: "0-0", count: 1}
	// The server's own sign for now would be resolved anew by each read, and lose what is written between two of them.
	newest, err := t.client.XRevRangeN(ctx, subject, "+", "-", 1).Result()
	if err != nil {
		return nil, failStart("observe stream", subject, err)
	}
	if !fromStart && len(newest) > 0 {
		tl.last = newest[0].ID
	}
	t.reading(1)
	return tl, nil
}

// Next returns the next message. After an error it may be called again and goes on where it was.
func (tl *tail) Next(ctx context.Context) (*transport.Message, error) {
	tl.mu.Lock()
	defer tl.mu.Unlock()
	for {
		select {
		case <-tl.stop:
			return nil, fmt.Errorf("observe stream %q: %w", tl.stream, transport.ErrClosed)
		default:
		}
		if len(tl.spare) > 0 {
			m := tl.spare[0]
			tl.spare = tl.spare[1:]
			return m, nil
		}
		if tl.pending == nil {
			ch := make(chan tailed, 1)
			tl.pending = ch
			go func() { ch <- tl.read() }()
		}
		select {
		case r := <-tl.pending:
			tl.pending = nil
			if r.err != nil {
				return nil, fail("observe stream", tl.stream, r.err)
			}
			tl.spare = r.ms
		case <-tl.stop:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (tl *tail) read() tailed {
	ctx := context.Background() // a read cannot be cancelled; it ends by itself
	tl.buf.reset()
	if tl.count > 1 {
		tl.buf.limit = readLimit
	}
	cmd := redis.NewRawWriteToCmd(ctx, &tl.buf, "xread", "count", tl.count,
		"block", max(tl.t.cfg.Block.Milliseconds(), 1), "streams", tl.stream, tl.last)
	if err := tl.t.client.Process(ctx, cmd); err != nil {
		tl.count = max(1, tl.count/8) // the reply was too large or slow perhaps
		return tailed{err: err}
	}
	tl.count = min(2*tl.count, tailCount)
	es, err := readReply(tl.buf.b, nil)
	if redirected(err) {
		return tailed{err: tl.t.client.XLen(ctx, tl.stream).Err()} // go-redis learns the new owner
	}
	if err != nil {
		return tailed{err: err}
	}
	ms := make([]*transport.Message, len(es))
	for i := range es {
		ms[i] = new(transport.Message)
		decode(ms[i], tl.stream, es[i].fields)
		tl.last = es[i].id
	}
	return tailed{ms: ms}
}

// Close ends the tail and waits for the read that is under way.
func (tl *tail) Close() error {
	tl.once.Do(func() {
		close(tl.stop)
		tl.mu.Lock()
		defer tl.mu.Unlock()
		if tl.pending != nil {
			<-tl.pending
			tl.pending = nil
		}
		tl.spare = nil
		tl.t.reading(-1)
	})
	return nil
}
