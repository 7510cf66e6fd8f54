package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// source is a transport.Source: one durable consumer.
type source struct {
	t     *Transport
	cfg   transport.SourceConfig
	lease time.Duration
	pull  *pull
	acks  *settler
	gaps  gapState

	closing sync.Once
	err     error

	mu    sync.Mutex
	after time.Time // a sole source waits until then for what others have out, which is handed out first
	born  time.Time // of the consumer that the deliveries come from
	out   map[place]*delivery
	final string // the reply subject of some delivery, to ask the consumer by
}

const (
	// metadataBound names in a consumer's metadata the last sequence of the stream when the consumer was made: up to there, one that
	// was deleted may have handed out messages.
	metadataBound = "wasmsidecar-handed-out"
	// metadataLife names the life of the server in which that was so; see Transport.life.
	metadataLife = "wasmsidecar-life"
	// deliveredMargin is by how much a server that is killed, with this process where it is embedded, may forget what it delivered: it
	// writes that down ten times a second.
	deliveredMargin = 16 << 10
)

// place is a position as a key.
type place struct {
	created  int64
	sequence uint64
}

// Source begins to consume a subject. The stream that holds it is found or made, and so is the route's durable consumer, by
// the first Fetch at the latest.
func (t *Transport) Source(ctx context.Context, cfg transport.SourceConfig) (transport.Source, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	if cfg.Route == "" {
		return nil, errors.New("NATS source: no route; it names the durable consumer")
	}
	if err := transport.ValidPattern(cfg.Subject); err != nil {
		return nil, fmt.Errorf("NATS source of route %q: %w: %w", cfg.Route, err, transport.ErrRejected)
	}
	s := &source{t: t, cfg: cfg, lease: cfg.Lease, out: make(map[place]*delivery)}
	if s.lease <= 0 {
		s.lease = t.cfg.Lease
	}
	s.pull = newPull(t, fmt.Sprintf("jobs of route %q from %q", cfg.Route, cfg.Subject), s.bind)
	if cfg.Bytes > 0 {
		s.pull.bytes = cfg.Bytes
	}
	s.acks = newSettler(t)
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.gaps.turn, s.gaps.stop, s.gaps.done = make(chan struct{}, 1), stop, make(chan struct{})
	go s.watch(watching)
	if err := s.pull.begin(ctx); err != nil {
		_ = s.Close(ctx)
		return nil, err
	}
	if err := t.startMover(); err != nil {
		_ = s.Close(ctx)
		return nil, err
	}
	return s, nil
}

