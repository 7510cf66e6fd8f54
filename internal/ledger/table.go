//go:build unix

package ledger

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// spread is the median and the longest of some times.
func spread(ds []time.Duration) string {
	if len(ds) == 0 {
		return "–"
	}
	s := slices.Sorted(slices.Values(ds))
	return fmt.Sprintf("%.1f s, %.1f s", s[len(s)/2].Seconds(), s[len(s)-1].Seconds())
}

// twice says how many jobs several kills struck, and how long the longest of them took from the first.
func (r *Report) twice() string {
	if r.Several == 0 {
		return "0"
	}
	return fmt.Sprintf("%d, %.1f s", r.Several, r.First.Seconds())
}

// Table is reports as Markdown, with what its times are counted from.
func Table(reps []*Report) string {
	var b strings.Builder
	b.WriteString("| broker | jobs | replicas | kills | of them at named points | restarts | cuts | lost | two different results | stuck | failed | results repeated | run again after a crash | run twice under one lease | recovery, median and longest | open at several kills, longest since the first | healing | delayed jobs late by | took |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	var lease time.Duration
	for _, r := range reps {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | **%d** | **%d** | **%d** | %d | %d | %d | **%d** | %s | %s | %s | %s | %s |\n",
			r.Broker, r.Jobs, r.Replicas, len(r.Recovery), r.named(), r.Restarts, r.Cuts, r.Lost, r.Different, r.Stuck, r.Failed, r.Repeats,
			r.Reruns, r.Doubled, spread(r.Recovery), r.twice(), spread(r.Healing), spread(r.Late), r.Took.Round(time.Second))
		lease = r.Lease
	}
	fmt.Fprintf(&b, "\nRecovery is from the last kill at which a job was open until its result, wanted within the lease of %.0f s and two more. A job that was open at several\nkills is counted apart, with the longest time since the first of them.\n", lease.Seconds())
	return b.String()
}
