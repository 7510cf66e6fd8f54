package middleware

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// ErrDone says that a job was done before it could be cancelled.
var ErrDone = errors.New("the job is done")

// ErrNotWaiting says that a job could not be woken: it does not wait.
var ErrNotWaiting = errors.New("the job does not wait")

// Cancel ends a job of the route that is not done, whether or not it has been delivered. Where it runs, its owner finds out with the next
// heartbeat, a third of a lease later, and its outcome no longer counts. Whenever its message is delivered it leaves a result that
// says so, and no dead letter. It returns ErrDone for a job that is done, and blocks until the store has answered.
func (c *Claims) Cancel(ctx context.Context, id string, generation int, reason string) error {
	o := &job.Outcome{Kind: job.KindCancelled, Err: job.CleanText(reason), FinishedAt: time.Now().UnixMilli()}
	switch a, err := c.operate(ctx, id, generation, step{verb: cancelIt, nonce: c.cfg.Owner + "/cancel", outcome: o}, c.cfg.TTL); {
	case err != nil:
		return fmt.Errorf("cancel job %q of route %q: %w", id, c.cfg.Route, err)
	case a == over:
		return fmt.Errorf("cancel job %q of route %q: %w", id, c.cfg.Route, ErrDone)
	}
	return nil
}

// Wake ends the wait of a job that is parked: its next delivery runs it. It returns ErrNotWaiting for any other, and blocks until the
// store has answered. It does not deliver the job's message.
func (c *Claims) Wake(ctx context.Context, id string, generation int) error {
	a, err := c.operate(ctx, id, generation, step{verb: wakeIt}, c.keep())
	if err == nil && a != write {
		err = ErrNotWaiting
	}
	if err != nil {
		return fmt.Errorf("wake job %q of route %q: %w", id, c.cfg.Route, err)
	}
	return nil
}

// operate takes a step that needs no claim.
func (c *Claims) operate(ctx context.Context, id string, generation int, s step, ttl time.Duration) (answer, error) {
	key := c.key(id, generation)
	var sent []byte
	for {
		kv, err := store.Get(ctx, c.st, key)
		if err != nil {
			return 0, err
		}
		var old *record
		if kv.Exists() {
			if bytes.Equal(kv.Value, sent) { // the client sent it twice, and the first was done
				return write, nil
			}
			if old, err = decodeRecord(kv.Value, id); err != nil {
				return 0, err
			}
		}
		next, a, _ := old.take(s)
		if a != write {
			return a, nil
		}
		b := next.encode(id)
		r, err := c.st.Txn(ctx, store.Txn{
			If:   []store.Cond{{Key: key, Revision: kv.Revision}},
			Then: []store.Op{store.Put(key, b, ttl)},
		})
		if err != nil {
			return 0, err
		}
		if r.Done {
			return write, nil
		}
		sent = b
	}
}
