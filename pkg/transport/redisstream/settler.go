package redisstream

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	// settleBatch is how many entries one command settles.
	settleBatch = 500
	// settleWait bounds the pause between two attempts while the server is away.
	settleWait = time.Second
	// releasedIdle is the idle time that a released entry is given: longer than any lease, so that whoever looks next claims
	// it, whatever lease they go by.
	releasedIdle = 24 * time.Hour
)

// settler writes acknowledgements and releases. One goroutine takes whatever is waiting, never waits for more, and tries again
// while the server is away.
type settler struct {
	s    *source
	wake chan struct{}
	done chan struct{}

	mu       sync.Mutex
	acks     []*delivery
	releases []*delivery
	last     context.Context // set by flush: finish until it ends
}

func newSettler(s *source) *settler {
	st := &settler{s: s, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go st.run()
	return st
}

func (st *settler) ack(d *delivery) {
	st.mu.Lock()
	st.acks = append(st.acks, d)
	st.mu.Unlock()
	st.signal()
}

func (st *settler) release(d *delivery) {
	st.mu.Lock()
	st.releases = append(st.releases, d)
	st.mu.Unlock()
	st.signal()
}

func (st *settler) signal() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// waiting is how many settlements have not been written.
func (st *settler) waiting() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.acks) + len(st.releases)
}

// flush writes what is waiting until ctx ends, and ends the goroutine.
func (st *settler) flush(ctx context.Context) error {
	st.mu.Lock()
	st.last = ctx
	st.mu.Unlock()
	st.signal()
	select {
	case <-st.done:
	case <-ctx.Done(): // the attempt under way ends by the client's timeouts, and the goroutine with it
	}
	if n := st.s.holding(); n > 0 {
		return &unsettledError{n, st.s.stream, context.Cause(ctx)}
	}
	return nil
}

func (st *settler) run() {
	defer close(st.done)
	wait := time.Duration(0)
	for {
		st.mu.Lock()
		acks, releases, last := st.acks, st.releases, st.last
		st.acks, st.releases = nil, nil
		st.mu.Unlock()
		if len(acks)+len(releases) == 0 {
			if last != nil {
				return
			}
			<-st.wake
			continue
		}
		ctx := st.s.ctx
		if last != nil {
			ctx = last
		}
		acks, err1 := st.each(ctx, acks, st.writeAcks)
		releases, err2 := st.each(ctx, releases, st.writeReleases)
		err := errors.Join(err1, err2)
		if err == nil {
			wait = 0
			continue
		}
		st.mu.Lock()
		st.acks = append(acks, st.acks...)
		st.releases = append(releases, st.releases...)
		st.mu.Unlock()
		if last != nil && last.Err() != nil {
			return
		}
		if wait == 0 {
			st.s.log.Warn("settling is delayed", "stream", st.s.stream, "entries", len(acks)+len(releases), "err", err)
		}
		wait = min(max(2*wait, 20*time.Millisecond), settleWait)
		st.pause(wait, last)
	}
}

// pause waits for so long, or for the flush to begin or end.
func (st *settler) pause(d time.Duration, last context.Context) {
	t := time.NewTimer(d)
	defer t.Stop()
	if last != nil {
		select {
		case <-t.C:
		case <-last.Done():
		}
		return
	}
	for {
		select {
		case <-t.C:
			return
		case <-st.wake: // more to settle, or the flush
			st.mu.Lock()
			last := st.last
			st.mu.Unlock()
			if last != nil {
				return
			}
		}
	}
}

// each writes batches and returns what could not be written for now. What never can be written is given up: the entry stays
// and comes back after its lease.
func (st *settler) each(ctx context.Context, ds []*delivery, write func(context.Context, []*delivery) error) ([]*delivery, error) {
	for len(ds) > 0 {
		batch := ds[:min(len(ds), settleBatch)]
		err := write(ctx, batch)
		if err != nil && !transport.Permanent(err) {
			return ds, err
		}
		if err != nil {
			st.s.log.Error("settling failed for good; the jobs will be delivered again",
				"stream", st.s.stream, "entries", len(batch), "err", err)
		}
		st.s.forget(batch...)
		ds = ds[len(batch):]
	}
	return nil, nil
}

func (st *settler) writeAcks(ctx context.Context, ds []*delivery) error {
	s := st.s
	// An entry whose lease may have run out can be another's by now, and then it is not ours to delete. The margin covers the
	// way to the server.
	limit := s.now() + int64(s.lease/4)
	safe, unsure := append(make([]any, 0, len(ds)+1), s.group), []any{s.group, s.consumer}
	var gone []string
	for _, d := range ds {
		switch {
		case d.lost.Load():
		case d.gone:
			gone = append(gone, d.id)
		case d.until.Load() > limit:
			safe = append(safe, d.id)
		default:
			unsure = append(unsure, d.id)
		}
	}
	keys := []string{s.stream, s.keys.count}
	if len(gone) > 0 {
		if err := s.t.client.XAck(ctx, s.stream, s.group, gone...).Err(); err != nil {
			return fail("acknowledge entries of stream", s.stream, err)
		}
	}
	if len(safe) > 1 {
		if err := settleScript.Run(ctx, s.t.client, keys, safe...).Err(); err != nil && !isNil(err) {
			return fail("acknowledge entries of stream", s.stream, err)
		}
	}
	if len(unsure) > 2 {
		err := ackScript.Run(ctx, s.t.client, keys, unsure...).Err()
		if err != nil && !isNil(err) && !noGroup(err) {
			return fail("acknowledge entries of stream", s.stream, err)
		}
	}
	return nil
}

func (st *settler) writeReleases(ctx context.Context, ds []*delivery) error {
	ids := make([]string, 0, len(ds))
	for _, d := range ds {
		if !d.lost.Load() {
			ids = append(ids, d.id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	// Nobody can take the entries before they are stale, so writing twice what was written before does no harm.
	slices.Sort(ids)
	_, err := st.s.hold(ctx, ids, releasedIdle)
	if noGroup(err) {
		return nil
	}
	return err
}
