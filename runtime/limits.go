package runtime

import (
	"fmt"
	"time"
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
	Output    int64         // bytes of the result
	Log       int64         // bytes of log lines
	LogLines  int           // log lines
	HTTPCalls int           // http requests
	HTTPBytes int64         // bytes of one http request's body, and of one response's
	HTTPTime  time.Duration // time of one http request, redirects included
}

// DefaultLimits are the limits of a module whose configuration says nothing.
func DefaultLimits() Limits {
	return Limits{
		Memory: 64 << 20, Time: 10 * time.Second, Fuel: 100_000_000_000, Depth: 50_000, Output: 1 << 20, Log: 64 << 10, LogLines: 1000,
		HTTPCalls: 16, HTTPBytes: 1 << 20, HTTPTime: 10 * time.Second,
	}
}

func (l Limits) check() error {
	switch {
	case l.Memory < pageSize || l.Memory > 4<<30:
		return fmt.Errorf("memory limit of %d bytes is not between 64 KiB and 4 GiB", l.Memory)
	case l.Time <= 0:
		return fmt.Errorf("time limit of %s is not above zero", l.Time)
	case l.Fuel < 0 || l.Depth < 0 || l.Output < 0 || l.Log < 0 || l.LogLines < 0 || l.HTTPCalls < 0 || l.HTTPBytes < 0 || l.HTTPTime < 0:
		return fmt.Errorf("a limit is below zero")
	}
	return nil
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
