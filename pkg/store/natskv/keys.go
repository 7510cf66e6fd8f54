package natskv

import (
	"encoding/binary"
	"hash/maphash"
)

// chunkBytes is the size of a piece of memory for names.
const chunkBytes = 64 << 10

// keyset is the keys of a state. There may be millions, so nothing in it is a pointer that the collector would have to follow: keys
// are found by a hash that nobody outside can foretell, and their names lie in chunks.
type keyset struct {
	sum    func(name string) uint64
	slots  map[uint64]slot
	others map[string]item // whose hash another key has: next to none
	chunks map[uint32]*chunk
	last   uint32 // the chunk that is being filled
}

// slot is a key under its hash.
type slot struct {
	item
	chunk  uint32
	offset uint32 // of the name's length and the name
}

// chunk is names, each after its length. What becomes of their keys is in the slots.
type chunk struct {
	names []byte
	used  int // bytes of names that are still of use
}

func newKeyset() keyset {
	seed := maphash.MakeSeed()
	return keyset{
		sum: func(name string) uint64 { return maphash.String(seed, name) }, slots: make(map[uint64]slot), chunks: make(map[uint32]*chunk),
	}
}

func (ks *keyset) len() int { return len(ks.slots) + len(ks.others) }

// name returns the name at a place in a chunk, and what it takes there.
func (c *chunk) name(offset int) (name []byte, size int) {
	n, k := binary.Uvarint(c.names[offset:])
	return c.names[offset+k : offset+k+int(n)], k + int(n)
}

// holds says whether a slot is the one of a name.
func (ks *keyset) holds(sl slot, name string) bool {
	b, _ := ks.chunks[sl.chunk].name(int(sl.offset))
	return string(b) == name
}

func (ks *keyset) find(name string) (item, bool) {
	if sl, ok := ks.slots[ks.sum(name)]; ok && ks.holds(sl, name) {
		return sl.item, true
	}
	it, ok := ks.others[name]
	return it, ok
}

// put makes it what stands under a name, and returns the hash to ask expiring for the key by.
func (ks *keyset) put(name string, it item) uint64 {
	h := ks.sum(name)
	_, other := ks.others[name]
	sl, taken := ks.slots[h]
	switch {
	case other || taken && !ks.holds(sl, name):
		if ks.others == nil {
			ks.others = make(map[string]item)
		}
		ks.others[name] = it
		return h
	case !taken:
		sl.chunk, sl.offset = ks.keep(name)
	}
	sl.item = it
	ks.slots[h] = sl
	return h
}

func (ks *keyset) drop(name string) {
	h := ks.sum(name)
	if sl, ok := ks.slots[h]; ok && ks.holds(sl, name) {
		delete(ks.slots, h)
		ks.release(sl)
		return
	}
	delete(ks.others, name)
}

// each calls f with each key that has the hash.
func (ks *keyset) each(h uint64, f func(name string, it item)) {
	if sl, ok := ks.slots[h]; ok {
		b, _ := ks.chunks[sl.chunk].name(int(sl.offset))
		f(string(b), sl.item)
	}
	for name, it := range ks.others {
		if ks.sum(name) == h {
			f(name, it)
		}
	}
}

// keep writes a name down.
func (ks *keyset) keep(name string) (number, offset uint32) {
	size := binary.MaxVarintLen32 + len(name)
	c, full := ks.chunks[ks.last], ks.last
	if c == nil || len(c.names)+size > cap(c.names) {
		ks.last++
		for ks.chunks[ks.last] != nil { // after four billion
			ks.last++
		}
		c = &chunk{names: make([]byte, 0, max(chunkBytes, size))}
		ks.chunks[ks.last] = c
	}
	number, offset = ks.last, uint32(len(c.names))
	c.names = binary.AppendUvarint(c.names, uint64(len(name)))
	c.names = append(c.names, name...)
	c.used += len(c.names) - int(offset)
	if full != number {
		ks.shrink(full) // most of its names may have gone while it was filled
	}
	return number, offset
}

// release gives up the name of a slot that is gone.
func (ks *keyset) release(sl slot) {
	c := ks.chunks[sl.chunk]
	_, size := c.name(int(sl.offset))
	c.used -= size
	ks.shrink(sl.chunk)
}

// shrink lets a chunk go of which little is of use, unless it is being filled: that moves to the one that is.
func (ks *keyset) shrink(number uint32) {
	c := ks.chunks[number]
	if c == nil || number == ks.last || 4*c.used > len(c.names) {
		return
	}
	for at := 0; at < len(c.names) && c.used > 0; {
		b, size := c.name(at)
		name := string(b)
		if h := ks.sum(name); ks.at(h, number, at) {
			moved := ks.slots[h]
			moved.chunk, moved.offset = ks.keep(name)
			ks.slots[h] = moved
			c.used -= size
		}
		at += size
	}
	delete(ks.chunks, number)
}

// at says whether the slot of a hash has its name at a place.
func (ks *keyset) at(h uint64, number uint32, offset int) bool {
	sl, ok := ks.slots[h]
	return ok && sl.chunk == number && int(sl.offset) == offset
}
