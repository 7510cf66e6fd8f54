package redisstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	// scanEvery is how often a source looks for entries that nobody works on. It costs one command that finds nothing, and
	// bounds how long a released entry waits.
	scanEvery = 400 * time.Millisecond
	// readBudget is about how many bytes one read may bring, readLimit how many it cannot exceed unless it is a single entry.
	readBudget = 8 << 20
	readLimit  = 128 << 20
	// firstGuess is how large entries are taken to be until some have come.
	firstGuess = 64 << 10
)

// unsettledError says that settlements were not written when a source closed.
type unsettledError struct {
	n      int
	stream string
	cause  error
}

func (e *unsettledError) Error() string {
	return fmt.Sprintf("close source of stream %q: %d settlements were not written; their jobs will be delivered again: %v",
		e.stream, e.n, e.cause)
}

func (e *unsettledError) Unwrap() error { return e.cause }

// source consumes one stream as one consumer of the group.
type source struct {
	t        *Transport
	log      *slog.Logger
	stream   string
	group    string
	consumer string
	keys     keys
	lease    time.Duration
	limit    int
	start    time.Time // zero of now

	ctx    context.Context // ends when Close is over
	cancel context.CancelFunc
	stop   chan struct{} // closed when Close begins
	once   sync.Once
	closed error         // what Close returns; set before over is closed
	over   chan struct{} // closed when Close is over

	settler    *settler
	keeperWake chan struct{}
	keeperDone chan struct{}
	regroup    atomic.Bool // the group may be gone
	missing    atomic.Bool // entries that were to be claimed have left the stream

	mu   sync.Mutex
	held map[string]*delivery // handed out or waiting to be, until their settlement is written

	// fetching guards what follows, which belongs to Fetch and then to Close.
	fetching   sync.Mutex
	pending    chan batch // a read that is under way, whose caller may have left
	spare      []*delivery
	spareSince time.Time

	// The fields below belong to the read that is under way.
	buf      buffer
	scratch  []entry
	nextScan time.Time
	history  string // where to go on looking for entries whose reply was cut off; "" when none can be
	inherit  string // where to go on taking over what others have; "" when that is over
	suspect  string // entries up to this id may have been given out before the group was made
	average  int    // running average of entry sizes, in bytes
	asked    int    // entries that the last read asked for
	most     int    // entries that one read may bring, after some have failed; 0 for any number
}

// batch is what a read brings.
type batch struct {
	ds  []*delivery
	err error
}

var _ transport.Source = (*source)(nil)

// Source begins to consume a stream, from its first entry when the group is new. It makes the group, and the stream if that is
// allowed. Each source is a consumer of its own.
func (t *Transport) Source(ctx context.Context, cfg transport.SourceConfig) (transport.Source, error) {
	if err := checkName(cfg.Subject); err != nil {
		return nil, fmt.Errorf("consume: %w", err)
	}
	switch {
	case t.isClosed():
		return nil, fmt.Errorf("consume stream %q: %w", cfg.Subject, transport.ErrClosed)
	case cfg.Limit <= 0 || cfg.Lease < 0:
		return nil, fmt.Errorf("consume stream %q: limit must be positive and lease not negative", cfg.Subject)
	case !taggable(cfg.Subject) && isCluster(t.client):
		return nil, fmt.Errorf("consume stream %q: %w: no other key can be placed beside it in a cluster; use a name without a closing brace",
			cfg.Subject, transport.ErrRejected)
	}
	s := &source{
		t:          t,
		log:        t.log,
		stream:     cfg.Subject,
		group:      t.cfg.Group,
		consumer:   t.consumer(),
		keys:       keysOf(cfg.Subject),
		lease:      cfg.Lease,
		limit:      cfg.Limit,
		start:      time.Now(),
		stop:       make(chan struct{}),
		over:       make(chan struct{}),
		keeperWake: make(chan struct{}, 1),
		keeperDone: make(chan struct{}),
		average:    firstGuess,
		held:       make(map[string]*delivery),
	}
	if s.lease == 0 {
		s.lease = t.cfg.Lease
	}
	if cfg.Sole {
		s.inherit = "-"
	}
	t.addJobs(s.stream)
	if err := s.makeGroup(ctx); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.settler = newSettler(s)
	go s.keep()
	t.reading(1)
	return s, nil
}

