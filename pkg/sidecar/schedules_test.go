package sidecar_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// R-03, S-16: with two sidecars every due time has one job and one result, within a second, and a restart of either neither forgets nor
// repeats one. The embedded server is one sidecar's own; there it is that one which is restarted.
func TestCron(t *testing.T) {
	t.Parallel()
	for _, b := range brokers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			runs, lates := map[string]int{}, []time.Duration{}
			run := func(_ context.Context, j *job.Job) (*job.Result, error) {
				due, err := time.Parse(time.RFC3339, j.Header.Get(transport.HeaderScheduledAt))
				if err != nil {
					return nil, err
				}
				mu.Lock()
				defer mu.Unlock()
				runs[j.ID]++
				lates = append(lates, time.Since(due))
				return &job.Result{Body: j.Body}, nil
			}
			name := services.UniqueName(t) // stores outlive the test
			head := b.yaml(t) + "schedules:\n  - {name: " + name + ", cron: \"* * * * * *\", route: jobs, catch_up: all, body: tock, key: k, headers: {X-Own: kept}}\n"
			l := open(t, head, "", map[string]job.Runner{"m": job.RunnerFunc(run)})
			stopOther := func() {}
			if b.name != "embedded" {
				stopOther = l.start(l.runners)
			}
			var dues []time.Time
			results := func(n int) {
				for range n {
					m := l.next(l.results, "a scheduled job's result")
					id := m.Header.Get(transport.HeaderResultOf)
					due, err := time.Parse(time.RFC3339, strings.TrimPrefix(id, name+"@"))
					if err != nil || string(m.Body) != "tock" {
						t.Fatalf("result of %q: %q", id, m.Body)
					}
					dues = append(dues, due)
				}
			}
			results(4)
			l.stop()
			if b.name == "embedded" {
				l.restart()
				l.connect(l.cfg) // its server is a new one
				dues = nil       // the results are read from the beginning
				results(4)
			}
			results(3)
			if b.name != "embedded" {
				l.restart()
			}
			results(3)
			stopOther()
			results(3)
			l.stop()

			slices.SortFunc(dues, time.Time.Compare) // results of two sidecars may overtake one another
			for i := 1; i < len(dues); i++ {
				if dues[i].Sub(dues[i-1]) != time.Second {
					t.Errorf("after the job due at %s comes that due at %s", dues[i-1], dues[i])
				}
			}
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(lates)
			usual := lates[len(lates)/2]
			if b.name == "embedded" {
				usual = lates[len(lates)/4] // nobody was there for a while
			}
			t.Logf("%d jobs; begun after %s, usually %s, at most %s", len(lates), lates[0], usual, lates[len(lates)-1])
			if lates[0] < 0 || usual > time.Second { // on an idle machine it is some milliseconds
				t.Errorf("jobs began from %s after they were due on, usually after %s", lates[0], usual)
			}
			log := l.log.String()
			for id, n := range runs {
				line := "msg=\"scheduled job published\" schedule=" + name + " due=" + strings.TrimSuffix(strings.TrimPrefix(id, name+"@"), "Z")
				if p := strings.Count(log, line); n != 1 || p != 1 {
					t.Errorf("%s was published %d times and ran %d times", id, p, n)
				}
			}
		})
	}
}

// What a schedule's file cannot be is found before anything is connected.
func TestScheduleBodyFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "body")
	cfg, err := config.Parse("t.yaml", []byte("transport: memory\nadmin: {listen: off}\nmodules: {m: {source: x.wasm}}\nroutes: [{from: jobs, module: m, max_body: 5B}]\n"+
		"schedules: [{name: s, cron: \"@every 1s\", route: jobs, body_file: "+name+"}]\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Modules = nil
	check := func(want string) {
		t.Helper()
		if err := sidecar.Check(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	check(`schedule "s": body_file: open ` + name)
	if err := os.WriteFile(name, []byte("123456"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("has more than 5 bytes")
	if err := os.WriteFile(name, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sidecar.Check(t.Context(), cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}
