package kafka

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// topicPartition names a partition.
type topicPartition struct {
	topic string
	num   int32
}

// partition is one partition for as long as it is assigned to a source: what was fetched and not yet handed out, and what is
// handed out and not yet settled. A partition that comes back after a rebalance is a new one, so that deliveries of the old can
// never touch it.
type partition struct {
	src *source
	topicPartition
	topicID [16]byte
	prefix  string // of positions: <topic>@<topic id>/<partition>/

	// The queue, guarded by source.mu.
	records []*kgo.Record // fetched; those before head are handed out
	head    int
	bytes   int   // of what is queued
	next    int64 // the offset that the broker should send next
	paused  bool  // not fetched for now
	gated   bool  // may not hand out its head for now: not yet due, or the span is full

	dead atomic.Bool // no longer ours; set under mu

	mu       sync.Mutex
	span     []int64 // offsets handed out, ascending; complement: settled. Those before first are below the watermark
	first    int
	base     uint64 // sequence number of span[first]
	out      int    // handed out, not settled, not waiting to be presented again
	again    []*delivery
	revoking bool
	full     bool // the span's bound holds the queue back

	watermark int64     // first offset that is not settled
	committed int64     // the watermark that the broker knows
	handed    int64     // first offset that was never handed out
	bound     int64     // offsets below may be handed out: the broker knows that they may have been
	below     int64     // offsets below may have been handed out before this assignment
	step      int64     // how far ahead of handed to reserve
	reserve   bool      // a larger bound is wanted
	reserved  time.Time // when the bound was last raised for want of room
}

// Bounds of a partition.
const (
	minStep    = 1 << 10 // reserved ahead of what is handed out
	maxStep    = 1 << 17
	queueMax   = 512     // records queued in a partition that is gated, before it is paused
	queueBytes = 1 << 20 // the same in bytes
	// dueMax takes the place of queueMax in the mover, whose partitions are all gated. One that is fetched again after a pause waits for up to
	// fetchWait, and half of this lasts longer where some thousands come due each second.
	dueMax = 4 << 10
)

func (p *partition) queued() int { return len(p.records) - p.head }

// push queues records. source.mu is held.
func (p *partition) push(rs []*kgo.Record) {
	if p.head > 0 && p.head >= len(p.records)/2 {
		n := copy(p.records, p.records[p.head:])
		clear(p.records[n:])
		p.records, p.head = p.records[:n], 0
	}
	p.records = append(p.records, rs...)
	for _, r := range rs {
		p.bytes += recordSize(r)
	}
}

// drop empties the queue. source.mu is held.
func (p *partition) drop() {
	p.records, p.head, p.bytes = nil, 0, 0
}

// kill ends the partition: its deliveries are lost and can no longer move the watermark.
func (p *partition) kill() {
	p.mu.Lock()
	p.dead.Store(true)
	p.again = nil
	p.mu.Unlock()
}

// add enters an offset that is handed out and returns its sequence number. mu is held.
func (p *partition) add(offset int64) uint64 {
	if p.first > 0 && p.first >= len(p.span)/2 {
		p.span = p.span[:copy(p.span, p.span[p.first:])]
		p.first = 0
	}
	p.span = append(p.span, offset)
	p.handed = offset + 1
	return p.base + uint64(len(p.span)-p.first-1)
}

// complete settles what add entered and says whether the watermark moved. mu is held.
func (p *partition) complete(seq uint64) bool {
	i := p.first + int(seq-p.base)
	p.span[i] = ^p.span[i]
	if i != p.first {
		return false
	}
	for p.first < len(p.span) && p.span[p.first] < 0 {
		p.watermark = ^p.span[p.first] + 1
		p.first++
		p.base++
	}
	return true
}

// room is how many more offsets the span takes. mu is held.
func (p *partition) room() int { return p.src.maxSpan - (len(p.span) - p.first) }

// more asks for a larger bound, and for larger steps when that happens often. mu is held. It says whether the committer has
// to be told.
func (p *partition) more() bool {
	if p.reserve {
		return false
	}
	now := time.Now()
	switch since := now.Sub(p.reserved); {
	case since < p.src.t.cfg.CommitInterval:
		p.step = min(2*p.step, maxStep)
	case since > 20*p.src.t.cfg.CommitInterval:
		p.step = max(p.step/2, minStep)
	}
	p.reserved = now
	p.reserve = true
	return true
}

func recordSize(r *kgo.Record) int {
	n := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}
