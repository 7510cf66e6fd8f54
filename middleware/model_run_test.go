package middleware_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// TestModel carries jobs through random lives over every store and holds what is seen of them against what is promised: see
// promise (D-07, D-09, R-05, R-08, R-09, R-11, R-23, S-10). A schedule is the router's and the brokers'; a message that is not due is not
// delivered here, but for one that comes early after a retry. WASMSIDECAR_MODEL_STEPS says how many steps are taken over each store, WASMSIDECAR_SEED with which run they begin.
func TestModel(t *testing.T) {
	t.Parallel()
	for name, open := range modelStores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testModel(t, open)
		})
	}
}

// modelCases are runs that once broke a promise, or that chance seldom leads to. At the start, job 2 is granted something and job 3 nothing; both have all attempts.
var modelCases = []struct {
	name  string
	moves []move
}{
	{"an attempt fails while the store is away, and counts", []move{
		{act: deliver, who: 0, what: 2}, {act: cutOff, who: 0}, {act: finish, by: byTrap}, {act: heal, who: 0}, {act: deliver, who: 1, what: 2},
	}},
	{"the next attempt cannot be counted, and the failed one counts", []move{
		{act: deliver, who: 0, what: 2}, {act: finish, by: byTrapNow, fault: lostRequest}, {act: deliver, who: 1, what: 2},
	}},
	{"a cancellation that is sent twice is no second one", []move{
		{act: deliver, who: 0, what: 2}, {act: cancel, what: 2, fault: repeated, at: 1}, {act: finish},
	}},
	{"a second attempt without a claim that is sent twice is its own", []move{
		{act: deliver, who: 0, what: 3}, {act: finish, by: byTrapNow, fault: repeated}, {act: finish},
	}},
	{"a second attempt without a claim whose answer is lost is its own", []move{
		{act: deliver, who: 0, what: 3}, {act: finish, by: byTrapNow, fault: lostAnswer}, {act: deliver, who: 1, what: 3},
	}},
	{"what ran without a claim takes the place of another's, and is held up", []move{
		{act: deliver, who: 0, what: 3}, {act: deliver, who: 1, what: 3}, {act: finish, by: byGiveUp, who: 1}, {act: deliver, who: 1, what: 3},
		{act: finish, fault: lostRequest, at: 2},
	}},
	{"suspects run alone in each process", []move{
		{act: deliver, what: 3}, {act: kill},
		{act: deliver, what: 2}, {act: deliver, what: 3}, {act: lapse},
		{act: deliver, what: 2}, {act: deliver, what: 3}, {act: lapse},
		{act: deliver, what: 2}, {act: deliver, what: 3}, {act: deliver, who: 1, what: 3}, {act: finish}, {act: finish},
	}},
}

// Places in endings.
const byTrap, byTrapNow, byGiveUp = 5, 8, 10

// TestModelCases takes each of them over every store.
func TestModelCases(t *testing.T) {
	t.Parallel()
	for name, open := range modelStores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conns := open(t)
			for i, c := range modelCases {
				w, err := newWorld(t.Context(), conns, fmt.Sprint(i))
				if err != nil {
					t.Fatal(err)
				}
				if err := w.run(c.moves); err != nil {
					t.Errorf("%s: %v\n%s", c.name, err, strings.Join(w.told, "\n"))
				}
				w.close()
			}
		})
	}
}

// R-08, S-10: whatever an owner comes to whose lease ran out and whose job another took, it is refused over every store, and what the
// other comes to counts: a heartbeat (renew), a result (complete), a verdict or a trap (fail), and parking, which is the checkpoint there
// is: guests have no steps of their own yet. Both workers have one name.
func TestStaleOwnerIsRefused(t *testing.T) {
	t.Parallel()
	for name, open := range modelStores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conns := open(t)
			// A heartbeat first: it tells the stale owner, whose guest is stopped. Then its attempts to end the job, one way each.
			ways := [][]move{{{act: beat, who: 0}}}
			for by := range endings {
				ways = append(ways, []move{{act: finish, by: by}})
			}
			for i, way := range ways {
				w, err := newWorld(t.Context(), conns, fmt.Sprint(i))
				if err != nil {
					t.Fatal(err)
				}
				err = w.run(slices.Concat([]move{{act: deliver, what: 2}, {act: pass, by: 10}, {act: deliver, who: 1, what: 2}}, way))
				if k := w.slots[2]; err == nil && (k.crashes != 1 || k.attempts != 2 || !strings.HasPrefix(k.outcome, "ok ")) {
					err = fmt.Errorf("after %d attempts and %d crashes: %s", k.attempts, k.crashes, k.outcome)
				}
				if err != nil {
					t.Errorf("%v\n%s", err, strings.Join(w.told, "\n"))
				}
				w.close()
			}
		})
	}
}

const modelRun = 400 // steps of one run

func testModel(t *testing.T, open func(t *testing.T) []store.Store) {
	steps := number(t, "WASMSIDECAR_MODEL_STEPS", 2000)
	seed := number(t, "WASMSIDECAR_SEED", rand.Uint64N(1<<32))
	t.Logf("WASMSIDECAR_SEED=%d", seed)
	conns, runs := open(t), 0
	run := func(ms []move) ([]string, error) {
		runs++
		w, err := newWorld(t.Context(), conns, fmt.Sprint(runs))
		if err != nil {
			t.Fatal(err)
		}
		defer w.close()
		err = w.run(ms)
		return w.told, err
	}
	for taken := uint64(0); taken < steps; taken, seed = taken+modelRun, seed+1 {
		ms := moves(rand.New(rand.NewPCG(seed, 0)), modelRun)
		told, err := run(ms)
		if err == nil {
			continue
		}
		t.Errorf("run WASMSIDECAR_SEED=%d: %v", seed, err)
		ms = shrink(ms, time.Now().Add(20*time.Second), func(ms []move) bool {
			shorter, e := run(ms)
			if e != nil {
				told, err = shorter, e
			}
			return e != nil
		})
		t.Logf("of %d steps, these lead to: %v", len(ms), err)
		for _, line := range told[max(0, len(told)-60):] {
			t.Log("  ", line)
		}
		return
	}
}

// shrink takes out of a list of moves what is not needed for it to fail, ever smaller parts of it, until nothing more can go or
// time is up.
func shrink(ms []move, until time.Time, fails func([]move) bool) []move {
	for part := len(ms) / 2; part > 0; part /= 2 {
		for at := 0; at < len(ms); {
			if time.Now().After(until) {
				return ms
			}
			less := slices.Delete(slices.Clone(ms), at, min(at+part, len(ms)))
			if fails(less) {
				ms = less
			} else {
				at += part
			}
		}
	}
	return ms
}

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	v := os.Getenv(variable)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}
