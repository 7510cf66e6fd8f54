package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The commit of a partition is its watermark. Its metadata says two things more, as "wasmsidecar 1 <topic id> <bound>":
//
//   - the topic's id, so that the offsets of a topic that was deleted are not taken for those of one that was made in its place;
//   - the dispatch bound: below it messages may have been handed out. It is written before they are, a step ahead so that
//     nobody waits for it; the next owner hands out what lies between watermark and bound as redelivered.
//
// A commit without such metadata was made by another program: whatever the topic then holds may have been handed out.

const metadataMark = "wasmsidecar 1"

// committed is what the broker remembers of a partition.
type committed struct {
	offset  int64 // -1: nothing
	topicID string
	bound   int64
	ours    bool
}

func formatMetadata(topicID [16]byte, bound int64) string {
	return metadataMark + " " + uuid.UUID(topicID).String() + " " + strconv.FormatInt(bound, 10)
}

// parseMetadata leaves ours false for what another program wrote.
func parseMetadata(offset int64, metadata string) committed {
	c := committed{offset: offset}
	rest, ok := strings.CutPrefix(metadata, metadataMark+" ")
	if !ok {
		return c
	}
	id, bound, ok := strings.Cut(rest, " ")
	n, err := strconv.ParseInt(bound, 10, 64)
	if !ok || err != nil || n < 0 {
		return c
	}
	c.topicID, c.bound, c.ours = id, n, true
	return c
}

// onOffsets keeps what the broker remembers, metadata included, for onAdjust, which follows at once.
func (s *source) onOffsets(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.fetched)
	keep := func(topic string, num int32, offset int64, metadata *string) {
		m := ""
		if metadata != nil {
			m = *metadata
		}
		s.fetched[topicPartition{topic, num}] = parseMetadata(offset, m)
	}
	for i := range resp.Groups {
		for _, t := range resp.Groups[i].Topics {
			for _, p := range t.Partitions {
				keep(t.Topic, p.Partition, p.Offset, p.Metadata)
			}
		}
	}
	if len(resp.Groups) == 0 {
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				keep(t.Topic, p.Partition, p.Offset, p.Metadata)
			}
		}
	}
	return nil
}

// onAdjust decides where the partitions that were just assigned begin. An error makes the client try again.
func (s *source) onAdjust(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	if len(offsets) == 0 {
		return offsets, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	topics := make([]string, 0, len(offsets))
	for topic := range offsets {
		topics = append(topics, topic)
	}
	details, err := s.adm.ListTopics(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("look up topic ids: %w", err)
	}
	starts, err := s.adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list first offsets: %w", err)
	}
	ends, err := s.adm.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("list last offsets: %w", err)
	}
	s.t.rebalances.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return offsets, nil
	}
	for topic, parts := range offsets {
		d, ok := details[topic]
		if !ok || d.Err != nil {
			return nil, fmt.Errorf("topic id of %s: %w", topic, errors.Join(d.Err, kerr.UnknownTopicOrPartition))
		}
		id := [16]byte(d.ID) // zero where the cluster still runs an older version's protocol
		name := uuid.UUID(id).String()
		for num := range parts {
			tp := topicPartition{topic, num}
			start, ok := starts.Lookup(topic, num)
			if !ok || start.Err != nil {
				return nil, fmt.Errorf("first offset of %s/%d: %w", topic, num, errors.Join(start.Err, kerr.UnknownTopicOrPartition))
			}
			end, ok := ends.Lookup(topic, num)
			if !ok || end.Err != nil {
				return nil, fmt.Errorf("last offset of %s/%d: %w", topic, num, errors.Join(end.Err, kerr.UnknownTopicOrPartition))
			}
			c, ok := s.fetched[tp]
			if !ok {
				c.offset = -1
			}
			p := &partition{src: s, topicPartition: tp, topicID: id, prefix: fmt.Sprintf("%s@%s/%d/", topic, name, num), reserve: true}
			p.next, p.below, p.committed = s.begin(p, c, name, start.Offset, end.Offset)
			p.watermark, p.handed = p.next, p.next
			p.step = min(max((end.Offset-p.next)/8, minStep), 16*minStep)
			if p.next != c.offset {
				parts[num] = kgo.NewOffset().At(p.next)
			}
			s.t.log.Debug("partition assigned", "topic", topic, "partition", num, "topic_id", name,
				"committed", c.offset, "from", p.next, "first", start.Offset, "end", end.Offset)
			if old := s.parts[tp]; old != nil {
				s.remove(old)
				old.kill()
			}
			s.admit(p)
		}
	}
	return offsets, nil
}

