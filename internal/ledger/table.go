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

// Table is reports as Markdown.
func Table(reps []*Report) string {
	var b strings.Builder
	b.WriteString("| broker | jobs | replicas | kills | of them at named points | restarts | cuts | lost | two different results | stuck | failed | results repeated | run again after a crash | run twice under one lease | recovery, median and longest | healing | took |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range reps {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | **%d** | **%d** | **%d** | %d | %d | %d | **%d** | %s | %s | %s |\n",
			r.Broker, r.Jobs, r.Replicas, len(r.Recovery), r.named(), r.Restarts, r.Cuts, r.Lost, r.Different, r.Stuck, r.Failed, r.Repeats,
			r.Reruns, r.Doubled, spread(r.Recovery), spread(r.Healing), r.Took.Round(time.Second))
	}
	return b.String()
}
