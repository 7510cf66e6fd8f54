package router_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// Large messages are bounded by their bytes, whether their jobs run or wait behind a key, over all windows together. None of the
// windows starves, and all jobs are done.
func TestBytesInFlight(t *testing.T) {
	t.Parallel()
	const size, fit, jobs = 1 << 20, 64, 1000
	for name, key := range map[string]string{"running": "", "behind a key": "k"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				bytes, gate := router.NewBytes(fit*int64(size+len("jobs")+len(key))), make(chan struct{})
				cfg := router.WindowConfig{Limit: 512, ByKey: key != "", Bytes: bytes}
				run := func() *window {
					body := []byte(strings.Repeat("x", size))
					w := start(t, cfg, func(ctx context.Context, _ *job.Exchange) error {
						select {
						case <-gate:
						case <-ctx.Done():
						}
						return nil
					})
					for i := range jobs {
						p := &parcel{f: w.feed, pos: fmt.Sprint(i)}
						p.msg.Subject, p.msg.Body = "jobs", body
						if key != "" {
							p.msg.Key = []byte(key)
						}
						w.feed.ch <- p
					}
					return w
				}
				first := run()
				// The first fetch is made before anybody knows how large messages are.
				time.Sleep(time.Minute)
				_, one := first.w.InFlight()
				if one < fit || one > 512 {
					t.Errorf("%d messages of 1 MiB are out, the bound is 64 of them", one)
				}
				second := run()
				time.Sleep(time.Minute)
				if _, two := second.w.InFlight(); two != 1 {
					t.Errorf("a second window has %d messages out where the first holds all that may be, want 1", two)
				}
				if _, again := first.w.InFlight(); again != one {
					t.Errorf("the first window went from %d to %d messages", one, again)
				}
				close(gate)
				most := 0
				for first.feed.count("ack")+second.feed.count("ack") < 2*jobs {
					time.Sleep(time.Millisecond)
					_, a := first.w.InFlight()
					_, b := second.w.InFlight()
					if first.feed.count("ack") > one {
						most = max(most, a+b)
					}
				}
				if most > 2*fit { // both may see the same room
					t.Errorf("%d messages were out once their size was known", most)
				}
			})
		})
	}
}
