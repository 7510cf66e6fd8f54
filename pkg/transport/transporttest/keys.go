package transporttest

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Messages of one key are at one owner at a time, where the broker says so.
func (s *suite) keyHasOneOwner(t *testing.T) {
	tr, subject := s.jobs(t)
	if !tr.Features().KeyedOwner {
		return
	}
	const keys, each = 10, 30
	type hold struct{ owner, n int }
	var mu sync.Mutex
	holds := map[string]hold{}
	out := map[transport.Delivery]bool{}
	var done tally
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for owner := range 2 {
		src := s.source(t, s.open(t), subject)
		wg.Go(func() {
			for ctx.Err() == nil && done.len() < keys*each {
				fctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
				ds, _ := src.Fetch(fctx, 8)
				cancel()
				mu.Lock()
				for _, d := range ds {
					key := string(d.Message().Key)
					h := holds[key]
					for x := range out { // what was taken away counts no more
						if string(x.Message().Key) == key && h.owner != owner && x.Lost() {
							delete(out, x)
							h.n--
						}
					}
					if h.n > 0 && h.owner != owner {
						t.Errorf("key %q is at two owners", key)
					}
					h.owner = owner
					h.n++
					holds[key] = h
					out[d] = true
				}
				mu.Unlock()
				pause(ctx, time.Millisecond)
				for _, d := range ds {
					mu.Lock()
					if out[d] {
						delete(out, d)
						key := string(d.Message().Key)
						h := holds[key]
						h.n--
						holds[key] = h
					}
					d.Ack()
					mu.Unlock()
					done.add(d.Message().Body)
				}
			}
		})
	}
	ms := numbered(subject, keys*each)
	for i, m := range ms {
		m.Key = []byte("key " + strings.Repeat("k", 1+i%keys))
	}
	publish(t, tr, ms...)
	wg.Wait()
	if got := done.len(); got != keys*each {
		t.Errorf("%d of %d messages were settled", got, keys*each)
	}
}

// A sole source gets what another has out before anything new, and all of it in order. Where a key has one owner, nobody needs that.
func (s *suite) soleTakesOver(t *testing.T) {
	tr, subject := s.jobs(t)
	if tr.Features().KeyedOwner {
		return
	}
	const messages = 60
	publish(t, tr, numbered(subject, messages)...)
	cfg := s.config(subject)
	cfg.Sole = true
	// One that goes on, one that hands everything back last first, and one that closes with everything out.
	fetch(t, s.source(t, s.open(t), subject), 20)
	back := s.sourceWith(t, s.open(t), cfg)
	ds := fetch(t, back, 30)
	for _, d := range slices.Backward(ds) {
		d.Release()
	}
	closeAll(t, back)
	closed := s.sourceWith(t, s.open(t), cfg)
	fetch(t, closed, 40)
	closeAll(t, closed)
	var got, want []string
	for i, d := range fetch(t, s.sourceWith(t, s.open(t), cfg), messages) {
		got, want = append(got, string(d.Message().Body)), append(want, strconv.Itoa(i))
		d.Ack()
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
