package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// benchPatience is how long a backlog may stand still before a measurement is given up.
const benchPatience = time.Minute

// stage measures the sidecar or, where raw, the client, on queues made for it.
func (o *benchmark) stage(ctx context.Context, cfg *config.Config, raw bool) (out side, err error) {
	own := *cfg
	var left, failed, began atomic.Int64
	left.Store(int64(o.jobs))
	done, hold := make(chan struct{}), make(chan struct{})
	sink := event.SinkFunc(func(e event.Event) {
		if e.Type != event.Finished {
			return
		}
		began.CompareAndSwap(0, time.Now().UnixNano()) // the client too is timed from its first job
		if e.Kind != job.KindOK {
			failed.Add(1)
		}
		if left.Add(-1) == 0 {
			close(done)
		}
	})
	s, err := sidecar.New(ctx, &own, sidecar.Options{Log: slog.New(slog.DiscardHandler), Version: version(), Sink: sink, Hold: hold})
	if err != nil {
		return out, err
	}
	sctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(sctx) }()
	stopped := false
	halt := func() error {
		if stopped {
			return nil
		}
		stopped = true
		stop()
		return <-ended
	}
	// The embedded server goes with its directory; what is elsewhere is removed even when the user interrupts.
	defer func() {
		err = errors.Join(err, halt())
		if own.Transport != config.Embedded {
			rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removePatience)
			defer cancel()
			err = errors.Join(err, sidecar.Remove(rctx, &own, slog.New(slog.DiscardHandler)))
		}
	}()
	select {
	case <-s.Running():
	case err := <-ended:
		stopped = true
		return out, errors.Join(err, ctx.Err())
	}
	client, closeClient, err := sidecar.Dial(ctx, &own, slog.New(slog.DiscardHandler))
	if err != nil {
		return out, err
	}
	defer closeClient()
	l := &traffic{client: client, from: own.Routes[0].From, to: own.Routes[0].To, body: bytes.Repeat([]byte("x"), o.size)}
	if err := l.fill(ctx, o.jobs); err != nil {
		return out, err
	}

	var took time.Duration
	if raw {
		m, ok := client.(transport.Measured)
		if !ok {
			return out, fmt.Errorf("transport %s has no client to measure: %w", own.Transport, transport.ErrUnsupported)
		}
		if took, err = m.Relay(ctx, l.from, l.to, o.jobs); err != nil {
			return out, err
		}
		rctx, cancel := context.WithCancel(ctx)
		relayed := make(chan struct{})
		go func() {
			defer close(relayed)
			if _, err := m.Relay(rctx, l.from, l.to, 0); rctx.Err() == nil {
				l.fail(err)
			}
		}()
		defer func() { cancel(); <-relayed }()
	} else {
		stopProfile, err := o.startProfile()
		if err != nil {
			return out, err
		}
		close(hold)
		err = o.await(ctx, done, ended, &left)
		took = time.Duration(time.Now().UnixNano() - began.Load())
		if err = errors.Join(err, stopProfile()); err != nil {
			return out, err
		}
	}
	out.Backlog = measured{JobsPerSecond: float64(o.jobs) / took.Seconds(), Failed: int(failed.Load())}
	if o.time == 0 {
		return out, nil
	}
	if out.AtRate, err = l.measure(ctx, o.time, l.atRate(o.rate)); err != nil {
		return out, err
	}
	out.AtFull, err = l.measure(ctx, o.time, l.closed(2*own.Routes[0].Concurrency))
	return out, err
}

// await waits until the backlog is worked off.
func (o *benchmark) await(ctx context.Context, done <-chan struct{}, ended chan error, left *atomic.Int64) error {
	tick := time.NewTicker(benchPatience)
	defer tick.Stop()
	for last := left.Load(); ; {
		select {
		case <-done:
			return nil
		case err := <-ended:
			ended <- nil // for whoever waits for the end
			return errors.Join(errors.New("the sidecar ended"), err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if n := left.Load(); n == last {
				return fmt.Errorf("%d of %d jobs are not done and nothing moves for %s", n, o.jobs, benchPatience)
			}
			last = left.Load()
		}
	}
}

// startProfile begins a CPU profile, if one is asked for; the returned function ends it.
func (o *benchmark) startProfile() (func() error, error) {
	if o.profile == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(o.profile)
	if err != nil {
		return nil, usage(fmt.Errorf("--profile: %w", err))
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("--profile: %w", err), f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			return fmt.Errorf("--profile: %w", err)
		}
		return nil
	}, nil
}

// freeListen is a loopback address that nobody listens at.
func freeListen() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return ln.Addr().String(), ln.Close()
}
