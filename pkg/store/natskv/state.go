package natskv

import (
	"sort"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/internal/ordered"
)

const (
	// recentBytes is how much of the end of the log is kept in memory, for the values in it.
	recentBytes = 8 << 20
	// bundleCost is what a message takes in the stream besides its body, and keyCost what a key takes in a bundle besides name and value.
	bundleCost = 160
	keyCost    = 40
)

// state is what the log comes to so far: every key but its value, and every set. The store's mutex guards it.
type state struct {
	applied uint64 // the last sequence that is in it
	bad     error  // why it cannot be told what the log comes to
	ready   bool   // it is complete, as far as was known when the reading began
	target  uint64 // it is ready when it has come this far
	keys    keyset
	sets    map[string]*ordered.Set
	due     map[int64][]uint64 // hashes of keys by the second in which they expire
	swept   int64              // seconds before are done with

	bundles []bundle // what the stream has, in order
	total   int64    // bytes of it
	live    int64    // bytes of it that are still of use, about

	turn struct { // somebody has asked to be let write, and has not written since
		wanted bool
		of     writerID
	}

	recent map[uint64][]byte
	oldest []uint64 // sequences in recent, in order
	size   int      // bytes in recent
}

// item is a key. Its value lies in a bundle.
type item struct {
	revision int64
	modified int64 // Unix nanoseconds, by the server's clock
	expires  int64 // likewise; 0: never
	seq      uint64
	offset   uint32
	length   uint32
}

// bundle is a message of the log.
type bundle struct {
	seq  uint64
	size int32
	keys int32 // that it holds the value of
	adds int32 // to sets, which nobody counts after
}

func newState() state {
	return state{
		keys: newKeyset(), sets: make(map[string]*ordered.Set), due: make(map[int64][]uint64), recent: make(map[uint64][]byte),
	}
}

// find returns a key as it stands at now.
func (st *state) find(key string, now int64) (item, bool) {
	it, ok := st.keys.find(key)
	if ok && it.expires != 0 && it.expires <= now {
		return item{}, false
	}
	return it, ok
}

// apply takes in the bundle at seq, which was written at now, and tells send, which may be nil, what changed.
func (st *state) apply(seq uint64, now int64, b []byte, send func(store.Change)) error {
	st.applied = seq
	st.bundles = append(st.bundles, bundle{seq: seq, size: int32(len(b) + bundleCost)})
	st.total += int64(len(b) + bundleCost)
	st.remember(seq, b)
	if len(b) >= bodyStart && st.turn.wanted && st.turn.of == writerID(b[1:bodyStart]) {
		st.turn.wanted = false
	}
	return effects(b, func(e *effect) {
		switch e.kind {
		case effectTurn:
			st.turn.wanted, st.turn.of = true, writerID(b[1:bodyStart])
		case effectPut, effectKeep:
			it := item{
				revision: revision(seq, e.place), modified: now, seq: seq, offset: uint32(e.offset), length: uint32(len(e.value)),
			}
			if e.ttl > 0 {
				it.expires = now + int64(e.ttl)
			}
			name := string(e.name)
			old, was := st.keys.find(name)
			if e.kind == effectKeep {
				it.revision, it.modified, it.expires = e.revision, e.modified, e.expires
			}
			st.put(name, it, old, was)
			if e.kind == effectPut && send != nil {
				send(store.Change{KV: store.KV{Key: name, Value: e.value, Revision: it.revision, Modified: time.Unix(0, now)}})
			}
		case effectDelete:
			if old, ok := st.keys.find(string(e.name)); ok {
				st.drop(string(e.name), old)
				if send != nil {
					send(store.Change{Deleted: true, KV: store.KV{Key: string(e.name), Revision: revision(seq, e.place), Modified: time.Unix(0, now)}})
				}
			}
		case effectAdd:
			set := st.sets[string(e.name)]
			if set == nil {
				set = new(ordered.Set)
				st.sets[string(e.name)] = set
			}
			if _, ok := set.Score(string(e.member)); !ok {
				st.live += memberBytes(e)
			}
			set.Add(string(e.member), e.score)
			st.bundles[len(st.bundles)-1].adds++
		case effectRemove:
			if set := st.sets[string(e.name)]; set != nil && set.Remove(string(e.member)) {
				st.live -= memberBytes(e)
				if set.Len() == 0 {
					delete(st.sets, string(e.name))
				}
			}
		}
	})
}

