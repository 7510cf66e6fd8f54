package natskv

import (
	"context"
	"sync"
	"time"
)

const (
	// clockEvery is how often the server is asked for its time.
	clockEvery = 30 * time.Second
	// clockDrift is what two clocks may drift apart in that time, at 100 ppm and with room.
	clockDrift = 10 * time.Millisecond
)

// clock estimates the server's clock, by which messages are stamped. It is off by half a round trip of the best sample, and by
// what the clocks drifted since; never behind a time that the server was seen to have stamped, and it never goes back. With a
// server in the same process the two clocks are one.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
	bound  time.Duration // how far offset may be off when it was sampled
	at     time.Time     // when it was sampled
	last   time.Time     // the latest time given or seen
}

// now returns the server's time.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := time.Now().Add(c.offset).Round(0); t.After(c.last) {
		c.last = t
	}
	return c.last
}

// saw takes note of a time that the server stamped.
func (c *clock) saw(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.last) {
		c.last = t
	}
}

// sample takes note that the server's clock stood at t between sent and got.
func (c *clock) sample(t, sent, got time.Time) {
	bound := got.Sub(sent) / 2
	offset := t.Sub(sent.Add(bound))
	if offset.Abs() <= bound {
		offset = 0 // cannot be told from our own clock
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.at.IsZero() && bound > c.bound+clockDrift && (offset-c.offset).Abs() <= bound+c.bound+clockDrift {
		return // a slow sample that says nothing new
	}
	c.offset, c.bound, c.at = offset, bound, got
}

// readClock asks the server for its time.
func (s *Store) readClock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	sent := time.Now()
	info, err := s.look(ctx)
	if err != nil {
		return err
	}
	s.clock.sample(info.TimeStamp, sent, time.Now())
	return nil
}

// keepClock reads the clock now and then. A failure leaves the last estimate.
func (s *Store) keepClock() {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
			if err := s.readClock(s.ctx); err != nil && s.ctx.Err() == nil {
				s.cfg.Log.Debug("cannot read the server's clock", "err", err)
			}
		}
	}
}
