//go:build unix

package ledger

import (
	"fmt"
	"slices"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/crash"
)

// fault is one thing that went wrong.
type fault struct {
	at    time.Time
	what  string
	kill  bool
	point crash.Point // of a kill at a named point
}

// lapse is a time in which a replica could not renew its leases, so that some may have run out.
type lapse struct {
	replica  int
	from, to time.Time
}

type misfortune int

const (
	killing misfortune = iota
	restart
	cutting
)

// misfortunes lets everything happen that the configuration wants, spread over the time.
func (r *run) misfortunes() {
	var plan []misfortune
	plan = append(plan, slices.Repeat([]misfortune{killing}, r.cfg.Kills)...)
	plan = append(plan, slices.Repeat([]misfortune{restart}, r.cfg.Restarts)...)
	plan = append(plan, slices.Repeat([]misfortune{cutting}, r.cfg.Cuts)...)
	r.dice.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	began, restarts, cuts := time.Now(), 0, 0
	for i, what := range plan {
		// At a random moment of its share of the time, in the first half, so that it is over before the next.
		share := r.cfg.Spread / time.Duration(len(plan))
		pause(r.t.Context(), time.Until(began.Add(share*time.Duration(i)+time.Duration(r.dice.Int64N(int64(share/2))))))
		if r.t.Context().Err() != nil {
			return
		}
		x := r.replicas[r.dice.IntN(len(r.replicas))]
		switch what {
		case killing:
			wanted, at := x.now.point, x.fall()
			where := "at any moment"
			if at != "" {
				where = string(at)
			} else if wanted != "" {
				where += fmt.Sprintf(", as it did not come to %s", wanted)
			}
			r.happened(fault{x.now.ended(), fmt.Sprintf("replica %d killed %s", x.n, where), true, at})
			time.Sleep(time.Duration(r.dice.Int64N(int64(500 * time.Millisecond)))) // how long it stays away is what is random
			x.start(r.fate())
		case restart:
			s := r.rig.servers[restarts%len(r.rig.servers)]
			from, how := time.Now(), "killed"
			if restarts%3 == 1 {
				how = "stopped"
				s.Stop()
			} else {
				s.Kill()
			}
			time.Sleep(time.Duration(r.dice.Int64N(int64(time.Second))))
			s.Start()
			r.happened(fault{at: from, what: fmt.Sprintf("server %d %s, back after %.1f s", restarts%len(r.rig.servers), how, time.Since(from).Seconds())})
			r.away(from, r.replicas...)
			restarts++
		case cutting:
			from, length := time.Now(), time.Second+time.Duration(r.dice.Int64N(int64(r.cfg.Lease/3)))
			if cuts%3 == 2 {
				length = r.cfg.Lease + r.cfg.Lease/2 // its leases run out
			}
			for _, p := range r.rig.proxies[x.n] {
				if cuts%2 == 0 {
					p.Cut()
				} else {
					p.Silence()
				}
			}
			r.happened(fault{at: from, what: fmt.Sprintf("replica %d cut off for %.1f s", x.n, length.Seconds())})
			time.Sleep(length)
			for _, p := range r.rig.proxies[x.n] {
				p.Restore()
			}
			r.away(from, x)
			cuts++
		}
	}
}

// fate is where a life is to end: every other one at a point, all points in turn; where there are few kills every one.
func (r *run) fate() crash.Point {
	r.fates++
	if r.fates%2 == 0 && r.cfg.Kills > 2*len(r.cfg.Points) {
		return ""
	}
	r.named++
	return r.cfg.Points[(r.named-1)%len(r.cfg.Points)]
}

func (r *run) happened(f fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
}

// reconnect is how long a client may take to find a server again.
const reconnect = 2 * time.Second

// away notes that replicas could not reach a server from a moment until now.
func (r *run) away(from time.Time, xs ...*replica) {
	now := time.Now().Add(reconnect)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range xs {
		r.lapses = append(r.lapses, lapse{x.n, from, now})
	}
}
