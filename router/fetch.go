package router

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// fetch takes deliveries from the source while there is room and no trouble, until ctx ends or the source is closed.
func (w *Window) fetch(ctx context.Context) error {
	pause, backlog := minPause, false
	for {
		room := w.awaitRoom(ctx, backlog)
		if room == 0 {
			return nil
		}
		ds, err := w.src.Fetch(ctx, room)
		backlog = len(ds) == room
		w.accept(ds)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, transport.ErrClosed):
			return fmt.Errorf("route %q: fetch: %w", w.cfg.Route, err)
		case err != nil:
			w.cfg.Log.Warn("fetch failed, trying again", "route", w.cfg.Route, "err", err, "pause", pause)
			if !sleep(ctx, pause) {
				return nil
			}
			pause = min(2*pause, maxPause)
		default:
			pause = minPause
		}
	}
}

// awaitRoom blocks until the window can take deliveries and returns how many; 0 when ctx has ended. While a backlog waits it
// gathers some slots first, for a short time.
func (w *Window) awaitRoom(ctx context.Context, backlog bool) int {
	var enough <-chan time.Time
	for ctx.Err() == nil {
		w.mu.Lock()
		room := min(w.cfg.Limit-w.running-w.ready.len(), w.cfg.MaxOut-w.out.n)
		if w.trouble != nil || w.draining {
			room = 0
		}
		w.mu.Unlock()
		if room > 0 && (!backlog || room >= w.cfg.Limit/4) {
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
		case <-ctx.Done():
		}
	}
	return 0
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