// begin says where a partition starts, below which offset messages may have been handed out before, and what is committed.
func (s *source) begin(p *partition, c committed, id string, start, end int64) (next, below, known int64) {
	log := s.t.log.With("topic", p.topic, "partition", p.num, "committed", c.offset)
	switch {
	case c.offset < 0:
		return start, 0, -1
	case c.ours && c.topicID != id && p.topicID != [16]byte{}:
		s.t.recreated.Add(1)
		log.Warn("topic was deleted and made again since the last commit: consuming it from its beginning", "was", c.topicID, "is", id)
		return start, 0, -1
	case c.offset > end:
		log.Error("the committed offset lies behind the end of the log: consuming it from its beginning", "start", start, "end", end)
		return start, end, -1
	}
	below = c.bound
	if !c.ours {
		below = end
	}
	if c.offset < start {
		s.gap(p, c.offset, start)
		return start, below, -1
	}
	return c.offset, below, c.offset
}

// revoke gives partitions up: nothing more is handed out, what is out may finish within the drain budget, and the watermark is
// committed for the next owner. The client keeps its membership alive meanwhile.
func (s *source) revoke(m map[string][]int32) {
	ps := s.withdraw(m)
	if len(ps) == 0 || s.closing.Load() {
		return
	}
	s.t.rebalances.Add(1)
	limit := time.NewTimer(s.drain)
	defer limit.Stop()
	for expired := false; !expired && !s.closing.Load() && anyOut(ps); {
		select {
		case <-s.drained:
		case <-limit.C:
			expired = true
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.drain)
	defer cancel()
	if err := s.lastCommit(ctx, ps); err != nil {
		s.t.log.Warn("partitions were given up without a commit; what was settled last will be delivered again", "topic", s.topics[0], "err", err)
	}
	for _, p := range ps {
		p.kill()
	}
}

// lose ends partitions that are no longer ours already.
func (s *source) lose(m map[string][]int32) {
	ps := s.withdraw(m)
	if len(ps) > 0 {
		s.t.rebalances.Add(1)
	}
	for _, p := range ps {
		p.kill()
	}
}

// withdraw stops handing partitions out.
func (s *source) withdraw(m map[string][]int32) []*partition {
	var ps []*partition
	s.mu.Lock()
	defer s.mu.Unlock()
	for topic, nums := range m {
		for _, num := range nums {
			p := s.parts[topicPartition{topic, num}]
			if p == nil {
				continue
			}
			s.remove(p)
			p.mu.Lock()
			p.revoking = true
			p.again = nil
			p.mu.Unlock()
			ps = append(ps, p)
		}
	}
	return ps
}

func anyOut(ps []*partition) bool {
	for _, p := range ps {
		p.mu.Lock()
		out := p.out
		p.mu.Unlock()
		if out > 0 {
			return true
		}
	}
	return false
}

// wantCommit tells the committer that something was settled.
func (s *source) wantCommit() {
	if !s.dirty.Load() && s.dirty.CompareAndSwap(false, true) {
		signal(s.commitC)
	}
}

// committer writes watermarks: at once after a pause, else every commit interval; and larger bounds at once.
func (s *source) committer() {
	var last time.Time
	failures := 0
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		wait := false
		select {
		case <-s.urgentC:
		case <-s.commitC:
			wait = true
		case <-s.ctx.Done():
			return
		}
		if left := s.t.cfg.CommitInterval - time.Since(last); wait && left > 0 {
			pause.Reset(left)
			select {
			case <-pause.C:
			case <-s.urgentC:
			case <-s.ctx.Done():
				return
			}
		}
		s.dirty.Store(false)
		s.mu.Lock()
		ps := make([]*partition, 0, len(s.parts))
		for _, p := range s.parts {
			ps = append(ps, p)
		}
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
		err := s.commit(ctx, ps)
		cancel()
		last = time.Now()
		if err == nil {
			failures = 0
		} else if s.ctx.Err() == nil {
			if !rebalancing(err) {
				s.fail(s.t.describe("commit to group "+s.group, err))
			}
			pause.Reset(min(s.t.cfg.CommitInterval<<failures, 2*time.Second))
			failures = min(failures+1, 8)
			select {
			case <-pause.C:
			case <-s.ctx.Done():
				return
			}
			signal(s.urgentC)
		}
	}
}

