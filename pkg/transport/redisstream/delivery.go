package redisstream

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// delivery is one entry that the source holds.
type delivery struct {
	src         *source
	id          string
	msg         transport.Message
	redelivered bool

	gone    bool // the entry is no longer in the stream and nobody has its message
	lost    atomic.Bool
	settled atomic.Bool
	// until is when the lease ends at the earliest, in the source's time. Before then no other can have claimed the entry.
	until atomic.Int64
	// touched is when the owner last asked to keep the delivery, whether or not it could be done.
	touched atomic.Int64
}

func (d *delivery) Message() *transport.Message { return &d.msg }
func (d *delivery) Position() string            { return d.src.stream + "/" + d.id }
func (d *delivery) Redelivered() bool           { return d.redelivered }
func (d *delivery) Lost() bool                  { return d.lost.Load() }

// Published is the time in the entry's id, by the server's clock unless the producer chose the id.
func (d *delivery) Published() time.Time { return published(d.id) }

// published is the time in an entry's id.
func published(id string) time.Time {
	ms, _, _ := strings.Cut(id, "-")
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(n)
}

func (d *delivery) Ack() {
	if d.settled.CompareAndSwap(false, true) {
		d.src.settler.ack(d)
	}
}

// Dead is Ack: Redis keeps no reason, the dead letter does.
func (d *delivery) Dead(string) { d.Ack() }

func (d *delivery) Release() {
	if d.settled.CompareAndSwap(false, true) {
		d.src.settler.release(d)
	}
}

func (d *delivery) Retry(ctx context.Context, after time.Duration, moved *transport.Message) error {
	s := d.src
	if d.settled.Load() {
		return nil
	}
	if d.lost.Load() {
		d.settled.Store(true)
		s.forget(d)
		return nil
	}
	if n := int64(moved.Size()); n > s.t.maxBytes.Load() {
		return fmt.Errorf("move message of stream %q: %w: %d bytes", s.stream, transport.ErrTooLarge, n)
	}
	// Rounded up, as in the script: never early. The longest of all waits must not overflow.
	millis := after.Milliseconds()
	if after%time.Millisecond > 0 {
		millis++
	}
	args := encode([]any{s.group, s.consumer, d.id, millis}, moved)
	if len(args) > maxFields {
		return fmt.Errorf("move message of stream %q: %w: %d fields, of which a script takes %d",
			s.stream, transport.ErrTooLarge, (len(args)-4)/2, maxFields/2)
	}
	ours, err := moveScript.Run(ctx, s.t.client, []string{s.keys.stream, s.keys.due, s.keys.moved, s.keys.count}, args...).Int()
	switch {
	case noGroup(err):
		// The group went and the entry's state with it: it is delivered again if the stream still has it.
		ours = 0
		s.regroup.Store(true)
	case err != nil:
		return fail("move message of stream", s.stream, err)
	}
	if ours == 0 {
		d.lost.Store(true)
	}
	d.settled.Store(true)
	s.forget(d)
	s.wakeKeeper()
	return nil
}
