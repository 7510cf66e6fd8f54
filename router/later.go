package router

import (
	"context"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// early says whether the job may not begin yet, and moves it until then: one that is scheduled, or whose move failed.
func (w *Window) early(it *item) (job.Settlement, bool) {
	j := it.x.Job
	until := it.until
	if until.IsZero() && j.Invalid == nil {
		until = j.NotBefore
	}
	if until.IsZero() {
		return job.Settlement{}, false
	}
	wait := time.Until(until)
	if wait <= 0 {
		return job.Settlement{}, false
	}
	if it.until.IsZero() {
		it.ran, it.scheduled = j, true
	}
	if wait <= shortHold {
		return job.Settlement{Verb: job.Leave, After: wait}, true
	}
	return job.Settlement{Verb: job.Retry, After: wait}, true
}

// move writes the message again, to be delivered after a while, and says whether it was settled by that; where it was not, how
// long to keep it. An ordered job is never moved. When a move fails it is tried again before long, without another trip; one
// that is refused for good waits here instead.
func (w *Window) move(it *item, after time.Duration) (gone bool, wait time.Duration) {
	it.until = time.Now().Add(after)
	it.x.Job.Attempt = it.ran.Attempt // the trip that follows goes on from here
	if w.cfg.ByKey {
		return false, after
	}
	what := transport.MoveRetry
	if it.scheduled {
		what = transport.MoveSchedule
	}
	ctx, cancel := context.WithTimeout(w.base, w.cfg.DrainTimeout)
	defer cancel()
	err := it.d.Retry(ctx, after, transport.Moved(it.d.Message(), it.ran, what))
	if err == nil {
		return true, 0
	}
	w.cfg.Log.Warn("move failed, keeping the delivery", "route", w.cfg.Route, "job_id", it.ran.ID, "after", after, "err", err)
	if transport.Permanent(err) {
		return false, after
	}
	it.moves++
	return false, min(after, movePause<<min(it.moves-1, 6))
}

// park keeps an unsettled item without a slot until after has passed. The caller holds mu.
func (w *Window) park(it *item, after time.Duration) {
	it.due = time.Now().Add(max(after, time.Millisecond))
	w.parked.push(it)
	if w.parked[0] == it {
		w.timer.Reset(time.Until(it.due))
	}
}

// unpark makes ready what is due.
func (w *Window) unpark() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for len(w.parked) > 0 && !w.parked[0].due.After(now) {
		w.ready.push(w.parked.pop())
	}
	if len(w.parked) > 0 {
		w.timer.Reset(time.Until(w.parked[0].due))
	}
	w.pump()
}

// Trouble returns why consumption is paused, nil when it is not.
func (w *Window) Trouble() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trouble
}

// meetTrouble pauses consumption: the chain could not do its work. It returns how long the item is to be left for; items that
// come back find out whether the trouble is over.
func (w *Window) meetTrouble(it *item, err error) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining {
		w.cfg.Log.Warn("job not finished while draining, handed back", "route", w.cfg.Route, "position", it.d.Position(), "err", err)
	} else if w.trouble == nil {
		w.cfg.Log.Warn("consumption paused", "route", w.cfg.Route, "err", err)
	}
	w.trouble = err
	if it.troubles == 0 {
		w.troubled++
	}
	it.troubles++
	return min(minPause<<min(it.troubles-1, 10), maxPause)
}

// endTrouble resumes consumption: the chain has done its work for it.
func (w *Window) endTrouble(it *item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if it.troubles > 0 {
		it.troubles = 0
		w.troubled--
	}
	if w.trouble != nil {
		w.resume()
	}
}

// resume ends the pause. The caller holds mu.
func (w *Window) resume() {
	w.trouble = nil
	if w.draining {
		return // nothing is fetched any more
	}
	w.cfg.Log.Info("consumption resumed", "route", w.cfg.Route)
	w.signal()
}