// now is the time that leases are measured by.
func (s *source) now() int64 { return int64(time.Since(s.start)) }

func (s *source) Lease() time.Duration { return s.lease }

// Fetch asks for as many entries as there are free slots. A read cannot be cancelled, so when ctx ends first its harvest is
// kept for the next call, or handed back by Close.
func (s *source) Fetch(ctx context.Context, limit int) ([]transport.Delivery, error) {
	s.fetching.Lock()
	defer s.fetching.Unlock()
	if err := s.ended(ctx); err != nil {
		return nil, err
	}
	if limit <= 0 {
		return nil, nil
	}
	if len(s.spare) > 0 && time.Since(s.spareSince) > s.lease/3 {
		s.handBack(s.spare)
		s.spare = nil
	}
	if len(s.spare) > 0 {
		return s.hand(batch{}, limit)
	}
	if n := s.settler.waiting(); n > 4*s.limit+settleBatch {
		return nil, fmt.Errorf("read stream %q: %d settlements wait to be written", s.stream, n)
	}
	if s.pending == nil {
		ch := make(chan batch, 1)
		s.pending = ch
		go func() { ch <- s.read(s.ctx, limit) }()
	}
	select {
	case b := <-s.pending:
		s.pending = nil
		return s.hand(b, limit)
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.stop:
		return nil, s.ended(ctx)
	}
}

// ended says why nothing more is fetched.
func (s *source) ended(ctx context.Context) error {
	select {
	case <-s.stop:
		return fmt.Errorf("read stream %q: %w", s.stream, transport.ErrClosed)
	default:
		return ctx.Err()
	}
}

// hand returns at most limit of what is there and keeps the rest.
func (s *source) hand(b batch, limit int) ([]transport.Delivery, error) {
	if len(b.ds) > 0 {
		s.spareSince = time.Now()
	}
	s.spare = append(s.spare, b.ds...)
	n := min(len(s.spare), limit)
	if n == 0 {
		return nil, b.err
	}
	out := make([]transport.Delivery, n)
	for i, d := range s.spare[:n] {
		out[i] = d
	}
	s.spare = s.spare[n:]
	if len(s.spare) == 0 {
		s.spare = nil
	}
	return out, nil
}

func (s *source) handBack(ds []*delivery) {
	for _, d := range ds {
		d.Release()
	}
}

// Extend keeps deliveries and finds out which of them are no longer ours.
func (s *source) Extend(ctx context.Context, ds []transport.Delivery) error {
	mine := make([]*delivery, 0, len(ds))
	for _, x := range ds {
		if d, ok := x.(*delivery); ok && d.src == s && !d.settled.Load() && !d.lost.Load() {
			mine = append(mine, d)
		}
	}
	touch := func(ds []*delivery) {
		for now := s.now(); len(ds) > 0; ds = ds[1:] {
			ds[0].touched.Store(now)
		}
	}
	touch(mine)
	defer touch(mine) // a server that is away takes its time
	for len(mine) > 0 {
		part := mine[:min(len(mine), settleBatch)]
		mine = mine[len(part):]
		ids := make([]string, len(part))
		for i, d := range part {
			ids[i] = d.id
		}
		sent := s.now()
		lost, err := s.hold(ctx, ids, 0)
		if err != nil && !noGroup(err) {
			return err
		}
		if err != nil {
			lost = ids
			s.regroup.Store(true)
		}
		gone := make(map[string]bool, len(lost))
		for _, id := range lost {
			gone[id] = true
		}
		for _, d := range part {
			if gone[d.id] {
				d.lost.Store(true)
			} else {
				d.until.Store(sent + int64(s.lease))
			}
		}
	}
	return nil
}

// hold sets the idle time of entries that we hold and returns those that we do not.
func (s *source) hold(ctx context.Context, ids []string, idle time.Duration) ([]string, error) {
	args := make([]any, 0, len(ids)+3)
	args = append(args, s.group, s.consumer, idle.Milliseconds())
	for _, id := range ids {
		args = append(args, id)
	}
	lost, err := holdScript.Run(ctx, s.t.client, []string{s.stream}, args...).StringSlice()
	if err != nil {
		return nil, fail("keep entries of stream", s.stream, err)
	}
	return lost, nil
}

