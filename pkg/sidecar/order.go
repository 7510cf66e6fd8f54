package sidecar

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// turnConfig describes the lease by which sidecars take turns at an ordered route.
type turnConfig struct {
	Route string
	Key   string        // of the lease in the store
	Lease time.Duration // without a renewal, by the store's clock
	Log   *slog.Logger
}

// turns is a source of an ordered route on a broker that gives the messages of one key to anyone. Only the sidecar that holds the route's
// lease consumes; the others stand by. Whoever takes the lease over first works on what its predecessor had out, which by then
// has stopped: it ends its turn, and with it all its deliveries, before the lease has run out for others.
type turns struct {
	cfg  turnConfig
	st   store.Store
	open func(context.Context) (transport.Source, error)
	name []byte // differs in every life

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu   sync.Mutex
	turn *turn // nil while another has it
}

// turn is the time for which a sidecar holds the lease.
type turn struct {
	src  transport.Source
	over atomic.Bool
	rev  int64         // of the lease as we wrote it last; the keeper's
	gone chan struct{} // closed when the keeper has gone
}

// inTurn returns an open that gives sources which wait for their turn.
func inTurn(open func(context.Context) (transport.Source, error), st store.Store, cfg turnConfig) func(context.Context) (transport.Source, error) {
	return func(context.Context) (transport.Source, error) {
		t := &turns{cfg: cfg, st: st, open: open, name: []byte(rand.Text())}
		t.ctx, t.stop = context.WithCancel(context.Background())
		return t, nil
	}
}

// Fetch waits for the lease, and then for messages.
func (t *turns) Fetch(ctx context.Context, limit int) ([]transport.Delivery, error) {
	cur, err := t.await(ctx)
	if err != nil {
		return nil, err
	}
	ds, err := cur.src.Fetch(ctx, limit)
	if errors.Is(err, transport.ErrClosed) && t.ctx.Err() == nil {
		err = fmt.Errorf("route %q: its order has passed to another sidecar", t.cfg.Route) // and comes back perhaps
	}
	for i, d := range ds {
		ds[i] = &turnDelivery{d, cur}
	}
	return ds, err
}

