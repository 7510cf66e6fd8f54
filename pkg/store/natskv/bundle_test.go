package natskv

import (
	"bytes"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

func TestBundle(t *testing.T) {
	t.Parallel()
	id := writerID{1, 2, 3}
	b := append(id.begin(), effectNext)
	b = appendOp(b, store.Put("p/a", []byte("value"), 1500*time.Microsecond))
	b = appendOp(b, store.Delete("p/b"))
	b = append(b, effectNext, effectNothing, effectNext)
	b = appendOp(b, store.Add("p/s", "m", -7))
	b = appendOp(b, store.Remove("p/s", "n"))
	b = appendKeep(b, []byte("p/c"), item{revision: 99, modified: -5, expires: 1 << 60}, []byte("kept"))
	b = append(b, effectTurn)
	var got []effect
	if err := effects(b, func(e *effect) { got = append(got, *e) }); err != nil {
		t.Fatal(err)
	}
	want := []effect{
		{kind: effectPut, name: []byte("p/a"), ttl: 2 * time.Millisecond, value: []byte("value")},
		{kind: effectDelete, name: []byte("p/b")},
		{kind: effectAdd, place: 2, name: []byte("p/s"), member: []byte("m"), score: -7},
		{kind: effectRemove, place: 2, name: []byte("p/s"), member: []byte("n")},
		{kind: effectKeep, place: 2, name: []byte("p/c"), revision: 99, modified: -5, expires: 1 << 60, value: []byte("kept")},
		{kind: effectTurn, place: 2},
	}
	if len(got) != len(want) {
		t.Fatalf("%d effects, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.kind != w.kind || g.place != w.place || !bytes.Equal(g.name, w.name) || !bytes.Equal(g.member, w.member) || g.score != w.score ||
			g.ttl != w.ttl || g.revision != w.revision || g.modified != w.modified || g.expires != w.expires || !bytes.Equal(g.value, w.value) {
			t.Errorf("effect %d is %+v, want %+v", i, g, w)
		}
		if len(g.value) > 0 && !bytes.Equal(b[g.offset:g.offset+len(g.value)], g.value) {
			t.Errorf("effect %d: the value is not at %d", i, g.offset)
		}
	}
}

// FuzzBundle reads what anybody may have written to the stream: it never panics, and takes in what it understands.
func FuzzBundle(f *testing.F) {
	id := writerID{1}
	f.Add(appendOp(append(id.begin(), effectNext), store.Put("p/a", []byte("v"), time.Hour)))
	f.Add(appendOp(append(id.begin(), effectNext), store.Add("p/s", "m", 1)))
	f.Add(appendKeep(append(id.begin(), effectNext), []byte("p/a"), item{revision: 1}, nil))
	f.Add(append(id.begin(), effectNext, effectPut, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		st := newState()
		now := time.Now().UnixNano()
		err := st.apply(1, now, b, func(store.Change) {})
		for key, it := range st.keys.all() {
			if int(it.offset)+int(it.length) > len(b) {
				t.Fatalf("key %q has its value at %d, %d bytes, in %d (%v)", key, it.offset, it.length, len(b), err)
			}
		}
		st.ofUse(nil, 1, b)
		st.expired(now)
	})
}

// Whoever begins to read where the beginning was purged comes to the same state as who has read everything.
func TestStateFromTheMiddle(t *testing.T) {
	t.Parallel()
	var id writerID
	now := time.Now().UnixNano()
	whole := newState()
	var log [][]byte
	add := func(writes []byte) {
		t.Helper()
		b := append(append(id.begin(), effectNext), writes...)
		log = append(log, b)
		if err := whole.apply(uint64(len(log)), now, b, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []store.Op{
		store.Put("p/kept", []byte("1"), 0), store.Put("p/gone", []byte("1"), 0), store.Add("p/s", "kept", 1), store.Add("p/s", "gone", 2),
		store.Put("p/over", []byte("1"), 0), store.Delete("p/gone"), store.Remove("p/s", "gone"), store.Put("p/over", []byte("2"), time.Hour),
	} {
		add(appendOp(nil, o))
	}
	var moved []byte
	for i, b := range log[:6] {
		moved = whole.ofUse(moved, uint64(i+1), b)
	}
	add(moved)
	part := newState()
	for i, b := range log[6:] {
		if err := part.apply(uint64(7+i), now, b, nil); err != nil {
			t.Fatal(err)
		}
	}
	if part.keys.len() != 2 || whole.keys.len() != 2 {
		t.Fatalf("keys %v, want %v", part.keys.all(), whole.keys.all())
	}
	for key, want := range whole.keys.all() {
		if got, _ := part.keys.find(key); got != want {
			t.Errorf("%s is %+v, want %+v", key, got, want)
		}
	}
	if _, ok := part.sets["p/s"].Score("kept"); !ok || part.sets["p/s"].Len() != 1 {
		t.Errorf("set has %d members", part.sets["p/s"].Len())
	}
	for _, b := range whole.bundles[:6] {
		if b.keys != 0 {
			t.Errorf("bundle %d is counted to hold %d keys after all were moved", b.seq, b.keys)
		}
	}
}

// Keys that were written again, and expire while nobody looks, are forgotten once: what is of use is known to the byte.
func TestExpiredLongAgo(t *testing.T) {
	t.Parallel()
	var id writerID
	now := time.Now().UnixNano()
	st := newState()
	for i := range 5 {
		b := append(id.begin(), effectNext)
		for k := range 3 {
			b = appendOp(b, store.Put("p/"+string(rune('a'+k)), []byte("value"), time.Minute))
		}
		if err := st.apply(uint64(i+1), now+int64(i)*int64(time.Second), b, nil); err != nil {
			t.Fatal(err)
		}
	}
	left := st.expire(now+int64(time.Hour), func(key string) bool { return key == "p/a" })
	if it, ok := st.keys.find("p/a"); !ok || st.keys.len() != 1 || st.live != keyBytes(3, it) {
		t.Errorf("%d keys, %d bytes of use", st.keys.len(), st.live)
	}
	if len(left) == 0 {
		t.Error("nobody is told of the key that is watched")
	}
}
