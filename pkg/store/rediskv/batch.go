package rediskv

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// flights is how many pipelines may be on their way at once; a slow one does not hold up the next.
	flights = 4
	// batchLen and batchBytes bound a pipeline.
	batchLen   = 128
	batchBytes = 1 << 20
)

// call is one command that waits for its reply.
type call struct {
	ctx    context.Context
	script *script // nil for a plain command
	args   []any   // of the command; with a script, what follows the digest
	size   int
	cmd    *redis.Cmd
	done   chan struct{} // closed when cmd has its reply
}

// batcher lets calls that are made at the same time share pipelines. A flight takes whatever waits and never waits for more, so a
// lone call pays nothing for it.
type batcher struct {
	client redis.UniversalClient
	queue  chan *call
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

func newBatcher(client redis.UniversalClient) *batcher {
	b := &batcher{client: client, queue: make(chan *call, flights*batchLen)}
	b.ctx, b.stop = context.WithCancel(context.Background())
	for range flights {
		b.wg.Go(b.fly)
	}
	return b
}

// close ends the flights; calls that wait return store.ErrClosed.
func (b *batcher) close() {
	b.stop()
	b.wg.Wait()
}

// do runs one command and returns its reply.
func (b *batcher) do(ctx context.Context, s *script, size int, args ...any) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &call{ctx: ctx, script: s, args: args, size: size, done: make(chan struct{})}
	select {
	case b.queue <- c:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-b.ctx.Done():
		return nil, store.ErrClosed
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-b.ctx.Done():
		return nil, store.ErrClosed
	}
	if err := c.cmd.Err(); err != nil && !errors.Is(err, redis.Nil) {
		return nil, explain(err)
	}
	return c.cmd.Val(), nil
}

func (b *batcher) fly() {
	var batch []*call
	for {
		batch = batch[:0]
		select {
		case c := <-b.queue:
			batch = b.take(append(batch, c))
		case <-b.ctx.Done():
			return
		}
		b.send(batch)
		clear(batch)
	}
}

// take adds what waits, within bounds.
func (b *batcher) take(batch []*call) []*call {
	size := batch[0].size
	for len(batch) < batchLen && size < batchBytes {
		select {
		case c := <-b.queue:
			batch = append(batch, c)
			size += c.size
		default:
			return batch
		}
	}
	return batch
}

// send runs a batch and answers each call by itself. Scripts that the server does not know are sent once more, in full.
func (b *batcher) send(batch []*call) {
	pipe := b.client.Pipeline()
	for _, c := range batch {
		if c.ctx.Err() != nil {
			continue // its caller has gone before it was sent
		}
		c.cmd = c.command(b.ctx, "evalsha")
		_ = pipe.Process(b.ctx, c.cmd) // queues; the error is in cmd
	}
	_, _ = pipe.Exec(b.ctx) // each command has its own error
	again := b.client.Pipeline()
	for _, c := range batch {
		if c.cmd != nil && c.script != nil && redis.HasErrorPrefix(c.cmd.Err(), "NOSCRIPT") {
			c.cmd = c.command(b.ctx, "eval")
			_ = again.Process(b.ctx, c.cmd)
		}
	}
	if again.Len() > 0 {
		_, _ = again.Exec(b.ctx)
	}
	for _, c := range batch {
		close(c.done)
	}
}

func (c *call) command(ctx context.Context, eval string) *redis.Cmd {
	if c.script == nil {
		return redis.NewCmd(ctx, c.args...)
	}
	name := c.script.sha
	if eval == "eval" {
		name = c.script.source
	}
	return redis.NewCmd(ctx, append([]any{eval, name}, c.args...)...)
}

// failure says what an error of Redis means and what to do about it.
type failure struct {
	mark string // as Redis says it, anywhere in the message
	is   error  // nil: transient
	hint string
}

// failures are those worth a word. The marks are searched for, because a script's error is wrapped in others.
func failures() []failure {
	return []failure{
		{"OOM command not allowed", store.ErrFull, "redis is at its maxmemory: raise it, or shorten what is kept"},
		{"MISCONF", store.ErrFull, "redis refuses writes because it cannot save to disk: look at its log"},
		{"NOPERM", nil, permissions},
		{"can't run this command", nil, permissions},
		{"can't access at least one of the keys", nil, permissions},
		{"READONLY", nil, "this redis is a replica: give the address of the primary"},
	}
}

// permissions is what the user must be allowed.
const permissions = "the redis user needs the rights ~<prefix>* &<prefix>* +@string +@hash +@sortedset +@keyspace +@scripting +@pubsub +@connection +info +time"

func explain(err error) error {
	text := err.Error()
	for _, f := range failures() {
		if !strings.Contains(text, f.mark) {
			continue
		}
		return &redisError{err: err, is: f.is, hint: f.hint}
	}
	return err
}

// redisError is an error of Redis with its meaning and its remedy.
type redisError struct {
	err  error
	is   error
	hint string
}

func (e *redisError) Error() string { return e.err.Error() + ": " + e.hint }

func (e *redisError) Unwrap() []error {
	if e.is == nil {
		return []error{e.err}
	}
	return []error{e.err, e.is}
}
