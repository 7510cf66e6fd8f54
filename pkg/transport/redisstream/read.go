package redisstream

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// read fetches up to limit entries: first those whose reply was cut off, then those that nobody works on, then new ones. A sole source
// begins with all that others have.
func (s *source) read(ctx context.Context, limit int) batch {
	if s.regroup.Swap(false) {
		if err := s.makeGroup(ctx); err != nil {
			s.regroup.Store(true)
			return batch{err: err}
		}
	}
	ds, err := s.readSome(ctx, limit)
	switch {
	case err == nil:
	case noGroup(err):
		s.t.remade.Add(1)
		s.log.Warn("consumer group is gone and is made again", "stream", s.stream, "group", s.group)
		s.regroup.Store(true)
		err = nil
	case redirected(err):
		// A command that go-redis reads itself makes it learn the new owner of the key.
		err = s.t.client.XLen(ctx, s.stream).Err()
	case !replied(err):
		// The server may have given us entries whose reply did not arrive, because it was too large or slow perhaps.
		s.history = "0-0"
		s.most = max(1, s.asked/8)
	}
	if len(ds) == 0 && err != nil {
		return batch{err: fail("read stream", s.stream, err)}
	}
	return batch{ds: ds}
}

func (s *source) readSome(ctx context.Context, limit int) ([]*delivery, error) {
	if s.history != "" {
		if ds, err := s.readHistory(ctx, limit); len(ds) > 0 || err != nil {
			return ds, err
		}
	}
	for s.inherit != "" {
		if ds, err := s.takeOver(ctx, limit); len(ds) > 0 || err != nil {
			return ds, err
		}
	}
	if now := time.Now(); !now.Before(s.nextScan) {
		ds, err := s.claim(ctx, limit)
		if err != nil {
			return nil, err
		}
		if len(ds) < limit { // else there are more
			s.nextScan = now.Add(scanEvery)
		}
		if len(ds) > 0 {
			return ds, nil
		}
	}
	sent := s.now()
	block := min(s.t.cfg.Block, time.Until(s.nextScan)) // not past the next look at what was released
	es, err := s.raw(ctx, readReply, "xreadgroup", "group", s.group, s.consumer, "count", s.count(limit),
		"block", max(block.Milliseconds(), 1), "streams", s.stream, ">")
	if err != nil {
		return nil, err
	}
	return s.take(es, sent, false), nil
}

// raw sends a command whose reply holds entries. It is not repeated when the connection breaks: the entries of the first reply
// would be forgotten.
func (s *source) raw(ctx context.Context, parse func([]byte, []entry) ([]entry, error), args ...any) ([]entry, error) {
	if cap(s.buf.b) > keepBuffer {
		s.scratch = nil // it points into the buffer
	}
	s.buf.reset()
	if s.asked > 1 {
		s.buf.limit = readLimit
	}
	cmd := redis.NewRawWriteToCmd(ctx, &s.buf, args...)
	if err := s.t.client.Process(ctx, cmd); err != nil {
		return nil, err
	}
	es, err := parse(s.buf.b, s.scratch)
	if err == nil {
		s.scratch = es
	}
	if len(es) > 0 && s.most > 0 {
		s.most *= 2
		if s.most > s.limit {
			s.most = 0
		}
	}
	return es, err
}

// count is how many entries to ask for, so that large ones neither fill the memory nor outlast the client's patience.
func (s *source) count(limit int) int {
	n := min(limit, readBudget/max(s.average, 1))
	if s.most > 0 {
		n = min(n, s.most)
	}
	s.asked = max(n, 1)
	return s.asked
}

