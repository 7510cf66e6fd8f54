package transporttest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/inmem"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/transporttest"
)

func TestFaulty(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, err := inmem.NewBroker(inmem.Config{})
		if err != nil {
			t.Fatal(err)
		}
		broken, acks := errors.New("broken"), 0
		f := transporttest.NewFaulty(b.Open(), transporttest.Faults{
			Publish: func(n int, _ []*transport.Message) transporttest.Fault {
				switch n {
				case 1:
					return transporttest.Fault{Err: broken}
				case 2:
					return transporttest.Fault{Err: broken, Done: true}
				case 3:
					return transporttest.Fault{Block: make(chan struct{})}
				}
				return transporttest.Fault{}
			},
			Settle: func(_ int, v job.Verb, _ transport.Delivery) transporttest.Fault {
				if v == job.Ack {
					acks++
				}
				if v == job.Retry || acks == 1 {
					return transporttest.Fault{Err: broken}
				}
				return transporttest.Fault{}
			},
			Fetch: func(n int) transporttest.Fault {
				if n == 1 {
					return transporttest.Fault{Err: broken}
				}
				return transporttest.Fault{}
			},
			Extend: func(int, []transport.Delivery) transporttest.Fault {
				return transporttest.Fault{Err: broken, Done: true}
			},
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		m := &transport.Message{Subject: "jobs", Body: []byte("x")}
		for i, want := range []int{0, 1} {
			if err := f.Publisher().Publish(ctx, m); !errors.Is(err, broken) {
				t.Errorf("publish: %v", err)
			}
			if got := b.Held("jobs"); got != want {
				t.Errorf("after call %d the broker holds %d, want %d", i+1, got, want)
			}
		}
		if err := f.Replier().Publish(ctx, m); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a publish that hangs: %v", err)
		}
		src, err := f.Source(t.Context(), transport.SourceConfig{Route: "r", Subject: "jobs", Limit: 1, Lease: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := src.Fetch(t.Context(), 1); !errors.Is(err, broken) {
			t.Errorf("fetch: %v", err)
		}
		for i := range 2 { // the first Ack gets lost, so the message comes again
			start := time.Now()
			fctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			ds, err := src.Fetch(fctx, 1)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			if i == 1 && time.Since(start) < time.Minute {
				t.Errorf("the lease was not extended: it ended %v after that", time.Since(start))
			}
			if err := ds[0].Retry(t.Context(), 0, m); !errors.Is(err, broken) {
				t.Errorf("retry: %v", err)
			}
			time.Sleep(30 * time.Second)
			if err := src.Extend(t.Context(), ds); !errors.Is(err, broken) {
				t.Errorf("extend: %v", err)
			}
			ds[0].Ack()
		}
		if got := b.Held("jobs"); got != 0 {
			t.Errorf("the broker still holds %d", got)
		}
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