// await returns the turn that is now, after waiting for the lease if need be.
func (t *turns) await(ctx context.Context) (*turn, error) {
	t.mu.Lock()
	cur := t.turn
	t.mu.Unlock()
	if cur != nil && !cur.over.Load() {
		return cur, nil
	}
	if cur != nil {
		<-cur.gone
	}
	for said := false; ; said = true {
		if t.ctx.Err() != nil {
			return nil, fmt.Errorf("route %q: %w", t.cfg.Route, transport.ErrClosed)
		}
		rev, wait, err := t.take(ctx)
		if err != nil {
			return nil, fmt.Errorf("route %q: take the lease of its order: %w", t.cfg.Route, err)
		}
		if rev != 0 {
			return t.begin(ctx, rev)
		}
		if !said {
			t.cfg.Log.Info("standing by: another sidecar keeps the route's order", "route", t.cfg.Route)
		}
		// It may be given back early.
		timer := time.NewTimer(min(max(wait, 10*time.Millisecond), t.cfg.Lease/20, time.Second))
		select {
		case <-timer.C:
		case <-t.ctx.Done():
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// take tries to take the lease and returns its revision, or 0 and for how long another has it.
func (t *turns) take(ctx context.Context) (rev int64, wait time.Duration, err error) {
	for {
		r, err := t.st.Txn(ctx, store.Txn{
			If:   []store.Cond{{Key: t.cfg.Key, Revision: rev}},
			Then: []store.Op{store.Put(t.cfg.Key, t.name, 10*t.cfg.Lease)},
			Read: []string{t.cfg.Key},
		})
		switch {
		case err != nil:
			return 0, 0, err
		case r.Done:
			return r.Revision, 0, nil
		}
		kv := r.Read[0]
		age := r.Now.Sub(kv.Modified)
		if kv.Exists() && age < t.cfg.Lease && string(kv.Value) != string(t.name) {
			return 0, t.cfg.Lease - age, nil
		}
		rev = kv.Revision // it has run out, or is ours, by a write whose answer was lost
	}
}

// begin opens the source and keeps the lease.
func (t *turns) begin(ctx context.Context, rev int64) (*turn, error) {
	written := time.Now()
	src, err := t.open(ctx)
	if err != nil {
		t.giveBack(rev)
		return nil, err
	}
	cur := &turn{src: src, rev: rev, gone: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, errors.Join(fmt.Errorf("route %q: %w", t.cfg.Route, transport.ErrClosed), src.Close(ctx))
	}
	t.turn = cur
	t.cfg.Log.Info("keeping the route's order", "route", t.cfg.Route)
	t.wg.Go(func() { t.keep(t.ctx, cur, written) })
	return cur, nil
}

// keep renews the lease until the turn is over: at the end of ctx, when another has taken it, or when two thirds of it have passed
// without a renewal, so that all has stopped here before another begins.
func (t *turns) keep(ctx context.Context, cur *turn, written time.Time) {
	defer close(cur.gone)
	tick := time.NewTicker(t.cfg.Lease / 24)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		left := t.cfg.Lease*2/3 - time.Since(written)
		if left > t.cfg.Lease*5/12 {
			continue // it is younger than a quarter
		}
		sent := time.Now()
		rctx, cancel := context.WithTimeout(ctx, max(left, 0))
		r, err := t.st.Txn(rctx, store.Txn{
			If:   []store.Cond{{Key: t.cfg.Key, Revision: cur.rev}},
			Then: []store.Op{store.Put(t.cfg.Key, t.name, 10*t.cfg.Lease)},
		})
		cancel()
		switch {
		case err == nil && r.Done:
			cur.rev, written = r.Revision, sent
			continue
		case err == nil:
			if kv, gerr := store.Get(ctx, t.st, t.cfg.Key); gerr == nil && string(kv.Value) == string(t.name) {
				cur.rev = kv.Revision // an earlier renewal went through unheard
				continue
			}
		case time.Since(written) < t.cfg.Lease*2/3:
			continue // the store is away, perhaps not for long
		}
		if ctx.Err() != nil {
			return
		}
		cur.over.Store(true)
		t.cfg.Log.Warn("the route's order passes to another sidecar", "route", t.cfg.Route, "err", err)
		cctx, cancel := context.WithTimeout(ctx, t.cfg.Lease/3)
		if err := cur.src.Close(cctx); err != nil {
			t.cfg.Log.Warn("closing a source: some messages may be delivered again", "route", t.cfg.Route, "err", err)
		}
		cancel()
		return
	}
}

// giveBack lets another have the lease at once.
func (t *turns) giveBack(rev int64) {
	ctx, cancel := context.WithTimeout(context.Background(), t.cfg.Lease/3)
	defer cancel()
	_, err := t.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: t.cfg.Key, Revision: rev}}, Then: []store.Op{store.Delete(t.cfg.Key)}})
	if err != nil {
		t.cfg.Log.Debug("the lease of a route's order runs out by itself", "route", t.cfg.Route, "err", err)
	}
}

// Extend keeps alive what is of this turn.
func (t *turns) Extend(ctx context.Context, ds []transport.Delivery) error {
	t.mu.Lock()
	cur := t.turn
	t.mu.Unlock()
	if cur == nil || cur.over.Load() {
		return nil
	}
	inner := make([]transport.Delivery, 0, len(ds))
	for _, d := range ds {
		if td, ok := d.(*turnDelivery); ok && td.turn == cur {
			inner = append(inner, td.Delivery)
		}
	}
	return cur.src.Extend(ctx, inner)
}

// Lease is that of the source.
func (t *turns) Lease() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.turn == nil {
		return t.cfg.Lease
	}
	return t.turn.src.Lease()
}

// Close closes the source, and then gives the lease back.
func (t *turns) Close(ctx context.Context) error {
	t.mu.Lock()
	t.stop()
	cur := t.turn
	t.mu.Unlock()
	t.wg.Wait()
	if cur == nil || cur.over.Load() {
		return nil
	}
	cur.over.Store(true)
	err := cur.src.Close(ctx)
	t.giveBack(cur.rev)
	return err
}

// turnDelivery is a delivery that is lost when the turn is over.
type turnDelivery struct {
	transport.Delivery
	turn *turn
}

// Lost says that the turn is over, or that the source has lost it.
func (d *turnDelivery) Lost() bool { return d.turn.over.Load() || d.Delivery.Lost() }
