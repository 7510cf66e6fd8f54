package rediskv

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// flights is how many pipelines may be on their way at once: one is read by the server while the next is gathered, and a slow one
	// does not hold it up. More of them carry less each, which costs more here and there.
	flights = 2
	// batchLen and batchBytes bound a pipeline.
	batchLen   = 256
	batchBytes = 1 << 20
	// swapLen bounds the transactions of one script, which holds up the server: at some 5 µs each for well under a millisecond.
	swapLen = 64
	// apartFor is how long no ending is taken along after the user was found not to be allowed all of its keys.
	apartFor = time.Minute
)

// call is one command that waits for its reply.
type call struct {
	ctx    context.Context
	script *script // nil for a plain command
	args   []any   // of the command; with a script, what follows the digest
	swap   swap    // instead of both, where it has names
	size   int
	reply  any // of a swap it is in there
	err    error
	done   chan struct{} // gets one when there is a reply or an error; nobody touches the call after that but its caller
}

// sent is one command of a pipeline, and whom its reply is for: several calls where it is a script of swaps.
type sent struct {
	script *script
	args   []any // with a script, the first two are left free for it
	calls  []*call
	cmd    *redis.Cmd
}

// batcher lets calls that are made at the same time share pipelines. A flight takes whatever waits and never waits for more, so a
// lone call pays nothing for it.
type batcher struct {
	client  redis.UniversalClient
	swapper *script
	queue   chan *call
	calls   sync.Pool    // of *call
	apart   atomic.Int64 // until when no ending is taken along, in Unix nanoseconds
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

func newBatcher(client redis.UniversalClient, swapper *script) *batcher {
	b := &batcher{client: client, swapper: swapper, queue: make(chan *call, flights*batchLen)}
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

// get returns an empty call. It may be put back when it was answered, and not otherwise.
func (b *batcher) get() *call {
	if c, ok := b.calls.Get().(*call); ok {
		return c
	}
	return &call{done: make(chan struct{}, 1)}
}

func (b *batcher) put(c *call) {
	*c = call{done: c.done}
	b.calls.Put(c)
}

// do runs one command and returns its reply.
func (b *batcher) do(ctx context.Context, s *script, size int, args ...any) (any, error) {
	c := b.get()
	c.script, c.args, c.size = s, args, size
	if err := b.run(ctx, c); err != nil {
		return nil, err
	}
	reply := c.reply
	b.put(c)
	return reply, nil
}

// run has a call sent and waits for its reply.
func (b *batcher) run(ctx context.Context, c *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.ctx = ctx
	select {
	case b.queue <- c:
	default:
		select {
		case b.queue <- c:
		case <-ctx.Done():
			return ctx.Err()
		case <-b.ctx.Done():
			return store.ErrClosed
		}
	}
	if b.ctx.Err() != nil { // perhaps after the last flight has looked
		return store.ErrClosed
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	switch {
	case c.err == nil, errors.Is(c.err, redis.Nil):
		return nil
	case b.ctx.Err() != nil:
		return store.ErrClosed
	}
	return explain(c.err)
}

func (b *batcher) fly() {
	var batch []*call
	for {
		batch = batch[:0]
		select {
		case c := <-b.queue:
			batch = b.take(append(batch, c))
		case <-b.ctx.Done():
			b.refuse()
			return
		}
		b.send(batch)
		clear(batch)
	}
}

// refuse answers what waits when the store is closed.
func (b *batcher) refuse() {
	for {
		select {
		case c := <-b.queue:
			c.err = store.ErrClosed
			c.done <- struct{}{}
		default:
			return
		}
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

// send runs a batch and answers each call by itself. Scripts that the server does not know are sent once more, in full; those that
// it does not allow for the sake of an ending, without.
func (b *batcher) send(batch []*call) {
	all := b.commands(batch)
	pipe := b.client.Pipeline()
	for i := range all {
		all[i].cmd = all[i].command(b.ctx, "evalsha")
		_ = pipe.Process(b.ctx, all[i].cmd) // queues; the error is in cmd
	}
	_, _ = pipe.Exec(b.ctx) // each command has its own error
	again := b.client.Pipeline()
	for i := range all {
		s := &all[i]
		err := s.cmd.Err()
		switch {
		case s.script == nil || err == nil:
			continue
		case redis.HasErrorPrefix(err, "NOPERM") && s.ends(): // writing to the results may be all that the user is allowed there
			b.apart.Store(time.Now().Add(apartFor).UnixNano())
			s.dropEndings()
		case !redis.HasErrorPrefix(err, "NOSCRIPT"):
			continue
		}
		s.cmd = s.command(b.ctx, "eval")
		_ = again.Process(b.ctx, s.cmd) // as above
	}
	if again.Len() > 0 {
		_, _ = again.Exec(b.ctx) // as above
	}
	for i := range all {
		all[i].answer()
	}
}

// commands makes the commands of a batch.
func (b *batcher) commands(batch []*call) []sent {
	all := make([]sent, 0, 4)
	for i, c := range batch {
		switch {
		case c.ctx.Err() != nil: // its caller has gone before it was sent
		case c.swap.names == nil:
			s := sent{script: c.script, args: c.args, calls: batch[i : i+1]}
			if s.script != nil {
				s.args = append(make([]any, 2, 2+len(c.args)), c.args...)
			}
			all = append(all, s)
		default:
			j := slices.IndexFunc(all, func(s sent) bool {
				return s.script == b.swapper && len(s.calls) < swapLen && s.calls[0].swap.alike(&c.swap.swapHead)
			})
			if j < 0 {
				j = len(all)
				all = append(all, sent{script: b.swapper, calls: make([]*call, 0, min(swapLen, len(batch)-i))})
			}
			all[j].calls = append(all[j].calls, c)
		}
	}
	for i := range all {
		if s := &all[i]; s.args == nil {
			s.args = swaps(s.calls)
		}
	}
	return all
}

// ends says whether the transactions of s have endings.
func (s *sent) ends() bool { return s.calls[0].swap.names != nil && s.calls[0].swap.group != "" }

// dropEndings leaves only the transactions themselves.
func (s *sent) dropEndings() {
	for _, c := range s.calls {
		c.swap.stream, c.swap.group, c.swap.results = "", "", ""
	}
	s.args = swaps(s.calls)
}

// answer hands the reply to whom it is for.
func (s *sent) answer() {
	reply, err := s.cmd.Val(), s.cmd.Err()
	if err == nil && s.calls[0].swap.names != nil {
		err = readSwaps(s.calls, reply)
	}
	for _, c := range s.calls {
		if err != nil {
			c.err = err
		}
		c.reply = reply
		c.done <- struct{}{}
	}
}

func (s *sent) command(ctx context.Context, eval string) *redis.Cmd {
	if s.script == nil {
		return redis.NewCmd(ctx, s.args...)
	}
	s.args[0], s.args[1] = eval, s.script.sha
	if eval == "eval" {
		s.args[1] = s.script.source
	}
	return redis.NewCmd(ctx, s.args...)
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
