package sidecar

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

const (
	// paceMost is the percentage by which a small heap may grow between two collections, and paceLeast that of a very large one.
	paceMost  = 400
	paceLeast = 25
	// paceBytes is how much garbage may gather in any case, and paceScan how often the collector may have to look at the same byte for as
	// much garbage, where that is more: memory without pointers costs it nothing.
	paceBytes = 128 << 20
	paceScan  = 2
)

// PaceCollector sets how often the garbage is collected, for the process and until stop is called.
//
// A sidecar's heap is small and its garbage is the messages that pass through: collecting them a quarter as often as Go would saves a
// fifth of the work of a job. But an embedded server keeps blocks of messages in memory, and a store may keep the keys of millions of
// outcomes: there four times as much garbage would be gigabytes. So the percentage falls as the heap grows, after each collection.
// The memory limit, where there is one, still holds.
func PaceCollector() (stop func()) {
	p := &pacer{before: debug.SetGCPercent(paceMost), percent: paceMost}
	p.arm()
	return p.stop
}

// pacer adjusts the percentage after each collection, which it learns of as an object of its own is collected.
type pacer struct {
	mu      sync.Mutex
	before  int
	percent int
	stopped bool
}

func (p *pacer) arm() { runtime.AddCleanup(new([16]byte), (*pacer).collected, p) }

func (p *pacer) collected() {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/heap:bytes"}}
	metrics.Read(s)
	percent := pace(s[0].Value.Uint64(), s[1].Value.Uint64())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	if d := percent - p.percent; 8*max(d, -d) > p.percent { // it stops the world
		p.percent = percent
		debug.SetGCPercent(percent)
	}
	p.arm()
}

func (p *pacer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		p.stopped = true
		debug.SetGCPercent(p.before)
	}
}

// pace is the percentage for a heap of so many bytes, of which so many have to be looked at.
func pace(live, scan uint64) int {
	garbage := max(paceBytes, paceScan*scan)
	return int(min(max(100*garbage/max(live, 1), paceLeast), paceMost))
}
