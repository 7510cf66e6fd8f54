package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	benchBatch   = 500 // messages in one publish when a queue is filled
	benchWriters = 8
	// benchSilence is without a result for so long that no more is waited for: well beyond the window's longest pause after trouble,
	// the longest wait of a lease that is in the way, and a busy machine.
	benchSilence = time.Minute
	// removePatience is how long tidying up may take: a Redis with millions of keys of others is walked through.
	removePatience = 5 * time.Minute
)

// traffic publishes jobs and times their results.
type traffic struct {
	client   transport.Transport
	from, to string
	body     []byte
	seq      int // ids used so far

	mu      sync.Mutex
	due     map[string]time.Time // of jobs that are not answered
	took    []time.Duration
	failed  int
	err     error
	arrived chan struct{} // holds one when a result has come since
}

func (l *traffic) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.Join(l.err, err)
}

func (l *traffic) message() *transport.Message {
	l.seq++
	return &transport.Message{Subject: l.from, Header: job.Header{{Name: transport.HeaderJobID, Value: "bench-" + strconv.Itoa(l.seq)}}, Body: l.body}
}

// fill publishes n jobs.
func (l *traffic) fill(ctx context.Context, n int) error {
	batches := make(chan []*transport.Message)
	errs := make(chan error, benchWriters)
	var wg sync.WaitGroup
	for range benchWriters {
		wg.Go(func() {
			for ms := range batches {
				if err := l.client.Publisher().Publish(ctx, ms...); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	var err error
	for left := n; left > 0 && err == nil; {
		ms := make([]*transport.Message, min(benchBatch, left))
		for i := range ms {
			ms[i] = l.message()
		}
		left -= len(ms)
		select {
		case batches <- ms:
		case err = <-errs:
		}
	}
	close(batches)
	wg.Wait()
	select {
	case err = <-errs:
	default:
	}
	if err != nil {
		return fmt.Errorf("fill the queue: %w", err)
	}
	return nil
}

// measure lets jobs come for a while and times their results.
func (l *traffic) measure(ctx context.Context, d time.Duration, generate func(context.Context)) (*measured, error) {
	tail, err := l.client.Tail(ctx, l.to, false)
	if err != nil {
		return nil, fmt.Errorf("watch for results: %w", err)
	}
	defer tail.Close()
	l.due, l.took, l.failed, l.arrived = map[string]time.Time{}, nil, 0, make(chan struct{}, 1)
	rctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		for {
			m, err := tail.Next(rctx)
			if rctx.Err() != nil {
				return
			}
			if err != nil {
				l.fail(fmt.Errorf("watch for results: %w", err))
				return
			}
			l.note(m)
		}
	})
	gctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	began := time.Now()
	generate(gctx)
	var m measured
	for last := -1; ; {
		l.mu.Lock()
		waiting, answered, failed, err := len(l.due), len(l.took), l.failed, l.err
		l.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, err
		case waiting > 0 && waiting != last:
			last = waiting
			select {
			case <-l.arrived:
				last = -1
			case <-time.After(benchSilence):
			}
			continue
		}
		m = measured{JobsPerSecond: float64(answered) / time.Since(began).Seconds(), Failed: failed, Missing: waiting}
		break
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.took)
	if n := len(l.took); n > 0 {
		m.P50, m.P99 = l.took[n/2], l.took[n*99/100]
	}
	return &m, nil
}

// note takes a result. Those of the backlog, and repeats, are not waited for.
func (l *traffic) note(m *transport.Message) {
	now := time.Now()
	l.mu.Lock()
	due, ok := l.due[m.Header.Get(transport.HeaderResultOf)]
	if ok {
		delete(l.due, m.Header.Get(transport.HeaderResultOf))
		l.took = append(l.took, now.Sub(due))
		if m.Header.Get(transport.HeaderOK) == "false" {
			l.failed++
		}
	}
	l.mu.Unlock()
	if ok {
		select {
		case l.arrived <- struct{}{}:
		default:
		}
	}
}

// send publishes a job that was due at a time.
func (l *traffic) send(ctx context.Context, wg *sync.WaitGroup, due time.Time) {
	m := l.message()
	l.mu.Lock()
	l.due[m.Header[0].Value] = due
	l.mu.Unlock()
	wg.Go(func() {
		if err := l.client.Publisher().Publish(context.WithoutCancel(ctx), m); err != nil {
			l.fail(fmt.Errorf("publish: %w", err))
		}
	})
}

// atRate lets jobs come at a rate, whatever becomes of them, until ctx ends.
func (l *traffic) atRate(rate int) func(context.Context) {
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		defer wg.Wait()
		began := time.Now()
		timer := time.NewTimer(0)
		defer timer.Stop()
		for n := 0; ; n++ {
			due := began.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
			timer.Reset(time.Until(due))
			select {
			case <-timer.C:
				l.send(ctx, &wg, due)
			case <-ctx.Done():
				return
			}
		}
	}
}

// closed keeps a number of jobs under way until ctx ends.
func (l *traffic) closed(width int) func(context.Context) {
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		defer wg.Wait()
		for {
			l.mu.Lock()
			free := width - len(l.due)
			l.mu.Unlock()
			for range free {
				l.send(ctx, &wg, time.Now())
			}
			select {
			case <-l.arrived:
			case <-ctx.Done():
				return
			}
		}
	}
}
