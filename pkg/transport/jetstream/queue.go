package jetstream

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// waiter is a message that the mover keeps until it is due.
type waiter struct {
	at   time.Time // when it is due, by our clock
	msg  *nats.Msg // as it goes home
	s    *second
	size int
}

// byTime is a heap of waiters.
type byTime []*waiter

func (h byTime) Len() int           { return len(h) }
func (h byTime) Less(i, k int) bool { return h[i].at.Before(h[k].at) }
func (h byTime) Swap(i, k int)      { h[i], h[k] = h[k], h[i] }
func (h *byTime) Push(x any)        { *h = append(*h, x.(*waiter)) }

// Pop implements heap.Interface.
func (h *byTime) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return w
}

// queue is what a mover keeps, within moverHeld and moverBytes.
type queue struct {
	free  chan struct{} // told when there is room again, or all of a second is home
	added chan struct{}

	mu    sync.Mutex
	heap  byTime
	n     int // waiting and on their way home
	bytes int
	short bool // somebody waits for room
}

func (q *queue) init(free chan struct{}) { q.free, q.added = free, make(chan struct{}, 1) }

// room says whether a page may be added; if not, the queue tells when it may.
func (q *queue) room() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.short = !q.roomy()
	return !q.short
}

func (q *queue) roomy() bool { return q.n+pageSize <= moverHeld && q.bytes < moverBytes }

// add keeps messages.
func (q *queue) add(ws []*waiter) {
	q.mu.Lock()
	for _, w := range ws {
		heap.Push(&q.heap, w)
		q.n++
		q.bytes += w.size
		w.s.left++
	}
	q.mu.Unlock()
	nudge(q.added)
}

// due waits for messages that are due and returns at most batchSize of them; none when ctx has ended.
func (q *queue) due(ctx context.Context) []*waiter {
	for {
		var ws []*waiter
		wait := time.Hour
		now := time.Now()
		q.mu.Lock()
		for len(q.heap) > 0 && len(ws) < batchSize {
			if next := q.heap[0].at; next.After(now) {
				wait = next.Sub(now)
				break
			}
			ws = append(ws, heap.Pop(&q.heap).(*waiter))
		}
		q.mu.Unlock()
		if ws != nil {
			return ws
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-q.added:
			timer.Stop()
		}
	}
}

// done counts messages as home.
func (q *queue) done(ws ...*waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	tell := false
	for _, w := range ws {
		q.n--
		q.bytes -= w.size
		w.s.left--
		tell = tell || w.s.left == 0 && w.s.at.Before(time.Now().Add(-time.Second))
	}
	if q.short && q.n+2*pageSize <= moverHeld && q.roomy() {
		q.short, tell = false, true
	}
	if tell {
		nudge(q.free)
	}
}

// home says whether all of a second that was read is home.
func (q *queue) home(s *second) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return s.left == 0
}

// drop forgets what waits.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.heap {
		q.n--
		q.bytes -= w.size
	}
	q.heap = nil
}
