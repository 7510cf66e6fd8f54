//go:build unix

// Package ledger keeps the books of a sidecar that crashes. It runs jobs through replicas of the real command over a broker, kills
// the replicas at random moments and at named points, restarts the servers, cuts the network, and counts what became of every
// job: lost, stuck, answered twice and differently, run more often than it should be.
//
// Half of the jobs roll dice inside the guest, so that two runs never agree. The other half ask a server for the dice, which counts
// who ran them and when. One job of ten is delayed for a few seconds.
package ledger

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/crash"
)

// Config says how much is to go wrong.
type Config struct {
	Broker   string // embedded, nats, redis or kafka, whose store is Redis
	Jobs     int
	Spread   time.Duration // over which jobs are submitted and things go wrong
	Replicas int           // the embedded server has one
	Kills    int           // of replicas, by SIGKILL; half of them at the named points
	Restarts int           // of the servers, by SIGKILL and SIGTERM in turn; the embedded one goes with its replica
	Cuts     int           // of the network between one replica and its servers
	Lease    time.Duration
	Seed     uint64
	Points   []crash.Point // where sidecars are to die; all unless given
}

// Report is what became of the jobs.
type Report struct {
	Config
	Lost      int                 // jobs without a result
	Stuck     int                 // jobs without a result three minutes after the last fault, whose result came once all replicas were started anew
	Different int                 // jobs with two results that differ, in body or message id
	Repeats   int                 // results written again
	Failed    int                 // results that say so
	Reruns    int                 // executions beyond the first of jobs that hold a capability, after their lease had run out
	Doubled   int                 // executions of such jobs while the lease of an earlier one lived
	Ends      map[crash.Point]int // kills by point; "" for any moment
	Recovery  []time.Duration     // after each kill: until everything had its result that was open then and at no later kill
	Several   int                 // jobs that were open at several kills
	First     time.Duration       // the longest that one of these took from the first of its kills
	Healing   []time.Duration     // likewise after each restart and cut
	Late      []time.Duration     // from when a delayed job was due to its result
	Early     int                 // delayed jobs whose result came before they were due
	Took      time.Duration
	Examples  []string // of what should not be
	Course    []string // what went wrong, and how long it took
}

// Bad says whether a promise was broken.
func (r *Report) Bad() bool { return r.Lost+r.Stuck+r.Different+r.Failed+r.Doubled+r.Early > 0 }

// patience bounds every wait for something that must happen.
const patience = 3 * time.Minute

// run is one broker's ledger while it is kept.
type run struct {
	t        testing.TB
	cfg      Config
	dice     *rand.Rand // of the faults
	rig      *rig
	book     *book
	counter  *counter
	replicas []*replica

	fates, named int // lives so far, and those of them that are to end at a point

	mu      sync.Mutex
	faults  []fault
	lapses  []lapse
	lifeSeq int
	lives   map[int]*life
}

// Run keeps one ledger. Servers and replicas end with the test, which fails when they cannot be started.
func Run(t testing.TB, binary string, cfg Config) *Report {
	t.Helper()
	if cfg.Broker == embedded {
		cfg.Replicas, cfg.Restarts, cfg.Cuts = 1, 0, 0
	}
	if cfg.Points == nil {
		cfg.Points = crash.Points()
	}
	r := &run{t: t, cfg: cfg, dice: rand.New(rand.NewPCG(cfg.Seed, 0)), lives: map[int]*life{}}
	r.counter = newCounter(t)
	r.rig = newRig(t, cfg)
	r.replicas = newReplicas(r, binary)
	began := time.Now()
	for _, x := range r.replicas {
		x.start(r.fate())
	}
	r.book = newBook(t, r.rig.client, r.rig.name, cfg.Jobs)
	var wg sync.WaitGroup
	wg.Go(func() { r.book.submit(cfg.Spread) })
	r.misfortunes()
	wg.Wait()

	rep := &Report{Config: cfg, Ends: map[crash.Point]int{}}
	if !r.book.await(patience) {
		rep.Stuck = r.book.open()
		rep.Examples = append(rep.Examples, r.book.examples("stuck")...)
		for _, x := range r.replicas {
			x.kill()
			x.start(crash.Point(""))
		}
		r.book.await(patience)
		rep.Lost = r.book.open()
		rep.Stuck -= rep.Lost
		rep.Examples = append(rep.Examples, r.book.examples("lost")...)
	}
	r.book.close()
	r.book.audit(rep)
	r.counter.audit(rep, r.lives, r.lapses)
	r.recovery(rep)
	rep.Late, rep.Early = r.book.delayed()
	rep.Took = time.Since(began)
	for _, x := range r.replicas {
		x.kill()
	}
	return rep
}

// recovery measures how long everything took that was open at a fault. Where a kill struck again what had not recovered from another,
// it counts from the last.
func (r *run) recovery(rep *Report) {
	var kills []time.Time
	for _, f := range r.faults {
		took := r.book.after(f.at)
		rep.Course = append(rep.Course, fmt.Sprintf("%s %s: %.1f s", f.at.Format("15:04:05.0"), f.what, took.Seconds()))
		if f.kill {
			rep.Ends[f.point]++
			kills = append(kills, f.at)
		} else {
			rep.Healing = append(rep.Healing, took)
		}
	}
	rep.Recovery, rep.Several, rep.First = r.book.since(kills)
}

// named counts kills at named points.
func (r *Report) named() int { return len(r.Recovery) - r.Ends[""] }

// String is one line for people.
func (r *Report) String() string {
	return fmt.Sprintf("%s: %d jobs, %d replicas, %d kills (%d at named points), %d restarts, %d cuts (seed %d): %d lost, %d stuck, %d with two different results, %d failed, %d results repeated, %d run again, %d run twice under one lease; recovery %s, open at several kills %s, healing %s; %d delayed, late by %s, %d early; %s",
		r.Broker, r.Jobs, r.Replicas, len(r.Recovery), r.named(), r.Restarts, r.Cuts, r.Seed, r.Lost, r.Stuck, r.Different, r.Failed, r.Repeats, r.Reruns, r.Doubled,
		spread(r.Recovery), r.twice(), spread(r.Healing), len(r.Late), spread(r.Late), r.Early, r.Took.Round(time.Second))
}
