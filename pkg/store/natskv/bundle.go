package natskv

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// A message of the log is a bundle: what one or more transactions did, in order. It says effects and no conditions, so whoever
// begins to read in the middle needs nothing from before.
//
//	bundle       = version writer transaction...
//	transaction  = 0 effect...
//	effect       = kind name ...
//
// The writer is eight bytes that name a store that is open somewhere. Numbers are varints, names and values are preceded by their length. All keys that one transaction puts have the bundle's sequence
// and the transaction's place in it as their revision.
const bundleVersion = 1

// Kinds of effects. The numbers are the format.
const (
	effectNext    = 0 // another transaction begins
	effectPut     = 1 // name, TTL in milliseconds (0: none), value
	effectDelete  = 2 // name
	effectAdd     = 3 // name, member, score
	effectRemove  = 4 // name, member
	effectKeep    = 5 // name, revision, when modified and when it expires (Unix nanoseconds, 0: never), value; a put that was moved
	effectNothing = 6
	effectTurn    = 7 // the writer asks the others to let it write; see Store.yield
)

// writerID is a store's name in its bundles.
type writerID [8]byte

// bodyStart is where effects begin.
const bodyStart = 1 + len(writerID{})

// placeBits is how many bits of a revision tell a transaction's place in its bundle.
const (
	placeBits = 10
	maxPlaces = 1 << placeBits
)

var errBundle = errors.New("not a bundle of this version: another program writes to the stream, or a newer version of this one")

// revision of what a transaction puts.
func revision(seq uint64, place int) int64 { return int64(seq)<<placeBits | int64(place) }

// effect is one of a bundle. Strings and the value share the bundle's memory.
type effect struct {
	kind     byte
	place    int
	name     []byte
	member   []byte
	score    int64
	ttl      time.Duration
	revision int64
	modified int64
	expires  int64
	offset   int // of the value
	value    []byte
}

func appendBytes[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// appendOp adds what an operation does.
func appendOp(b []byte, o store.Op) []byte {
	switch o.Kind {
	case store.OpPut:
		b = appendBytes(append(b, effectPut), o.Key)
		b = binary.AppendUvarint(b, uint64((o.TTL+time.Millisecond-1)/time.Millisecond))
		return appendBytes(b, o.Value)
	case store.OpDelete:
		return appendBytes(append(b, effectDelete), o.Key)
	case store.OpAdd:
		return appendAdd(b, o.Key, o.Member, o.Score)
	}
	return appendBytes(appendBytes(append(b, effectRemove), o.Key), o.Member)
}

func appendAdd[T string | []byte](b []byte, set, member T, score int64) []byte {
	b = appendBytes(appendBytes(append(b, effectAdd), set), member)
	return binary.AppendVarint(b, score)
}

// appendKeep moves a put.
func appendKeep(b []byte, name []byte, it item, value []byte) []byte {
	b = appendBytes(append(b, effectKeep), name)
	b = binary.AppendVarint(b, it.revision)
	b = binary.AppendVarint(b, it.modified)
	b = binary.AppendVarint(b, it.expires)
	return appendBytes(b, value)
}

// reader reads a bundle from the front.
type reader struct {
	b   []byte
	at  int
	bad bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b[r.at:])
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.at += n
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b[r.at:])
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.at += n
	return v
}

func (r *reader) bytes() []byte {
	n := r.uint()
	if r.bad || n > uint64(len(r.b)-r.at) {
		r.bad = true
		return nil
	}
	r.at += int(n)
	return r.b[r.at-int(n) : r.at : r.at]
}

// begin returns the beginning of a bundle.
func (w writerID) begin() []byte {
	return append(append(make([]byte, 0, 4<<10), bundleVersion), w[:]...)
}

// effects calls f for each effect of a bundle. Of one that is no bundle it tells as much as it can read.
func effects(b []byte, f func(e *effect)) error {
	if len(b) < bodyStart || b[0] != bundleVersion {
		return errBundle
	}
	r := reader{b: b, at: bodyStart}
	place := -1
	for r.at < len(b) {
		e := effect{kind: b[r.at], place: place}
		r.at++
		if e.kind == effectNext {
			place++
			continue
		}
		switch e.kind {
		case effectNothing:
			continue
		case effectTurn:
			f(&e)
			continue
		}
		e.name = r.bytes()
		switch e.kind {
		case effectPut:
			e.ttl = time.Duration(min(r.uint(), 1<<62/uint64(time.Millisecond))) * time.Millisecond
			e.value = r.bytes()
		case effectDelete:
		case effectAdd:
			e.member = r.bytes()
			e.score = r.int()
		case effectRemove:
			e.member = r.bytes()
		case effectKeep:
			e.revision, e.modified, e.expires = r.int(), r.int(), r.int()
			e.value = r.bytes()
		default:
			r.bad = true
		}
		if r.bad || place < 0 {
			return errBundle
		}
		e.offset = r.at - len(e.value)
		f(&e)
	}
	return nil
}