// forget drops deliveries whose settlement is written.
func (s *source) forget(ds ...*delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range ds {
		if s.held[d.id] == d {
			delete(s.held, d.id)
		}
	}
}

// holding is how many deliveries are out or not settled at the server.
func (s *source) holding() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// makeGroup makes the group at the beginning of the stream, unless it is there. What the stream holds already may have been
// given out by a group that is gone.
func (s *source) makeGroup(ctx context.Context) error {
	last := ""
	newest, err := s.t.client.XRevRangeN(ctx, s.stream, "+", "-", 1).Result()
	if err != nil {
		return fail("read stream", s.stream, err)
	}
	if len(newest) > 0 {
		last = newest[0].ID
	}
	made, err := s.t.makeGroup(ctx, s.stream)
	if err != nil {
		return err
	}
	if made {
		if err := s.t.look(ctx, s.stream, true); err != nil {
			return err
		}
	}
	if made || s.suspect != "" {
		s.suspect = last
	}
	return nil
}

// makeGroup makes the group of a stream at its beginning and says whether it was not there.
func (t *Transport) makeGroup(ctx context.Context, stream string) (bool, error) {
	var err error
	if t.cfg.CreateStreams {
		err = t.client.XGroupCreateMkStream(ctx, stream, t.cfg.Group, "0").Err()
	} else {
		err = t.client.XGroupCreate(ctx, stream, t.cfg.Group, "0").Err()
	}
	switch {
	case err == nil:
		return true, nil
	case hasCode(err, "BUSYGROUP"):
		return false, nil
	case replied(err) && strings.Contains(err.Error(), "requires the key to exist"):
		return false, fmt.Errorf("make group %q: %w", t.cfg.Group, missing(stream))
	}
	return false, failStart("make group of stream", stream, err)
}

// missing is the error for a stream that does not exist and may not be made.
func missing(stream string) error {
	return fmt.Errorf("%w: stream %q does not exist; make it, or set redis.create: true", transport.ErrRejected, stream)
}

// less compares entry ids.
func less(a, b string) bool {
	ams, aseq := splitID(a)
	bms, bseq := splitID(b)
	return ams < bms || ams == bms && aseq < bseq
}

func splitID(id string) (ms, seq uint64) {
	m, q, _ := strings.Cut(id, "-")
	ms, _ = strconv.ParseUint(m, 10, 64) // ids are the server's: two numbers
	seq, _ = strconv.ParseUint(q, 10, 64)
	return ms, seq
}

// isNil says that the server answered with nothing.
func isNil(err error) bool { return errors.Is(err, redis.Nil) }

func isCluster(c redis.UniversalClient) bool {
	_, ok := c.(*redis.ClusterClient)
	return ok
}

// Close hands back what is unsettled, writes the settlements and removes the consumer. The read that is under way is waited
// for, because its harvest must be handed back too.
func (s *source) Close(ctx context.Context) error {
	s.once.Do(func() {
		defer close(s.over)
		close(s.stop)
		defer s.cancel()
		s.closed = s.drain(ctx)
		s.t.reading(-1)
	})
	<-s.over
	return s.closed
}

func (s *source) drain(ctx context.Context) error {
	select {
	case <-s.keeperDone:
	case <-ctx.Done(): // its last command ends by the client's timeouts
	}
	s.fetching.Lock()
	defer s.fetching.Unlock()
	if s.pending != nil {
		select {
		case b := <-s.pending:
			s.pending = nil
			s.spare = append(s.spare, b.ds...)
		case <-ctx.Done(): // they come back after their lease
		}
	}
	s.handBack(s.spare)
	s.spare = nil
	s.mu.Lock()
	out := make([]*delivery, 0, len(s.held))
	for _, d := range s.held {
		out = append(out, d)
	}
	s.mu.Unlock()
	s.handBack(out)
	err := s.settler.flush(ctx)
	for _, d := range out {
		d.lost.Store(true)
	}
	if err != nil {
		return err
	}
	// A consumer that is left behind is swept up by the others: no reason to fail.
	if err := sweepScript.Run(ctx, s.t.client, []string{s.stream}, s.group, 0, s.consumer).Err(); err != nil && !noGroup(err) {
		s.log.Debug("consumer was not removed", "stream", s.stream, "consumer", s.consumer, "err", err)
	}
	return nil
}
