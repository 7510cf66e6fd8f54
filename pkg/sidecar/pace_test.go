package sidecar

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, c := range []struct {
		live, scan uint64
		want       int
	}{
		{0, 0, 400}, {20 * mib, 20 * mib, 400}, {32 * mib, 4 * mib, 400}, {128 * mib, 10 * mib, 100}, {256 * mib, 0, 50},
		{400 * mib, 400 * mib, 200}, {100_000 * mib, 0, 25},
	} {
		if got := pace(c.live, c.scan); got != c.want {
			t.Errorf("%d MiB, of which %d are looked at: %d %%, want %d", c.live/mib, c.scan/mib, got, c.want)
		}
	}
}

// The percentage follows the heap, and is as before in the end. Not parallel: it is the process's.
func TestPaceCollector(t *testing.T) {
	before := debug.SetGCPercent(80)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	stop := PaceCollector()
	percent := func() int {
		now := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(now)
		return int(now[0].Value.Uint64())
	}
	if got := percent(); got != 400 {
		t.Errorf("%d %% at first, want 400", got)
	}
	held := make([]byte, 256<<20) // never touched: it takes no memory
	for end := time.Now().Add(30 * time.Second); percent() > 60; {
		if runtime.GC(); time.Now().After(end) {
			t.Fatalf("%d %% with a heap of a quarter of a gigabyte", percent())
		}
	}
	runtime.KeepAlive(held)
	stop()
	stop()
	if got := percent(); got != 80 {
		t.Errorf("%d %% after all, want 80", got)
	}
}
