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
