package router

import (
	"container/heap"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// item is one delivery on its way through the window.
type item struct {
	d         transport.Delivery
	x         job.Exchange
	size      int64     // of the message, in bytes
	ran       *job.Job  // the job as the last trip left it, with its attempt
	key       string    // set only where the route is ordered
	holds     bool      // its key waits for it
	scheduled bool      // the coming move is a schedule rather than a retry
	moves     int       // moves in a row that failed
	until     time.Time // when the next trip may begin, after a move that was not made; zero where none was wanted
	troubles  int       // trips in a row that the chain could not finish
	due       time.Time // when it leaves the parked ones

	prev, next *item // in the list of what is out
}

// itemList is a doubly linked list of items.
type itemList struct {
	first *item
	n     int
}

func (l *itemList) add(it *item) {
	it.next = l.first
	if l.first != nil {
		l.first.prev = it
	}
	l.first = it
	l.n++
}

func (l *itemList) remove(it *item) {
	if it.prev != nil {
		it.prev.next = it.next
	} else {
		l.first = it.next
	}
	if it.next != nil {
		it.next.prev = it.prev
	}
	it.prev, it.next = nil, nil
	l.n--
}

func (l *itemList) deliveries() []transport.Delivery {
	out := make([]transport.Delivery, 0, l.n)
	for it := l.first; it != nil; it = it.next {
		out = append(out, it.d)
	}
	return out
}

// queue is a first-in, first-out queue of items.
type queue struct {
	items []*item
	head  int
}

func (q *queue) len() int      { return len(q.items) - q.head }
func (q *queue) all() []*item  { return q.items[q.head:] }
func (q *queue) push(it *item) { q.items = append(q.items, it) }

func (q *queue) pop() *item {
	it := q.items[q.head]
	q.items[q.head] = nil
	q.head++
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	} else if q.head > 1024 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	return it
}

// parkedHeap orders items by when they are due.
type parkedHeap []*item

func (h parkedHeap) Len() int           { return len(h) }
func (h parkedHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h parkedHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push and Pop are container/heap's; use push and pop.
func (h *parkedHeap) Push(x any) { *h = append(*h, x.(*item)) }

// Pop removes the last item.
func (h *parkedHeap) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}

func (h *parkedHeap) push(it *item) { heap.Push(h, it) }
func (h *parkedHeap) pop() *item    { return heap.Pop(h).(*item) }
