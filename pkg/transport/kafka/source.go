package kafka

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// What is fetched ahead of Fetch, all partitions together.
const (
	pollMax       = 4096     // records taken from the client at once
	prefetch      = 8192     // records queued before the client is left alone
	prefetchBytes = 16 << 20 // the same in bytes
	fetchBytes    = 16 << 20 // a broker's answer
	fetchWait     = 250 * time.Millisecond
)

// sourceConfig is what differs between the source of a route and that of the delay topics.
type sourceConfig struct {
	group     string
	topics    []string
	drain     time.Duration
	partBytes int32                       // of a partition in a broker's answer; 0 for the client's default
	due       func(*kgo.Record) time.Time // when a record may be handed out; nil: at once
}

// source is a member of a consumer group. Its client fetches; the pump queues what was fetched by partition; Fetch hands out
// from the queues; the committer writes watermarks; the keeper looks after topics; the client's group goroutine gives and takes partitions by callbacks.
type source struct {
	t       *Transport
	cl      *kgo.Client
	adm     *kadm.Client
	group   string
	topics  []string
	drain   time.Duration
	due     func(*kgo.Record) time.Time
	maxSpan int

	ctx    context.Context // ends the pump, the committer and the keeper
	cancel context.CancelFunc
	kill   context.CancelFunc // ends the client, should the broker be away while it leaves the group
	wg     sync.WaitGroup

	wake    chan struct{} // to Fetch: there may be something to hand out
	room    chan struct{} // to the pump: there may be room to fetch
	drained chan struct{} // to a revocation: a partition has nothing out
	commitC chan struct{} // to the committer: something is settled
	urgentC chan struct{} // to the committer: Fetch waits for a larger bound
	purgeC  chan struct{} // to the keeper: a topic was made again
	dirty   atomic.Bool   // commitC was signalled
	closing atomic.Bool
	joined  atomic.Bool // the group has given us partitions, or said that there are none for us

	mu      sync.Mutex
	parts   map[topicPartition]*partition
	ring    []*partition // those that are handed out from, in the order of their turns
	turn    int
	fetched map[topicPartition]committed // from the last answer to OffsetFetch
	purge   map[string]bool              // topics that were made again
	err     error                        // for the next Fetch
	slabs   slabs

	closeOnce sync.Once
	closeErr  error
}

var _ transport.Source = (*source)(nil)

func newSource(t *Transport, cfg sourceConfig) (*source, error) {
	s := &source{
		t: t, group: cfg.group, topics: cfg.topics, drain: cfg.drain, due: cfg.due, maxSpan: t.cfg.MaxSpan,
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), drained: make(chan struct{}, 1),
		commitC: make(chan struct{}, 1), urgentC: make(chan struct{}, 1), purgeC: make(chan struct{}, 1),
		parts: map[topicPartition]*partition{}, fetched: map[topicPartition]committed{}, purge: map[string]bool{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	life, kill := context.WithCancel(context.Background())
	s.kill = kill
	opts := []kgo.Opt{
		kgo.WithContext(life),
		kgo.ConsumeTopics(cfg.topics...),
		kgo.ConsumerGroup(cfg.group),
		// Jobs written before the group existed, or into a partition before we found it, are jobs.
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// A partition that is new, or fetched again after a pause, waits for the fetch of its broker's others to end.
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMinBytes(1),
		kgo.FetchMaxBytes(fetchBytes),
		kgo.DisableAutoCommit(), // it would write over our metadata
		kgo.OnOffsetsFetched(s.onOffsets),
		kgo.AdjustFetchOffsetsFn(s.onAdjust),
		kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) { s.joined.Store(true) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { s.revoke(m) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			s.joined.Store(false)
			s.lose(m)
		}),
	}
	if cfg.partBytes > 0 {
		opts = append(opts, kgo.FetchMaxPartitionBytes(cfg.partBytes))
	}
	if t.cfg.Protocol == "consumer" {
		opts = append(opts, kgo.ServerSideBalancer())
	} else {
		opts = append(opts, kgo.SessionTimeout(t.cfg.SessionTimeout), kgo.HeartbeatInterval(t.cfg.HeartbeatInterval))
	}
	cl, err := t.client(&health{t: t, fail: s.fail}, opts...)
	if err != nil {
		kill()
		s.cancel()
		return nil, err
	}
	s.cl, s.adm = cl, kadm.NewClient(cl)
	s.wg.Go(s.pump)
	s.wg.Go(s.committer)
	s.wg.Go(s.keeper)
	return s, nil
}

