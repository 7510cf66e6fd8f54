package transporttest

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Fault is what happens to one call. The zero value lets it pass.
type Fault struct {
	Block <-chan struct{} // the call first waits until this is closed, or its context ends
	Err   error           // the call fails with this
	Done  bool            // with Err: the call takes place all the same; only its reply is lost
}

// Faults decides about the calls to a Faulty transport. The functions are told how many calls of their sort there have been,
// from 1; they may be nil and are called by many goroutines at once.
type Faults struct {
	Publish func(n int, ms []*transport.Message) Fault // Publisher and Replier
	Fetch   func(n int) Fault
	Extend  func(n int, ds []transport.Delivery) Fault
	// Settle decides about Ack, Dead, Retry and Release (job.Leave). Except for Retry, Err drops the settlement, as though the
	// process had died before it was written.
	Settle func(n int, v job.Verb, d transport.Delivery) Fault
}

// Faulty is a transport some of whose calls fail.
type Faulty struct {
	transport.Transport
	faults Faults

	publishes, fetches, extends, settles atomic.Int64
}

// NewFaulty wraps a transport.
func NewFaulty(inner transport.Transport, f Faults) *Faulty {
	return &Faulty{Transport: inner, faults: f}
}

// Publisher wraps the inner publisher.
func (f *Faulty) Publisher() transport.Publisher {
	return &faultyPublisher{f.Transport.Publisher(), f}
}

// Replier wraps the inner replier.
func (f *Faulty) Replier() transport.Publisher { return &faultyPublisher{f.Transport.Replier(), f} }

// Source wraps a source of the inner transport.
func (f *Faulty) Source(ctx context.Context, cfg transport.SourceConfig) (transport.Source, error) {
	s, err := f.Transport.Source(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &faultySource{s, f}, nil
}

// RouteBacklog is the inner transport's.
func (f *Faulty) RouteBacklog(ctx context.Context, route, subject string) (transport.Backlog, error) {
	return f.Transport.(transport.Counter).RouteBacklog(ctx, route, subject)
}

// Depth is the inner transport's.
func (f *Faulty) Depth(ctx context.Context, subject string) (int64, error) {
	return f.Transport.(transport.Counter).Depth(ctx, subject)
}

// wait blocks as the fault says. It returns the fault's error if the call is not to take place.
func (x Fault) wait(ctx context.Context) error {
	if x.Block != nil {
		select {
		case <-x.Block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if x.Done {
		return nil
	}
	return x.Err
}

type faultyPublisher struct {
	transport.Publisher
	f *Faulty
}

func (p *faultyPublisher) Publish(ctx context.Context, ms ...*transport.Message) error {
	var x Fault
	if n := int(p.f.publishes.Add(1)); p.f.faults.Publish != nil {
		x = p.f.faults.Publish(n, ms)
	}
	if err := x.wait(ctx); err != nil {
		return err
	}
	if err := p.Publisher.Publish(ctx, ms...); err != nil {
		return err
	}
	return x.Err
}

type faultySource struct {
	transport.Source
	f *Faulty
}

func (s *faultySource) Fetch(ctx context.Context, limit int) ([]transport.Delivery, error) {
	var x Fault
	if n := int(s.f.fetches.Add(1)); s.f.faults.Fetch != nil {
		x = s.f.faults.Fetch(n)
	}
	if err := x.wait(ctx); err != nil {
		return nil, err
	}
	ds, err := s.Source.Fetch(ctx, limit)
	if err != nil {
		return nil, err
	}
	for i := range ds {
		ds[i] = &faultyDelivery{ds[i], s.f}
	}
	return ds, x.Err
}

func (s *faultySource) Extend(ctx context.Context, ds []transport.Delivery) error {
	inner := make([]transport.Delivery, len(ds))
	for i, d := range ds {
		inner[i] = d
		if fd, ok := d.(*faultyDelivery); ok {
			inner[i] = fd.Delivery
		}
	}
	var x Fault
	if n := int(s.f.extends.Add(1)); s.f.faults.Extend != nil {
		x = s.f.faults.Extend(n, inner)
	}
	if err := x.wait(ctx); err != nil {
		return err
	}
	if err := s.Source.Extend(ctx, inner); err != nil {
		return err
	}
	return x.Err
}

type faultyDelivery struct {
	transport.Delivery
	f *Faulty
}

func (d *faultyDelivery) fault(v job.Verb) Fault {
	n := int(d.f.settles.Add(1))
	if d.f.faults.Settle == nil {
		return Fault{}
	}
	return d.f.faults.Settle(n, v, d.Delivery)
}

func (d *faultyDelivery) Ack() {
	if x := d.fault(job.Ack); x.wait(context.Background()) == nil {
		d.Delivery.Ack()
	}
}

func (d *faultyDelivery) Dead(reason string) {
	if x := d.fault(job.Dead); x.wait(context.Background()) == nil {
		d.Delivery.Dead(reason)
	}
}

func (d *faultyDelivery) Release() {
	if x := d.fault(job.Leave); x.wait(context.Background()) == nil {
		d.Delivery.Release()
	}
}

func (d *faultyDelivery) Retry(ctx context.Context, after time.Duration, moved *transport.Message) error {
	x := d.fault(job.Retry)
	if err := x.wait(ctx); err != nil {
		return err
	}
	if err := d.Delivery.Retry(ctx, after, moved); err != nil {
		return err
	}
	return x.Err
}
