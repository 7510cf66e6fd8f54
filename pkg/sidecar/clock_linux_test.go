package sidecar_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// leases go by the server's clock. With one that is a minute behind those of the sidecars, or ahead, nobody takes a job from its living
// owner.
func TestClockOfTheServer(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{-time.Minute, time.Minute} {
		t.Run(ahead.String(), func(t *testing.T) {
			t.Parallel()
			const lease = time.Second
			s := services.StartSkewedRedis(t, ahead)
			r := redisClient(t, s.Addr)
			now, err := r.Time(t.Context()).Result()
			if off := time.Until(now); err != nil || (off-ahead).Abs() > 30*time.Second {
				t.Fatalf("the server's clock is %s ahead, %v", off, err)
			}
			var runs atomic.Int32
			f := func(context.Context, *job.Job) (*job.Result, error) {
				n := runs.Add(1)
				time.Sleep(3 * lease) // its owner renews its lease meanwhile
				return &job.Result{Body: fmt.Append(nil, "run ", n)}, nil
			}
			l := open(t, fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", s.Addr), fmt.Sprintf(", lease: %s", lease), runner(f)())
			l.another()
			for range 10 { // some of them to the other one
				l.submit("same", "x")
			}
			l.await("all deliveries are settled", func() bool {
				pending, err := r.XPending(t.Context(), l.cfg.Routes[0].From, l.cfg.Redis.Group).Result()
				return err == nil && pending.Count == 0 && runs.Load() > 0 && r.XLen(t.Context(), l.cfg.Routes[0].From).Val() == 0
			})
			m := l.next(l.results, "the result")
			if n := runs.Load(); n != 1 || string(m.Body) != "run 1" || m.Header.Get(transport.HeaderAttempt) != "1" {
				t.Errorf("%d runs, result %q of attempt %s; want one run", n, m.Body, m.Header.Get(transport.HeaderAttempt))
			}
		})
	}
}
