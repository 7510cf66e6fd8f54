package sidecar

import (
	"context"
	"log/slog"
	"math"
	"sync"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// limitsOf translates a module's limits.
func limitsOf(l config.Limits) runtime.Limits {
	return runtime.Limits{
		Memory: int64(l.Memory), Time: l.Time, Fuel: int64(l.Fuel), Depth: l.Depth, HostCalls: int64(l.HostCalls),
		Output: int64(l.Output), Log: int64(l.Log), LogLines: l.LogLines,
		HTTPCalls: l.HTTPRequests, HTTPBytes: int64(l.HTTPBody), HTTPTotal: int64(l.HTTPTotal), HTTPTime: l.HTTPTime,
		Files: l.Files, FileBytes: int64(l.FileBytes),
	}
}

// routeLimits translates a route's limits. Those that are not there, for no module of the configuration has any, bound nothing.
func routeLimits(l config.RouteLimits) runtime.Limits {
	if l == (config.RouteLimits{}) {
		return runtime.Limits{
			Memory: math.MaxInt64, Time: math.MaxInt64, Output: math.MaxInt64, Log: math.MaxInt64, LogLines: math.MaxInt,
			HTTPCalls: math.MaxInt, HTTPBytes: math.MaxInt64, HTTPTotal: math.MaxInt64, HTTPTime: math.MaxInt64, Files: math.MaxInt, FileBytes: math.MaxInt64,
		}
	}
	return limitsOf(config.Limits{
		Memory: *l.Memory, Time: *l.Time, Fuel: *l.Fuel, Depth: *l.Depth, HostCalls: *l.HostCalls, Output: *l.Output, Log: *l.Log,
		LogLines: *l.LogLines, HTTPRequests: *l.HTTPRequests, HTTPBody: *l.HTTPBody, HTTPTotal: *l.HTTPTotal, HTTPTime: *l.HTTPTime, Files: *l.Files,
		FileBytes: *l.FileBytes,
	})
}

// dirsOf translates the directories that a module is granted.
func dirsOf(dirs []*config.Dir) []runtime.Dir {
	out := make([]runtime.Dir, len(dirs))
	for i, d := range dirs {
		out[i] = runtime.Dir{Dir: d.Dir, As: d.As, Write: d.Write}
	}
	return out
}

// bounds are a route's limits, which hold beside the modules' own.
type bounds struct {
	ms     *modules
	limits runtime.Limits
	slots  sync.Map // *limited by *slot
}

func (ms *modules) within(l config.RouteLimits) *bounds {
	return &bounds{ms: ms, limits: routeLimits(l)}
}

// find is modules.find within the limits.
func (b *bounds) find(j *job.Job) (job.Runner, error) {
	r, err := b.ms.find(j)
	s, ok := r.(*slot)
	if !ok || err != nil {
		return r, err
	}
	if l, ok := b.slots.Load(s); ok {
		return l.(*limited), nil
	}
	l, _ := b.slots.LoadOrStore(s, &limited{s: s, l: b.limits})
	return l.(*limited), nil
}

// admit waits for what the runner of a job needs.
func (b *bounds) admit(ctx context.Context, j *job.Job) (context.Context, func(), error) {
	r, err := b.find(j)
	if l, ok := r.(*limited); ok && err == nil {
		return l.admit(ctx, j)
	}
	return ctx, func() {}, nil // what is wrong is found again when it is run
}

// budget is what the memory of all guests may take together: what the configuration says, else three fifths of what the process
// may have, and as much as the largest module needs in any case.
func budget(cfg *config.Config, log *slog.Logger) int64 {
	if cfg.MemoryBudget > 0 {
		return int64(cfg.MemoryBudget)
	}
	var largest int64
	for _, m := range cfg.Modules {
		largest = max(largest, int64(m.Limits.Memory))
	}
	have, err := memory()
	if err != nil || have == 0 {
		log.Warn("what the process may have is not known; guests run however much memory they may take together", "err", err, "remedy", "set memory_budget")
		return 0
	}
	n := have / 5 * 3
	if n < largest {
		log.Warn("a module may take more memory than all should together", "limit", largest, "should", n, "remedy", "lower limits.memory, or give the process more memory")
		return largest
	}
	log.Debug("memory of all guests together", "budget", n)
	return n
}

// memory is what the process may have: its cgroup's limit, else the machine's memory.
func memory() (int64, error) {
	have, err := memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)()
	return int64(min(have, math.MaxInt64/8)), err
}

// messageBytes is what the messages of all routes may take together while they are not settled: an eighth of what the process may
// have. Where that is not known it is what suits a gigabyte.
func messageBytes() int64 {
	have, err := memory()
	if err != nil || have == 0 {
		have = 1 << 30
	}
	return have / 8
}
