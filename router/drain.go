package router

import (
	"container/heap"
	"context"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/crash"
)

// release hands an unsettled item back to the broker. The caller holds mu.
func (w *Window) release(it *item) {
	it.d.Release()
	w.remove(it)
}

// beginDrain hands back everything that has not begun.
func (w *Window) beginDrain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining {
		return
	}
	w.draining = true
	close(w.drain)
	waiting := append(w.ready.all(), w.parked...)
	w.ready, w.parked = queue{}, nil
	for _, q := range w.keys {
		waiting = append(waiting, q.all()...)
		*q = queue{}
	}
	for _, it := range waiting {
		w.release(it)
	}
	crash.At(crash.DuringDrain)
	if w.out.n == 0 && w.running == 0 {
		closeOnce(w.idle)
	}
	w.signal()
}

// awaitIdle waits for what is running, cancels it after the drain timeout, and gives up on what does not end even then.
func (w *Window) awaitIdle() {
	timer := time.NewTimer(w.cfg.DrainTimeout)
	defer timer.Stop()
	select {
	case <-w.idle:
		return
	case <-timer.C:
	}
	running, _ := w.InFlight()
	w.cfg.Log.Warn("drain timeout, cancelling running jobs", "route", w.cfg.Route, "running", running)
	w.cancel(ErrDrainTimeout)
	timer.Reset(cancelGrace)
	select {
	case <-w.idle:
	case <-timer.C:
		w.cfg.Log.Error("jobs do not end, their messages stay unsettled", "route", w.cfg.Route, "running", running)
		w.mu.Lock()
		closeOnce(w.idle)
		w.mu.Unlock()
	}
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// heartbeat keeps every unsettled delivery alive, and drops what was lost, until nothing is out any more.
func (w *Window) heartbeat() {
	lease, every := w.src.Lease(), sweepEvery
	if lease > 0 {
		every = max(lease/4, 10*time.Millisecond)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-w.idle:
			return
		case <-tick.C:
		}
		if lease > 0 {
			w.extend(lease)
		}
		w.sweep()
	}
}

// extend begins the leases of all that is out anew.
func (w *Window) extend(lease time.Duration) {
	w.mu.Lock()
	ds := w.out.deliveries()
	w.mu.Unlock()
	if len(ds) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lease/2)
	defer cancel()
	if err := w.src.Extend(ctx, ds); err != nil {
		w.cfg.Log.Warn("extending leases failed", "route", w.cfg.Route, "deliveries", len(ds), "err", err)
	}
}

// sweep drops parked deliveries that are another's by now: they would hold their places, and their keys, until they are due.
func (w *Window) sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept, gone := w.parked[:0], []*item(nil)
	for _, it := range w.parked {
		if it.d.Lost() {
			gone = append(gone, it)
		} else {
			kept = append(kept, it)
		}
	}
	if len(gone) == 0 {
		return
	}
	clear(w.parked[len(kept):])
	w.parked = kept
	heap.Init(&w.parked)
	for _, it := range gone {
		w.remove(it)
	}
	w.pump()
	w.signal()
}
