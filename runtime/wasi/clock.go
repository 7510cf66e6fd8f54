package wasi

import (
	"context"
	"encoding/binary"
	"math"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"
)

// Clocks.
const (
	realtime  = 0
	monotonic = 1
)

// now reads a clock in nanoseconds.
func (p *Process) now(clock uint32) (uint64, bool) {
	switch clock {
	case realtime:
		return uint64(time.Now().UnixNano()), true
	case monotonic:
		return uint64(max(time.Since(p.Start), 0)) + 1, true // never 0, which some guests take for no time at all
	}
	return 0, false
}

func clockTimeGet(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	p.drew = true
	t, ok := p.now(uint32(stack[0]))
	if !ok {
		return eINVAL
	}
	if !m.WriteUint64Le(uint32(stack[2]), t) {
		return eFAULT
	}
	return eOK
}

func clockResGet(_ context.Context, _ *Process, m api.Memory, stack []uint64) errno {
	if uint32(stack[0]) > monotonic {
		return eINVAL
	}
	if !m.WriteUint64Le(uint32(stack[1]), 1) {
		return eFAULT
	}
	return eOK
}

// maxSubscriptions is how many events one poll_oneoff may wait for.
const maxSubscriptions = 1024

// Sizes and tags of subscriptions and events.
const (
	subscriptionSize = 48
	eventSize        = 32

	onClock = 0
	onRead  = 1
	onWrite = 2

	absolute  = 1 // flag of a clock's subscription
	hangup    = 1 // flag of a stream's event
	atForever = math.MaxInt64
)

// waiting is one subscription: ready at once, or after a time.
type waiting struct {
	userdata uint64
	tag      byte
	err      errno
	bytes    uint64
	flags    uint16
	after    time.Duration // 0: ready
}

// pollOneoff is poll_oneoff(subscriptions, events, n, result): it answers all that is ready, and waits for the first when
// nothing is. Streams are always ready. When ctx ends while it waits the guest is stopped, which would otherwise take the time
// for passed.
func pollOneoff(ctx context.Context, p *Process, m api.Memory, stack []uint64) errno {
	p.acted = true
	n := uint32(stack[2])
	if n == 0 || n > maxSubscriptions {
		return eINVAL
	}
	in, ok := m.Read(uint32(stack[0]), n*subscriptionSize)
	if !ok {
		return eFAULT
	}
	list := make([]waiting, 0, 8)
	first := time.Duration(atForever)
	for ; len(in) > 0; in = in[subscriptionSize:] {
		w, ok := p.subscribe(in)
		if !ok {
			return eINVAL
		}
		first = min(first, w.after)
		list = append(list, w)
	}
	out, ok := m.Read(uint32(stack[1]), n*eventSize)
	if !ok {
		return eFAULT
	}
	wait(ctx, first)
	events := uint32(0)
	for _, w := range list {
		if w.after > first {
			continue
		}
		events++
		b := out[:eventSize]
		out = out[eventSize:]
		clear(b)
		binary.LittleEndian.PutUint64(b, w.userdata)
		binary.LittleEndian.PutUint16(b[8:], uint16(w.err))
		b[10] = w.tag
		binary.LittleEndian.PutUint64(b[16:], w.bytes)
		binary.LittleEndian.PutUint16(b[24:], w.flags)
	}
	if !m.WriteUint32Le(uint32(stack[3]), events) {
		return eFAULT
	}
	return eOK
}

// subscribe reads a subscription; ok is false when it is none.
func (p *Process) subscribe(b []byte) (w waiting, ok bool) {
	w.userdata, w.tag = binary.LittleEndian.Uint64(b), b[8]
	id := binary.LittleEndian.Uint32(b[16:])
	switch w.tag {
	case onClock:
		now, known := p.now(id)
		if !known {
			w.err = eINVAL
			return w, true
		}
		timeout := binary.LittleEndian.Uint64(b[24:])
		if binary.LittleEndian.Uint16(b[40:])&absolute != 0 {
			timeout -= min(now, timeout)
		}
		w.after = time.Duration(min(timeout, atForever))
	case onRead:
		switch {
		case p.at(id) != nil: // files are always ready
			w.bytes = 1
		case id != 0 || !p.open(id):
			w.err = eBADF
		case p.read == len(p.Stdin):
			w.flags = hangup
		default:
			w.bytes = uint64(len(p.Stdin) - p.read)
		}
	case onWrite:
		if p.at(id) == nil && (id == 0 || !p.open(id)) {
			w.err = eBADF
		}
		w.bytes = 1 << 16
	default:
		return w, false
	}
	return w, true
}

// wait waits for d.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		panic(sys.NewExitError(sys.ExitCodeContextCanceled))
	}
}
