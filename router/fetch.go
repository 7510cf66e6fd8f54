package router

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// fetch takes deliveries from the source while there is room and no trouble, until ctx ends or the source is closed. A source that
// fails is tried again for ever: whoever mends it needs no restart.
func (w *Window) fetch(ctx context.Context) error {
	pause, backlog, failures := minPause, false, 0
	quiet := time.AfterFunc(time.Hour, w.fetchWorks)
	defer quiet.Stop()
	for {
		room := w.awaitRoom(ctx, backlog)
		if room == 0 {
			return nil
		}
		if failures > 0 {
			quiet.Reset(fetchQuiet)
		}
		began := time.Now()
		ds, err := w.src.Fetch(ctx, room)
		if failures > 0 && !quiet.Stop() && time.Since(began) >= fetchQuiet {
			pause, failures = minPause, 0
		}
		backlog = len(ds) == room
		w.accept(ds)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, transport.ErrClosed):
			return fmt.Errorf("route %q: fetch: %w", w.cfg.Route, err)
		case err != nil:
			failures++
			w.fetchFailed(err, failures, pause)
			if !sleep(ctx, pause) {
				return nil
			}
			longest := maxPause
			if transport.Permanent(err) {
				longest = maxFault
			}
			pause = min(2*pause, longest)
		case failures > 0:
			pause, failures = minPause, 0
			w.fetchWorks()
		}
	}
}

// fetchFailed notes that the source could not be read for the nth time in a row. One failure that may pass is no news: brokers close
// connections that were idle.
func (w *Window) fetchFailed(err error, n int, pause time.Duration) {
	w.failed.Add(1)
	w.mu.Lock()
	before := w.fetching
	if transport.Permanent(err) || n > 1 {
		w.fetching = err
	}
	w.mu.Unlock()
	if transport.Permanent(err) && (before == nil || before.Error() != err.Error()) {
		w.cfg.Log.Error("no jobs can be fetched until this is mended", "route", w.cfg.Route, "err", err)
		return
	}
	w.cfg.Log.Warn("fetch failed, trying again", "route", w.cfg.Route, "err", err, "pause", pause)
}

// fetchWorks notes that the source can be read again.
func (w *Window) fetchWorks() {
	w.mu.Lock()
	before := w.fetching
	w.fetching = nil
	w.mu.Unlock()
	if before != nil {
		w.cfg.Log.Info("jobs are fetched again", "route", w.cfg.Route)
	}
}

// awaitRoom blocks until the window can take deliveries and returns how many; 0 when ctx has ended. While a backlog waits it
// gathers some slots first, for a short time.
func (w *Window) awaitRoom(ctx context.Context, backlog bool) int {
	var enough <-chan time.Time
	for ctx.Err() == nil {
		room, poll := w.room()
		if room > 0 && (!backlog || room >= w.cfg.Limit/4 || poll != nil) {
			return room
		}
		if room > 0 && enough == nil {
			t := time.NewTimer(gather)
			defer t.Stop()
			enough = t.C
		}
		select {
		case <-w.wake:
		case <-enough:
			backlog = false
		case <-poll:
		case <-ctx.Done():
		}
	}
	return 0
}

// room is how many deliveries may be taken now, and, while something else than slots bounds them, when to ask again.
func (w *Window) room() (int, <-chan time.Time) {
	var probe bool
	var why error
	if w.cfg.Hold != nil {
		probe, why = w.cfg.Hold()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	room := min(w.cfg.Limit-w.running-w.ready.len(), w.cfg.MaxOut-w.out.n)
	if w.trouble != nil || w.draining {
		room = 0
	}
	if why == nil {
		fit := w.fit(room)
		if fit < room { // others hold some of the bytes, and do not tell when they are done with them
			return fit, time.After(holdPoll)
		}
		return room, nil
	}
	if !probe || w.out.n > 0 {
		room = 0
	}
	return min(room, 1), time.After(holdPoll)
}

func (w *Window) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// sleep waits for d and says whether ctx lived as long.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
