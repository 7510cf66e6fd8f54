package natskv

import (
	"testing"
	"time"
)

// a process whose own clock is a minute ahead or behind measures ages by the server's.
func TestClockOfAnotherMachine(t *testing.T) {
	t.Parallel()
	for _, skew := range []time.Duration{time.Minute, -time.Minute} {
		var c clock
		ours := time.Now()
		c.sample(ours.Add(2*time.Millisecond-skew), ours, ours.Add(4*time.Millisecond))
		modified := c.now() // by the server, which then stamps a record
		c.saw(modified)
		if off := time.Since(modified) - skew; off.Abs() > time.Second {
			t.Errorf("with a clock %s ahead the server's is taken to be %s off", skew, off)
		}
		if age := c.now().Sub(modified); age < 0 || age > time.Second {
			t.Errorf("with a clock %s ahead a fresh record is %s old", skew, age)
		}
	}
}

// the server's clock is put back by an hour, and what is written then is fresh as soon as that is known. Less than can be told
// takes nothing back.
func TestServerClockIsPutBack(t *testing.T) {
	t.Parallel()
	var c clock
	ours := time.Now()
	for _, back := range []time.Duration{0, 900 * time.Millisecond, time.Hour} {
		before := c.now()
		c.sample(ours.Add(2*time.Millisecond-back), ours, ours.Add(4*time.Millisecond))
		now := c.now()
		if back < time.Second && now.Before(before) {
			t.Errorf("put back by %s it goes back by %s", back, before.Sub(now))
		}
		if off := time.Until(now) + back; off.Abs() > 2*time.Second {
			t.Errorf("put back by %s it is taken to be %s off", back, off)
		}
	}
}