// take makes deliveries of entries. Those that are held already, and those that were deleted, are left out.
func (s *source) take(es []entry, sent int64, redelivered bool) []*delivery {
	if len(es) == 0 {
		return nil
	}
	out := make([]*delivery, 0, len(es))
	size, gone := 0, int64(0)
	for i := range es {
		e := &es[i]
		size += e.size()
		if e.id == "" {
			continue
		}
		d := &delivery{src: s, id: e.id, redelivered: redelivered || s.suspect != "" && !less(s.suspect, e.id)}
		d.until.Store(sent + int64(s.lease))
		d.touched.Store(s.now())
		if e.gone {
			d.gone = true
			d.Ack() // takes it off the group's list
			gone++
			continue
		}
		decode(&d.msg, s.stream, e.fields)
		out = append(out, d)
	}
	switch {
	case gone > 0 && s.t.uncounted.Load():
		s.t.lost(s.stream, gone)
	case gone > 0:
		s.missing.Store(true)
	}
	s.average = max(size/len(es), (3*s.average+size/len(es)+3)/4) // up at once, down slowly
	if s.suspect != "" && len(es) > 0 && !redelivered && less(s.suspect, es[len(es)-1].id) {
		s.suspect = ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, d := range out {
		if s.held[d.id] != nil {
			continue
		}
		s.held[d.id] = d
		out[n] = d
		n++
	}
	return out[:n]
}

// readHistory reads what the group has on us and we have not, which happens when the reply of a read was cut off.
func (s *source) readHistory(ctx context.Context, limit int) ([]*delivery, error) {
	for {
		sent := s.now()
		es, err := s.raw(ctx, readReply, "xreadgroup", "group", s.group, s.consumer, "count", s.count(limit),
			"streams", s.stream, s.history)
		if err != nil {
			return nil, err
		}
		if len(es) == 0 {
			s.history = ""
			return nil, nil
		}
		s.history = es[len(es)-1].id
		if ds := s.take(es, sent, true); len(ds) > 0 {
			return ds, nil
		}
	}
}

// claim takes over entries that were idle for a lease, oldest first, and those that were released.
func (s *source) claim(ctx context.Context, limit int) ([]*delivery, error) {
	limit = s.count(limit)
	list, err := s.t.client.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: s.stream, Group: s.group, Idle: s.lease, Start: "-", End: "+", Count: int64(limit + s.holding()),
	}).Result()
	if err != nil && !isNil(err) {
		return nil, err
	}
	ids := make([]any, 0, limit)
	s.mu.Lock()
	for _, p := range list {
		if len(ids) < limit && s.abandoned(p.ID) {
			ids = append(ids, p.ID)
		}
	}
	s.mu.Unlock()
	return s.own(ctx, ids, s.lease)
}

// takeOver claims what others have, oldest first, however lately they had it.
func (s *source) takeOver(ctx context.Context, limit int) ([]*delivery, error) {
	list, err := s.t.client.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: s.stream, Group: s.group, Start: s.inherit, End: "+", Count: int64(s.count(limit)),
	}).Result()
	if err != nil && !isNil(err) {
		return nil, err
	}
	if len(list) == 0 {
		s.inherit = ""
		return nil, nil
	}
	ids := make([]any, 0, len(list))
	s.mu.Lock()
	for _, p := range list {
		if s.held[p.ID] == nil {
			ids = append(ids, p.ID)
		}
	}
	s.mu.Unlock()
	ds, err := s.own(ctx, ids, 0)
	if err == nil {
		s.inherit = "(" + list[len(list)-1].ID
	}
	return ds, err
}

// own makes entries ours that have been idle for so long.
func (s *source) own(ctx context.Context, ids []any, idle time.Duration) ([]*delivery, error) {
	n := len(ids)
	if n == 0 {
		return nil, nil
	}
	sent := s.now()
	es, err := s.raw(ctx, claimReply, append([]any{"xclaim", s.stream, s.group, s.consumer, idle.Milliseconds()}, ids...)...)
	if err != nil {
		return nil, err
	}
	for i := range es {
		if es[i].gone && es[i].id == "" && len(es) == n { // Redis 6.2 answers null in the place of an entry that was deleted
			es[i].id, _ = ids[i].(string)
		}
	}
	if len(es) < n {
		s.missing.Store(true) // or another was faster
	}
	return s.take(es, sent, true), nil
}

// abandoned says whether an entry that was idle for a lease may be claimed: it is not ours, or we have it and nobody has asked
// to keep it for as long. What we have and could not keep, for want of a server, is still worked on. Call it with mu held.
func (s *source) abandoned(id string) bool {
	d := s.held[id]
	if d == nil {
		return true
	}
	if d.settled.Load() || s.now()-d.touched.Load() < int64(s.lease) {
		return false
	}
	d.lost.Store(true)
	delete(s.held, id)
	return true
}