// Lease is 0: a member holds its partitions for as long as it lives.
func (s *source) Lease() time.Duration { return 0 }

// Extend has nothing to do.
func (s *source) Extend(context.Context, []transport.Delivery) error { return nil }

// Joined is nil once the group has given this member its partitions. In a group with more members than partitions some have none.
func (s *source) Joined() error {
	if s.joined.Load() {
		return nil
	}
	return fmt.Errorf("kafka: group %s has not assigned partitions of %s yet", s.group, s.topics[0])
}

// fail keeps an error for the next Fetch.
func (s *source) fail(err error) {
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	signal(s.wake)
}

// Fetch hands out what is queued, the partitions in turn.
func (s *source) Fetch(ctx context.Context, limit int) ([]transport.Delivery, error) {
	for {
		if s.closing.Load() {
			return nil, fmt.Errorf("kafka: fetch from %s: %w", s.topics[0], transport.ErrClosed)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		ds, soon := s.collect(limit)
		var err error
		if len(ds) == 0 {
			err, s.err = s.err, nil
		}
		s.mu.Unlock()
		if len(ds) > 0 || err != nil {
			return ds, err
		}
		var due <-chan time.Time
		var timer *time.Timer
		if !soon.IsZero() {
			timer = time.NewTimer(time.Until(soon))
			due = timer.C
		}
		select {
		case <-s.wake:
		case <-due:
		case <-ctx.Done():
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// collect takes up to limit messages from the queues, a share from each partition. Where there are none it says when the first
// of those that are not yet due will be. mu is held.
func (s *source) collect(limit int) (ds []transport.Delivery, soon time.Time) {
	if len(s.ring) == 0 || limit <= 0 {
		return nil, soon
	}
	var now time.Time
	if s.due != nil {
		now = time.Now()
	}
	share := (limit + len(s.ring) - 1) / len(s.ring)
	s.turn++
	for more := true; more && len(ds) < limit; {
		more = false
		for i := range s.ring {
			p := s.ring[(s.turn+i)%len(s.ring)]
			before := len(ds)
			var due time.Time
			ds, due = s.take(ds, p, min(share, limit-before), limit, now)
			if len(ds) > before {
				more = true
			}
			if !due.IsZero() && (soon.IsZero() || due.Before(soon)) {
				soon = due
			}
			if len(ds) == limit {
				break
			}
		}
	}
	if len(ds) > 0 {
		signal(s.room)
	}
	return ds, soon
}

// take appends up to n messages of a partition to ds. mu is held.
func (s *source) take(ds []transport.Delivery, p *partition, n, limit int, now time.Time) ([]transport.Delivery, time.Time) {
	var due time.Time
	urgent := false
	p.mu.Lock()
	if p.revoking || p.dead.Load() {
		p.mu.Unlock()
		return ds, due
	}
	if ds == nil && (len(p.again) > 0 || p.queued() > 0) {
		ds = make([]transport.Delivery, 0, min(limit, len(p.again)+p.queued()))
	}
	for n > 0 && len(p.again) > 0 {
		ds = append(ds, p.again[0])
		p.again[0] = nil
		p.again = p.again[1:]
		p.out++
		n--
	}
	room := p.room()
	p.full, p.gated = false, false
	for n > 0 && p.queued() > 0 {
		r := p.records[p.head]
		if r.Offset >= p.bound-p.step/2 && p.more() {
			urgent = true
		}
		if r.Offset >= p.bound {
			break // the committer wakes us
		}
		if room <= 0 {
			p.full, p.gated = true, true
			break
		}
		if s.due != nil {
			if at := s.due(r); at.After(now) {
				due, p.gated = at, true
				break
			}
		}
		p.records[p.head] = nil
		p.head++
		p.bytes -= recordSize(r)
		d := s.slabs.fill(p, r)
		d.redelivered = r.Offset < p.below
		d.seq = p.add(r.Offset)
		p.out++
		room--
		n--
		ds = append(ds, d)
	}
	p.mu.Unlock()
	if urgent {
		signal(s.urgentC)
	}
	s.pauseOrResume(p)
	return ds, due
}

// pauseOrResume stops fetching a partition that holds enough and may not hand it out, so that it does not keep the others from
// being fetched. What the client holds of it is dropped and fetched again. mu is held.
func (s *source) pauseOrResume(p *partition) {
	most := queueMax
	if s.due != nil {
		most = dueMax
	}
	switch {
	case !p.paused && p.gated && (p.queued() >= most || p.bytes >= queueBytes):
		p.paused = true
		s.cl.PauseFetchPartitions(map[string][]int32{p.topic: {p.num}})
	case p.paused && p.queued() < most/2 && p.bytes < queueBytes/2:
		p.paused = false
		s.cl.ResumeFetchPartitions(map[string][]int32{p.topic: {p.num}})
	}
}

// pump moves what the client fetched into the queues, while there is room.
func (s *source) pump() {
	for {
		for !s.hasRoom() {
			select {
			case <-s.room:
			case <-s.ctx.Done():
				return
			}
		}
		fs := s.cl.PollRecords(s.ctx, pollMax)
		if s.ctx.Err() != nil || fs.IsClientClosed() {
			return
		}
		s.queue(fs)
	}
}

// hasRoom counts what is queued in partitions that may hand it out.
func (s *source) hasRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, bytes := 0, 0
	for _, p := range s.ring {
		if !p.gated {
			n += p.queued()
			bytes += p.bytes
		}
	}
	return n < prefetch && bytes < prefetchBytes
}

// queue takes in what was polled.
func (s *source) queue(fs kgo.Fetches) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = nil // what failed before has mended
	fs.EachPartition(func(f kgo.FetchTopicPartition) {
		if f.Err != nil {
			s.fetchError(f.Topic, f.Partition, f.Err)
		}
		p := s.parts[topicPartition{f.Topic, f.Partition}]
		if p == nil || len(f.Records) == 0 {
			return // taken away meanwhile: its new owner reads them
		}
		rs := f.Records
		first := rs[0].Offset
		if first > p.next && f.LogStartOffset > p.next {
			s.gap(p, p.next, min(first, f.LogStartOffset))
		}
		if first < p.next {
			// The partition was taken and given back since these were polled, and they are fetched again, or were already.
			i, _ := slices.BinarySearchFunc(rs, p.next, func(r *kgo.Record, o int64) int { return int(r.Offset - o) })
			if rs = rs[i:]; len(rs) == 0 {
				return
			}
		}
		p.next = rs[len(rs)-1].Offset + 1
		p.push(rs)
		s.pauseOrResume(p)
	})
	signal(s.wake)
}

// gap counts and tells what the broker dropped before it was read.
func (s *source) gap(p *partition, from, to int64) {
	s.t.gaps.Add(to - from)
	s.t.log.Error("messages were dropped by the broker before they were read; raise the topic's retention",
		"topic", p.topic, "partition", p.num, "from_offset", from, "to_offset", to, "lost", to-from)
}

// remove takes a partition out of the ring and empties its queue. mu is held.
func (s *source) remove(p *partition) {
	p.drop()
	delete(s.parts, p.topicPartition)
	if i := slices.Index(s.ring, p); i >= 0 {
		s.ring = slices.Delete(s.ring, i, i+1)
	}
	if p.paused {
		s.cl.ResumeFetchPartitions(map[string][]int32{p.topic: {p.num}})
	}
	signal(s.room)
}

// replace begins a partition anew at an offset, after its log went back. mu is held.
func (s *source) replace(p *partition, next int64) {
	s.remove(p)
	p.kill()
	s.admit(&partition{
		src: s, topicPartition: p.topicPartition, topicID: p.topicID, prefix: p.prefix,
		next: next, watermark: next, handed: next, committed: -1, below: p.below, step: minStep, reserve: true,
	})
}

// admit enters a partition that was assigned. mu is held.
func (s *source) admit(p *partition) {
	s.parts[p.topicPartition] = p
	s.ring = append(s.ring, p)
	signal(s.urgentC)
}

// Close stops fetching, commits what is settled, and leaves the group. Deliveries that are out are lost.
func (s *source) Close(ctx context.Context) error {
	s.closeOnce.Do(func() {
		s.closing.Store(true)
		signal(s.wake)
		signal(s.drained)
		s.cancel()
		s.wg.Wait()
		s.mu.Lock()
		ps := make([]*partition, 0, len(s.parts))
		for _, p := range s.parts {
			ps = append(ps, p)
			p.drop()
		}
		s.ring = nil
		s.mu.Unlock()
		if err := s.lastCommit(ctx, ps); err != nil {
			s.closeErr = s.t.describe("commit what is settled of "+s.topics[0], err)
		}
		for _, p := range ps {
			p.kill()
		}
		left := make(chan struct{})
		go func() {
			defer close(left)
			s.cl.CloseAllowingRebalance() // leaves the group
		}()
		select {
		case <-left:
		case <-ctx.Done():
			s.kill()
			<-left
		}
		s.kill()
		s.t.forget(s)
	})
	return s.closeErr
}