// lastCommit commits before partitions are given up. While the group is in motion it tries again, for as long as revoked
// partitions may take to drain.
func (s *source) lastCommit(ctx context.Context, ps []*partition) error {
	for began := time.Now(); ; {
		err := s.commit(ctx, ps)
		if err == nil || !rebalancing(err) || ctx.Err() != nil || time.Since(began) > s.drain {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// rebalancing says that a commit failed because the group is in motion; it is made again, or by the next owner.
func rebalancing(err error) bool {
	return errors.Is(err, kerr.RebalanceInProgress) || errors.Is(err, kerr.IllegalGeneration) ||
		errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.GroupIDNotFound) || errors.Is(err, kerr.StaleMemberEpoch) || errors.Is(err, kerr.FencedMemberEpoch)
}

// commit writes the watermarks that moved and the bounds that are wanted.
func (s *source) commit(ctx context.Context, ps []*partition) error {
	type write struct {
		p                *partition
		watermark, bound int64
	}
	writes := map[topicPartition]write{}
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for _, p := range ps {
		p.mu.Lock()
		if p.dead.Load() || p.watermark == p.committed && (!p.reserve || p.revoking) {
			p.mu.Unlock()
			continue
		}
		w := write{p, p.watermark, max(p.bound, p.below, p.handed+p.step)}
		if p.revoking || s.closing.Load() {
			w.bound = max(p.handed, p.below) // nothing more is handed out: nothing to reserve
		}
		p.mu.Unlock()
		writes[p.topicPartition] = w
		if offsets[p.topic] == nil {
			offsets[p.topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[p.topic][p.num] = kgo.EpochOffset{Epoch: -1, Offset: w.watermark}
	}
	if len(writes) == 0 {
		return nil
	}
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			for j := range req.Topics[i].Partitions {
				part := &req.Topics[i].Partitions[j]
				w := writes[topicPartition{req.Topics[i].Topic, part.Partition}]
				m := formatMetadata(w.p.topicID, w.bound)
				part.Metadata = &m
			}
		}
		return nil
	})
	var failed error
	s.cl.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, req *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if err != nil {
			failed = err
			return
		}
		names := map[[16]byte]string{} // newer answers name topics by id only
		for _, t := range req.Topics {
			names[t.TopicID] = t.Topic
		}
		for _, t := range resp.Topics {
			topic := t.Topic
			if topic == "" {
				topic = names[t.TopicID]
			}
			for _, part := range t.Partitions {
				tp := topicPartition{topic, part.Partition}
				w, ok := writes[tp]
				if !ok {
					continue
				}
				delete(writes, tp)
				if err := kerr.ErrorForCode(part.ErrorCode); err != nil {
					failed = fmt.Errorf("%s/%d: %w", topic, part.Partition, err)
					continue
				}
				w.p.mu.Lock()
				w.p.committed = w.watermark
				w.p.bound = w.bound
				w.p.reserve = false
				w.p.mu.Unlock()
			}
		}
		if failed == nil && len(writes) > 0 {
			failed = fmt.Errorf("the broker did not answer for %d partitions", len(writes))
		}
	})
	signal(s.wake)
	return failed
}
