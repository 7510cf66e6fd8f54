//go:build unix

package ledger

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/crash"
)

// The size of a ledger; make ledger gives a large one.
var (
	jobs     = flag.Int("ledger.jobs", 2000, "jobs for each broker")
	spreadOf = flag.Duration("ledger.spread", 12*time.Second, "over which they come and things go wrong")
	replicas = flag.Int("ledger.replicas", 2, "sidecars")
	kills    = flag.Int("ledger.kills", 7, "SIGKILLs of sidecars")
	restarts = flag.Int("ledger.restarts", 1, "restarts of servers; on Kafka only with -ledger.full")
	cuts     = flag.Int("ledger.cuts", 1, "cuts of the network; on Kafka only with -ledger.full")
	lease    = flag.Duration("ledger.lease", 5*time.Second, "lease of the routes")
	seed     = flag.Uint64("ledger.seed", 0, "what chance begins with; 0: the time")
	brokers  = flag.String("ledger.brokers", strings.Join(Brokers(), ","), "which brokers")
	full     = flag.Bool("ledger.full", false, "a Kafka broker of its own, which is restarted too")
	out      = flag.String("ledger.out", "", "write the table into this file, between its markers")
)

// TestCrashLedger kills the real binary again and again over every broker while jobs of guests that roll dice go through it: no job
// is lost, none has two different results, none is stuck, and none that holds a capability runs twice under one lease (D-09, D-14, D-23).
func TestCrashLedger(t *testing.T) {
	t.Parallel()
	binary := Build(t)
	reports := make([]*Report, len(Brokers()))
	t.Run("broker", func(t *testing.T) {
		for i, broker := range Brokers() {
			if !slices.Contains(strings.Split(*brokers, ","), broker) {
				continue
			}
			t.Run(broker, func(t *testing.T) {
				t.Parallel()
				cfg := Config{
					Broker: broker, Jobs: *jobs, Spread: *spreadOf, Replicas: *replicas, Kills: *kills, Restarts: *restarts, Cuts: *cuts,
					Lease: *lease, Seed: *seed,
				}
				if cfg.Seed == 0 {
					cfg.Seed = uint64(time.Now().UnixNano())
				}
				if broker == kafka && !*full {
					// Six seconds pass before a killed member's partitions go on: more kills would only be more waiting.
					cfg.Restarts, cfg.Cuts, cfg.Kills = 0, 0, min(cfg.Kills, 2)
				}
				rep := Run(t, binary, cfg)
				t.Logf("%s\n%s", rep, strings.Join(rep.Course, "\n"))
				if rep.Bad() {
					t.Errorf("%s\n%s", rep, strings.Join(rep.Examples, "\n"))
				}
				reports[i] = rep
			})
		}
	})
	if *out != "" {
		writeTable(t, slices.DeleteFunc(reports, func(r *Report) bool { return r == nil }))
	}
}

// TestPoints lets a sidecar die at each point over every broker, and nothing comes of it: a result that is published again carries
// the same message id (D-09, S-12).
func TestPoints(t *testing.T) {
	t.Parallel()
	binary := Build(t)
	t.Run("at", func(t *testing.T) {
		for _, broker := range Brokers() {
			for _, point := range crash.Points() {
				t.Run(broker+" "+string(point), func(t *testing.T) {
					t.Parallel()
					rep := Run(t, binary, Config{
						Broker: broker, Replicas: 1, Jobs: 150, Spread: 3 * time.Second, Kills: 1, Lease: 3 * time.Second, Points: []crash.Point{point},
					})
					t.Logf("%s\n%s", rep, strings.Join(rep.Course, "\n"))
					if rep.Ends[point] != 1 {
						t.Error("the sidecar did not come to the point")
					}
					if rep.Bad() {
						t.Errorf("%s\n%s", rep, strings.Join(rep.Examples, "\n"))
					}
				})
			}
		}
	})
}

// writeTable replaces what stands between the markers.
func writeTable(t *testing.T, reports []*Report) {
	t.Helper()
	const begin, end = "<!-- ledger -->\n", "<!-- end -->"
	text, err := os.ReadFile(*out)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no lines %q and %q", *out, begin, end)
	}
	if err := os.WriteFile(*out, []byte(head+begin+Table(reports)+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
