package host

import (
	"slices"
	"sort"
)

// blockCost is what a block of an arena costs beside its bytes, which are counted by sixteen.
const blockCost = 64

// arenaStart is the first address of an arena. What is below leads nowhere, 0 above all.
const arenaStart = 64

// arena is the memory that an Extism plug-in shares with its host: blocks at addresses that are used once each, so that what
// was freed is never taken for something else. What a guest asks for outside of its blocks is not there.
type arena struct {
	blocks []block // in the order of their addresses
	near   int     // where the last one was found
	dead   int     // how many are free
	next   uint64  // address of the next
	bytes  int64   // what they take
}

// block is a part of an arena; a free one has no bytes.
type block struct {
	at uint64
	b  []byte
}

// cost is what a block of n bytes adds to the arena's.
func cost(n int) int64 { return blockCost + (int64(n)+15)&^15 }

// add makes b, which must not be empty, a block of the arena and returns its address.
func (a *arena) add(b []byte) uint64 {
	if a.next == 0 {
		a.next = arenaStart
	}
	at := a.next
	a.blocks = append(a.blocks, block{at, b})
	a.near = len(a.blocks) - 1
	a.next += (uint64(len(b)) + 15) &^ 7 // never two without a gap
	a.bytes += cost(len(b))
	return at
}

// free drops the block that begins at that address, if one does.
func (a *arena) free(at uint64) {
	if a.start(at) == nil {
		return
	}
	a.bytes -= cost(len(a.blocks[a.near].b))
	a.blocks[a.near].b = nil
	if a.dead++; a.dead > 32 && a.dead > len(a.blocks)/2 {
		a.blocks = slices.DeleteFunc(a.blocks, func(b block) bool { return b.b == nil })
		a.near, a.dead = 0, 0
	}
}

// from returns what there is from that address to the end of its block; nil outside of all.
func (a *arena) from(at uint64) []byte {
	if a.near < len(a.blocks) {
		if b := &a.blocks[a.near]; at-b.at < uint64(len(b.b)) { // an address before it is far beyond its end
			return b.b[at-b.at:]
		}
	}
	i := sort.Search(len(a.blocks), func(i int) bool { return a.blocks[i].at > at }) - 1
	if i < 0 || at-a.blocks[i].at >= uint64(len(a.blocks[i].b)) {
		return nil
	}
	a.near = i
	return a.blocks[i].b[at-a.blocks[i].at:]
}

// start returns the block that begins at that address; nil when none does.
func (a *arena) start(at uint64) []byte {
	b := a.from(at)
	if b == nil || a.blocks[a.near].at != at {
		return nil
	}
	return b
}
