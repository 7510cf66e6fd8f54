package redisstream

import (
	"context"
	"strconv"
	"unsafe"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

var _ transport.Joint = (*publisher)(nil)

// maxEnding is the largest message that a script publishes: it is held several times over in the server meanwhile, which does
// nothing else.
const maxEnding = 64 << 10

// ending publishes a message and settles a delivery within the script of a store in the same Redis, which knows it by its methods.
type ending struct {
	d      *delivery
	stream string // "" where nothing is published
	add    string
}

// Database returns the client.
func (p *publisher) Database() any { return p.t.client }

// Ending implements transport.Joint. A delivery that another has taken meanwhile is settled all the same: the job is done, and
// whoever has its message has no work with it any more.
func (p *publisher) Ending(ctx context.Context, d transport.Delivery, m *transport.Message) transport.Ending {
	mine, ok := d.(*delivery)
	if !ok || mine.src.t != p.t || mine.settled.Load() || mine.lost.Load() {
		return nil
	}
	if m == nil {
		return &ending{d: mine}
	}
	if checkName(m.Subject) != nil || m.Size() > min(maxEnding, p.MaxBytes()) || len(m.Header) > maxFields/2-4 {
		return nil
	}
	var room [64]any
	return &ending{d: mine, stream: m.Subject, add: pack(p.entry(ctx, room[:0], m), m.Size())}
}

// Entry is what is acknowledged and deleted, and the hash that counts such under settled:<group>.
func (e *ending) Entry() (stream, group, id, counts string) {
	return e.d.src.stream, e.d.src.group, e.d.id, e.d.src.keys.count
}

// Add is the stream that gets an entry, and what follows its name in XADD as a MessagePack list; "" and "" for none.
func (e *ending) Add() (stream, args string) { return e.stream, e.add }

// Settled implements transport.Ending.
func (e *ending) Settled() {
	if e.d.settled.CompareAndSwap(false, true) {
		e.d.src.forget(e.d)
	}
}

// pack makes a MessagePack list of arguments of XADD. size is about how many bytes they have together.
func pack(args []any, size int) string {
	b := make([]byte, 0, size+3*len(args)+64)
	b = append(b, 0xdc, byte(len(args)>>8), byte(len(args)))
	for _, a := range args {
		switch a := a.(type) {
		case string:
			b = append(packHead(b, len(a)), a...)
		case *string:
			b = append(packHead(b, len(*a)), *a...)
		case []byte:
			b = append(packHead(b, len(a)), a...)
		case int64:
			s := strconv.FormatInt(a, 10)
			b = append(packHead(b, len(s)), s...)
		}
	}
	return unsafe.String(unsafe.SliceData(b), len(b)) // nobody else has b
}

// packHead appends what stands before a string of n bytes.
func packHead(b []byte, n int) []byte {
	switch {
	case n < 32:
		return append(b, 0xa0|byte(n))
	case n < 1<<16:
		return append(b, 0xda, byte(n>>8), byte(n))
	}
	return append(b, 0xdb, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}
