package runtime

import (
	"fmt"
	"time"

	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

const (
	pageSize = 64 << 10
	maxPages = 1 << 16
)

// Limits bound one run of a guest. The zero Limits stands for DefaultLimits; otherwise each field is taken as it is.
type Limits struct {
	Memory    int64         // bytes of linear memory, rounded down to pages of 64 KiB; 64 KiB to 4 GiB
	Time      time.Duration // wall time, the guest's start included; more than 0
	Fuel      int64         // instructions, about; package rewrite says what costs what. 0: unlimited
	Depth     int           // calls within calls; those with large frames count more than once. 0: until the stack overflows
	HostCalls int64         // calls of host functions, WASI's included. 0: unlimited
	Output    int64         // bytes of the result
	Log       int64         // bytes of log lines
	LogLines  int           // log lines
	HTTPCalls int           // http requests
	HTTPBytes int64         // bytes of one http request's body, and of one response's
	HTTPTotal int64         // bytes of all http requests and responses together, headers included
	HTTPTime  time.Duration // time of one http request, redirects included
	Files     int           // files and directories open at once, those granted apart
	FileBytes int64         // bytes written to files; a new file, directory or link counts as 4 KiB
}

// DefaultLimits are the limits of a module whose configuration says nothing.
func DefaultLimits() Limits {
	return Limits{
		Memory: 64 << 20, Time: 10 * time.Second, Fuel: 100_000_000_000, Depth: 50_000, HostCalls: 10_000_000, Output: 1 << 20, Log: 64 << 10,
		LogLines:  1000,
		HTTPCalls: 16, HTTPBytes: 1 << 20, HTTPTotal: 16 << 20, HTTPTime: 10 * time.Second,
		Files: 64, FileBytes: 64 << 20,
	}
}

func (l Limits) check() error {
	switch {
	case l.Memory < pageSize || l.Memory > 4<<30:
		return fmt.Errorf("memory limit of %d bytes is not between 64 KiB and 4 GiB", l.Memory)
	case l.Time <= 0:
		return fmt.Errorf("time limit of %s is not above zero", l.Time)
	case l.Fuel < 0 || l.Depth < 0 || l.HostCalls < 0 || l.Output < 0 || l.Log < 0 || l.LogLines < 0 || l.HTTPCalls < 0 || l.HTTPBytes < 0 || l.HTTPTotal < 0 || l.HTTPTime < 0 || l.Files < 0 || l.FileBytes < 0:
		return fmt.Errorf("a limit is below zero")
	}
	return nil
}

// Within returns the smaller one of each limit of l and of o.
func (l Limits) Within(o Limits) Limits {
	return Limits{
		Memory: min(l.Memory, o.Memory), Time: min(l.Time, o.Time), Fuel: least(l.Fuel, o.Fuel), Depth: least(l.Depth, o.Depth),
		HostCalls: least(l.HostCalls, o.HostCalls), Output: min(l.Output, o.Output), Log: min(l.Log, o.Log), LogLines: min(l.LogLines, o.LogLines),
		HTTPCalls: min(l.HTTPCalls, o.HTTPCalls), HTTPBytes: min(l.HTTPBytes, o.HTTPBytes), HTTPTotal: min(l.HTTPTotal, o.HTTPTotal), HTTPTime: min(l.HTTPTime, o.HTTPTime),
		Files: min(l.Files, o.Files), FileBytes: min(l.FileBytes, o.FileBytes),
	}
}

// least is the smaller one of two limits of which 0 is none.
func least[N int | int64](a, b N) N {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// grants returns g with the limits of l.
func (l Limits) grants(g host.Grants) *host.Grants {
	g.Calls, g.Output, g.Log, g.LogLines = l.HostCalls, l.Output, l.Log, l.LogLines
	g.HTTPCalls, g.HTTPBytes, g.HTTPTotal, g.HTTPTime = l.HTTPCalls, l.HTTPBytes, l.HTTPTotal, l.HTTPTime
	return &g
}

func (l Limits) pages() uint32 { return uint32(l.Memory / pageSize) }

// size writes a number of bytes as people do.
func size(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n%(1<<10) == 0 && n > 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
