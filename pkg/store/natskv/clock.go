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
	// clockBack is by how much more than can be told the server's clock must have gone back for ours to follow it.
	clockBack = time.Second
)

// clock estimates the server's clock, by which messages are stamped. It is off by half a round trip of the best sample, and by
// what the clocks drifted since; never behind a time that the server was seen to have stamped, and it does not go back unless the
// server's was put back. What our own clock is set to meanwhile changes nothing: it goes by the time that has passed. With a server in
// the same process the two clocks are one.
type clock struct {
	mu    sync.Mutex
	stood time.Time     // where the server's clock stood when it was sampled
	bound time.Duration // how far that may be off
	at    time.Time     // when it was sampled
	last  time.Time     // the latest time given or seen
}

// now returns the server's time.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.reckon(time.Now()); t.After(c.last) {
		c.last = t
	}
	return c.last
}

// reckon returns where the server's clock stands at a moment, by the last sample. c.mu is held.
func (c *clock) reckon(at time.Time) time.Time {
	if c.at.IsZero() {
		return at.Round(0)
	}
	return c.stood.Add(at.Sub(c.at))
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
	stood, own := t.Round(0).Add(bound), got.Round(0)
	if stood.Sub(own).Abs() <= bound {
		stood = own // cannot be told from our own clock
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.at.IsZero() && bound > c.bound+clockDrift && stood.Sub(c.reckon(got)).Abs() <= bound+c.bound+clockDrift {
		return // a slow sample that says nothing new
	}
	c.stood, c.bound, c.at = stood, bound, got
	if c.last.Sub(stood) > bound+clockBack {
		c.last = stood // until then what others write would look old, and their leases run out
	}
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
