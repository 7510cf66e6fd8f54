//go:build unix

package ledger

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// What is answered before it is due is told apart from what is late.
func TestDelayed(t *testing.T) {
	t.Parallel()
	began := time.Now()
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	b := &book{entries: map[string]*entry{
		"late":    {sent: at(3), due: at(3), answered: at(5)},
		"early":   {sent: at(3), due: at(3), answered: at(2)},
		"waits":   {sent: at(3), due: at(3)},
		"at once": {sent: at(0), answered: at(9)},
	}}
	late, early := b.delayed()
	if got, want := fmt.Sprint(late, early), "[2s] 1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if rep := (&Report{Early: early}); !rep.Bad() {
		t.Error("a job that is too early is not bad")
	}
}

// What is open at several moments counts from the last of them, and is told apart.
func TestSince(t *testing.T) {
	t.Parallel()
	began := time.Now()
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	b := &book{entries: map[string]*entry{
		"between":  {sent: at(4), answered: at(9)},
		"first":    {sent: at(8), answered: at(13)},
		"slow":     {sent: at(0), answered: at(16)},
		"both":     {sent: at(5), answered: at(26)},
		"three":    {sent: at(9), answered: at(43)},
		"after":    {sent: at(41), answered: at(99)},
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