// put makes it what stands at a key.
func (st *state) put(name string, it, old item, was bool) {
	if was {
		st.unhold(len(name), old)
	}
	hash := st.keys.put(name, it)
	st.live += keyBytes(len(name), it)
	st.bundles[len(st.bundles)-1].keys++
	second := max(it.expires/int64(time.Second), st.swept)
	if it.expires != 0 && (!was || old.expires/int64(time.Second) != second) {
		st.due[second] = append(st.due[second], hash)
	}
}

// drop takes a key out.
func (st *state) drop(key string, it item) {
	st.keys.drop(key)
	st.unhold(len(key), it)
}

// unhold notes that a bundle holds a value less.
func (st *state) unhold(name int, it item) {
	st.live -= keyBytes(name, it)
	if b := st.at(it.seq); b != nil {
		b.keys--
	}
}

func keyBytes(name int, it item) int64 { return int64(name) + int64(it.length) + keyCost }

func memberBytes(e *effect) int64 { return int64(len(e.name)+len(e.member)) + keyCost }

// remember keeps a bundle in memory, in the place of older ones.
func (st *state) remember(seq uint64, b []byte) {
	st.recent[seq] = b
	st.oldest = append(st.oldest, seq)
	st.size += len(b)
	for st.size > recentBytes && len(st.oldest) > 1 {
		st.size -= len(st.recent[st.oldest[0]])
		delete(st.recent, st.oldest[0])
		st.oldest = st.oldest[1:]
	}
}

// purged forgets the bundles up to seq, of which nothing is of use.
func (st *state) purged(seq uint64) {
	n := 0
	for n < len(st.bundles) && st.bundles[n].seq <= seq {
		st.total -= int64(st.bundles[n].size)
		n++
	}
	if n == 0 {
		return
	}
	st.bundles = append(st.bundles[:0:0], st.bundles[n:]...)
}

// ofUse adds to writes what of a bundle still counts.
func (st *state) ofUse(writes []byte, seq uint64, body []byte) []byte {
	_ = effects(body, func(e *effect) { // what cannot be read was reported when it came
		switch e.kind {
		case effectPut, effectKeep:
			if it, ok := st.keys.find(string(e.name)); ok && it.seq == seq && int(it.offset) == e.offset {
				writes = appendKeep(writes, e.name, it, e.value)
			}
		case effectAdd:
			if set := st.sets[string(e.name)]; set != nil {
				if score, ok := set.Score(string(e.member)); ok && score == e.score {
					writes = appendAdd(writes, e.name, e.member, score)
				}
			}
		}
	})
	return writes
}

// at returns the bundle at seq, nil where there is none.
func (st *state) at(seq uint64) *bundle {
	i := sort.Search(len(st.bundles), func(i int) bool { return st.bundles[i].seq >= seq })
	if i < len(st.bundles) && st.bundles[i].seq == seq {
		return &st.bundles[i]
	}
	return nil
}

// expire drops the keys whose time is over at now. Those that are watched it leaves, and returns them.
func (st *state) expire(now int64, watched func(key string) bool) (left []string) {
	for _, key := range st.expired(now) {
		if watched(key) {
			left = append(left, key)
		} else if it, ok := st.keys.find(key); ok {
			st.drop(key, it)
		}
	}
	return left
}

// expired returns the keys whose time is over at now. It tells each once for each second in which it was to expire, had it not been
// written again.
func (st *state) expired(now int64) []string {
	second := now / int64(time.Second)
	if st.swept == 0 {
		st.swept = second
		for s := range st.due {
			st.swept = min(st.swept, s)
		}
	}
	var keys []string
	for ; st.swept < second && len(st.due) > 0; st.swept++ {
		for _, hash := range st.due[st.swept] {
			st.keys.each(hash, func(key string, it item) {
				if it.expires != 0 && it.expires <= now {
					keys = append(keys, key)
				}
			})
		}
		delete(st.due, st.swept)
	}
	st.swept = max(st.swept, second)
	return keys
}

// again has expire return a key once more.
func (st *state) again(key string) { st.due[st.swept] = append(st.due[st.swept], st.keys.sum(key)) }
