package memkv

import (
	"container/heap"
	"time"
)

// expire takes out what is due at now. p.mu is held.
func (p *partition) expire(now time.Time) {
	for len(p.expiry) > 0 && !p.expiry[0].expires.After(now) {
		it := p.expiry[0]
		p.store.bytes.Add(-size(it.kv.Key, it.kv.Value))
		p.drop(it, p.store.rev.Add(1), now)
	}
}

// arm sees to it that expire runs when the next key is due, so that memory is freed and watchers hear of it. p.mu is held.
func (p *partition) arm() {
	if len(p.expiry) == 0 {
		return
	}
	wait := time.Until(p.expiry[0].expires)
	if p.timer == nil {
		p.timer = time.AfterFunc(wait, p.due)
		return
	}
	p.timer.Reset(wait)
}

func (p *partition) due() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys == nil { // closed meanwhile
		return
	}
	p.expire(time.Now().Round(0))
	p.arm()
}

// expiries is a heap of the keys that will expire, the first one first.
type expiries []*item

// set puts it where its expiry belongs, or takes it out if it has none.
func (e *expiries) set(it *item) {
	switch {
	case it.expires.IsZero() && it.at >= 0:
		heap.Remove(e, it.at)
	case it.expires.IsZero():
	case it.at >= 0:
		heap.Fix(e, it.at)
	default:
		heap.Push(e, it)
	}
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (e expiries) Len() int           { return len(e) }
func (e expiries) Less(i, j int) bool { return e[i].expires.Before(e[j].expires) }

func (e expiries) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].at, e[j].at = i, j
}

func (e *expiries) Push(x any) {
	it := x.(*item)
	it.at = len(*e)
	*e = append(*e, it)
}

func (e *expiries) Pop() any {
	old := *e
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*e = old[:len(old)-1]
	it.at = -1
	return it
}
