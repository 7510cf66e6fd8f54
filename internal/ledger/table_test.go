//go:build unix

package ledger

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// What is open at several moments counts from the last of them, and is told apart.
func TestSince(t *testing.T) {
	t.Parallel()
	began := time.Now()
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	b := &book{entries: map[string]*entry{
		"between":  {at(4), at(9)},
		"first":    {at(8), at(13)},
		"slow":     {at(0), at(16)},
		"both":     {at(5), at(26)},
		"three":    {at(9), at(43)},
		"after":    {at(41), at(99)},
		"open":     {sent: at(9)},
		"not sent": {answered: at(11)},
	}}
	longest, several, first := b.since([]time.Time{at(40), at(10), at(20)})
	if got, want := fmt.Sprint(longest, several, first), "[6s 6s 3s] 2 33s"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	rep := &Report{Config: Config{Broker: "kafka", Lease: 6 * time.Second}, Recovery: longest, Several: several, First: first}
	for _, want := range []string{"| 6.0 s, 6.0 s | 2, 33.0 s |", "lease of 6 s"} {
		if table := Table([]*Report{rep}); !strings.Contains(table, want) {
			t.Errorf("%q is missing in\n%s", want, table)
		}
	}
}