// bind finds or makes the stream and the consumer. The stream's creation time is part of the consumer's name: a consumer of a
// stream that was made again is another one, so no message is ever given the position of an older stream.
func (s *source) bind(ctx context.Context) (*target, error) {
	doing := fmt.Sprintf("consume %q for route %q", s.cfg.Subject, s.cfg.Route)
	var to *target
	err := s.t.api(ctx, doing, func(ctx context.Context) error {
		name, err := s.t.streamFor(ctx, s.cfg.Subject, s.t.jobStream(s.cfg.Subject))
		if err != nil {
			return err
		}
		for {
			info, err := s.t.streamInfo(ctx, name)
			if err != nil {
				return err
			}
			created := createdMS(info.Created)
			durable := durableName(s.t.cfg.Group, s.cfg.Route, created)
			cfg := jetstream.ConsumerConfig{
				Durable: durable, Description: "wasmsidecar: route " + strconv.Quote(s.cfg.Route),
				FilterSubject: s.cfg.Subject, DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
				AckWait: s.lease + leaseMargin(s.lease), MaxDeliver: -1, MaxAckPending: -1,
			}
			life, bound := s.t.life(info), info.State.LastSeq
			c, err := s.t.js.Consumer(ctx, name, durable)
			known := err == nil
			if known && s.takesOver(c.CachedInfo()) && info.Config.Retention == jetstream.WorkQueuePolicy {
				// A new consumer begins with what is left, in order; the old one would keep back what others have out.
				if err := s.t.js.DeleteConsumer(ctx, name, durable); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
					return err
				}
				known, err = false, jetstream.ErrConsumerNotFound
			}
			if known {
				bound = handedOut(c.CachedInfo(), bound, life)
			}
			cfg.Metadata = map[string]string{metadataBound: strconv.FormatUint(bound, 10), metadataLife: life}
			switch {
			case known:
				c, err = s.t.js.UpdateConsumer(ctx, name, cfg)
			case errors.Is(err, jetstream.ErrConsumerNotFound):
				c, err = s.t.js.CreateOrUpdateConsumer(ctx, name, cfg)
			}
			if isCode(err, codeWorkQueueUnfiltered) || isCode(err, codeWorkQueueNotUnique) {
				return fmt.Errorf("stream %q has work-queue retention and another consumer for the same subjects: delete that "+
					"consumer, or give the stream interest or limits retention so that several routes may read it: %w", name, err)
			}
			if err != nil {
				return err
			}
			if info, err = s.t.streamInfo(ctx, name); err != nil {
				return err
			}
			if createdMS(info.Created) == created {
				to = &target{stream: name, consumer: durable, created: created, born: c.CachedInfo().Created, last: bound}
				to.out, to.ackWait = c.CachedInfo().NumAckPending, c.CachedInfo().Config.AckWait
				return nil
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if err := s.look(ctx, to); err != nil { // before anything is read: then the server moves the consumer on
		return nil, err
	}
	s.t.mu.Lock()
	s.t.routes[s.cfg.Route] = routeRef{to.stream, to.consumer}
	s.t.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Sole && s.born.IsZero() && to.out > 0 { // and the stream is no work queue
		wait := to.ackWait + leaseMargin(to.ackWait)
		s.after = time.Now().Add(wait)
		s.t.log.Info("waiting for the leases of those who had the route's order before", "route", s.cfg.Route, "messages", to.out, "for", wait)
	}
	if !s.born.IsZero() && !s.born.Equal(to.born) {
		// Another consumer knows nothing of what the old one handed out, and hands it out again.
		s.t.remade.Add(1)
		s.t.log.Warn("the consumer was made again", "route", s.cfg.Route, "consumer", to.consumer, "lost", len(s.out))
		for k, d := range s.out {
			d.lost.Store(true)
			delete(s.out, k)
		}
	}
	s.born = to.born
	return to, nil
}

// takesOver says whether a sole source finds that others have messages out, which it wants first.
func (s *source) takesOver(c *jetstream.ConsumerInfo) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Sole && s.born.IsZero() && c.NumAckPending > 0
}

// handedOut is the sequence up to which messages of a stream that ends at last may have been handed out without the consumer, which was
// there before us, knowing of it: by an earlier consumer, or by a server that was killed and has forgotten its last ones.
func handedOut(c *jetstream.ConsumerInfo, last uint64, life string) uint64 {
	bound, err := strconv.ParseUint(c.Config.Metadata[metadataBound], 10, 64)
	switch {
	case err != nil:
		return last // not made by this version
	case life == "" || c.Config.Metadata[metadataLife] != life:
		bound = max(bound, c.Delivered.Stream+deliveredMargin)
	}
	return min(last, bound)
}

// durableName names a route's consumer on one stream.
func durableName(group, route string, created int64) string {
	return legal(group) + "_" + legal(route) + "_" + strconv.FormatInt(created, 36)
}

// Fetch waits for messages and returns at most limit of them.
func (s *source) Fetch(ctx context.Context, limit int) ([]transport.Delivery, error) {
	s.mu.Lock()
	wait := time.Until(s.after)
	s.mu.Unlock()
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.pull.done: // fetch says why
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var ds []transport.Delivery
	err := s.pull.fetch(ctx, limit, func(as []arrived) { ds = s.hand(as) })
	return ds, err
}

// hand makes deliveries, which are out from now on.
func (s *source) hand(as []arrived) []transport.Delivery {
	ds := make([]transport.Delivery, len(as))
	block := make([]delivery, len(as))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, a := range as {
		d := &block[i]
		d.init(s, a)
		if old := s.out[d.place]; old != nil {
			old.lost.Store(true) // its lease ran out and the server gave it to us again
		}
		s.out[d.place] = d
		s.final = a.msg.Reply
		ds[i] = d
	}
	return ds
}

// Extend tells the server that work goes on. What it confirms is that the server has heard; it does not say who owns a message.
// A delivery becomes lost when it is handed out to this source again, when the consumer was made again, and when a lease passed
// without an Extend that got through: from then on another may have it.
func (s *source) Extend(ctx context.Context, ds []transport.Delivery) error {
	ctx, cancel := context.WithTimeout(ctx, min(apiTimeout, s.lease))
	defer cancel()
	begun := time.Now()
	kept := make([]*delivery, 0, len(ds))
	for _, x := range ds {
		if d, ok := x.(*delivery); ok && d.s == s && !d.Lost() && d.state.Load() != settled {
			kept = append(kept, d)
		}
	}
	for i, d := range kept {
		if i == len(kept)-1 {
			// The consumer takes what it is told in order, so its answer to the last one is the answer to all.
			if _, err := s.t.nc.RequestWithContext(ctx, d.reply, ackProgress); err != nil {
				if errors.Is(err, nats.ErrNoResponders) {
					s.pull.doubt(rebindPause)
				}
				return fmt.Errorf("extend the leases of route %q: %w", s.cfg.Route, err)
			}
			break
		}
		if err := s.t.nc.Publish(d.reply, ackProgress); err != nil {
			return fmt.Errorf("extend the leases of route %q: %w", s.cfg.Route, err)
		}
	}
	until := int64(begun.Add(s.lease).Sub(s.t.epoch))
	for _, d := range kept {
		d.leased.Store(until)
	}
	return nil
}

// Lease is how long a delivery is held without Extend.
func (s *source) Lease() time.Duration { return s.lease }

// leaseMargin is how much longer the server holds a message than its owner believes: the owner's clock begins when the message
// arrives, the server's when it was sent, and the owner must be the first to give up.
func leaseMargin(lease time.Duration) time.Duration { return max(lease/20, 50*time.Millisecond) }

// Close stops fetching, hands back what nobody has begun, and writes all settlements until ctx ends. The durable consumer
// stays.
func (s *source) Close(ctx context.Context) error {
	s.closing.Do(func() { s.err = s.close(ctx) })
	return s.err
}

func (s *source) close(ctx context.Context) error {
	s.gaps.stop()
	<-s.gaps.done
	left := s.pull.close(ctx)
	s.mu.Lock()
	final := s.final
	for _, a := range left {
		s.acks.add(a.msg.Reply, ackNak)
		final = a.msg.Reply
	}
	for at, d := range s.out {
		delete(s.out, at)
		if d.state.CompareAndSwap(out, settled) && !d.lost.Swap(true) {
			s.acks.add(d.reply, ackNak)
		}
	}
	s.mu.Unlock()
	err := s.acks.close(ctx)
	if err == nil && final != "" {
		// Its answer says that the consumer has taken all of the above.
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		if _, err = s.t.nc.RequestWithContext(ctx, final, ackProgress); errors.Is(err, nats.ErrNoResponders) {
			err = nil // no consumer, nothing to settle
		}
	}
	if err != nil {
		return fmt.Errorf("close the source of route %q: settlements may not have arrived and be handed out again: %w", s.cfg.Route, err)
	}
	return nil
}

// forget takes a settled delivery off the list of those that are out.
func (s *source) forget(d *delivery) {
	s.mu.Lock()
	if s.out[d.place] == d {
		delete(s.out, d.place)
	}
	s.mu.Unlock()
}
