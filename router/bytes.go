package router

import "sync/atomic"

// Bytes bounds the size of the messages that windows which share it hold together, those that wait included. It is exceeded by no more
// than one fetch of each, when messages come that are larger than those before; and a window that holds nothing may always take one
// message, so that neither a large message nor another window keeps it from its work.
type Bytes struct {
	limit int64
	held  atomic.Int64
}

// NewBytes makes a bound of limit bytes; with 0 nothing is bounded.
func NewBytes(limit int64) *Bytes { return &Bytes{limit: limit} }

// guess is how large messages are taken to be until some have come.
const guess = 16 << 10

// measure counts messages that have come, n of them with size bytes, and learns how large the next may be: from larger ones at once, from
// smaller ones slowly. The caller holds mu.
func (w *Window) measure(n int, size int64) {
	w.bytes += size
	if w.cfg.Bytes != nil {
		w.cfg.Bytes.held.Add(size)
	}
	mean := size / int64(n)
	w.typical = max(mean, w.typical-(w.typical-mean)/8)
}

// unmeasure forgets a message that is settled or handed back. The caller holds mu.
func (w *Window) unmeasure(size int64) {
	w.bytes -= size
	if w.cfg.Bytes != nil {
		w.cfg.Bytes.held.Add(-size)
	}
}

// fit is how many of room messages the bound on bytes leaves room for. The caller holds mu.
func (w *Window) fit(room int) int {
	b := w.cfg.Bytes
	if b == nil || b.limit == 0 || room <= 0 {
		return room
	}
	left := (b.limit - b.held.Load()) / max(w.typical, 1)
	if w.out.n == 0 {
		left = max(left, 1)
	}
	return int(min(int64(room), max(left, 0)))
}

// held is the size of the messages that are out.
func (w *Window) held() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}
