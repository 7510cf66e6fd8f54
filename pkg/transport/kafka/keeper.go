package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// fetchError sorts what the client could not mend by itself. mu is held.
func (s *source) fetchError(topic string, num int32, err error) {
	var loss *kgo.ErrDataLoss
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, kgo.ErrClientClosed):
	case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID):
		// The topic was deleted, and perhaps made again. Its old offsets mean nothing there, so nothing of it may be committed.
		s.abandon(topic)
		s.purge[topic] = true
		signal(s.purgeC)
	case errors.As(err, &loss):
		s.t.log.Error("the broker lost messages that were read already", "topic", topic, "partition", num,
			"read_to", loss.ConsumedTo, "reset_to", loss.ResetTo)
		if p := s.parts[topicPartition{topic, num}]; p != nil {
			s.replace(p, loss.ResetTo)
		}
	default:
		doing := "consume " + s.topics[0] + " in group " + s.group
		if topic != "" {
			doing = "consume " + topic
		}
		s.err = s.t.describe(doing, err)
	}
}

// abandon loses all partitions of a topic. mu is held.
func (s *source) abandon(topic string) {
	for tp, p := range s.parts {
		if tp.topic == topic {
			s.remove(p)
			p.kill()
		}
	}
}

// keeper sees to topics that come and go: it lets the client forget those that were deleted, so that it finds what is made in
// their place, and tells of those that are missing, which the client waits for in silence.
func (s *source) keeper() {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	absent := false
	for {
		select {
		case <-s.purgeC:
			s.purgeTopics()
			select { // no hot loop while the topic is away
			case <-time.After(time.Second):
			case <-s.ctx.Done():
				return
			}
		case <-look.C:
			absent = s.lookForTopics(absent)
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *source) purgeTopics() {
	s.mu.Lock()
	topics := slices.Collect(maps.Keys(s.purge))
	clear(s.purge)
	s.mu.Unlock()
	if len(topics) == 0 {
		return
	}
	s.t.recreated.Add(int64(len(topics)))
	s.t.log.Warn("topic was deleted; consuming what is made in its place", "topics", topics)
	s.cl.PurgeTopicsFromConsuming(topics...)
	s.cl.AddConsumeTopics(topics...)
}

// lookForTopics asks for the topics while no partition is ours, and says whether one is missing.
func (s *source) lookForTopics(absent bool) bool {
	s.mu.Lock()
	idle := len(s.parts) == 0
	s.mu.Unlock()
	if !idle {
		return false
	}
	ctx, cancel := context.WithTimeout(s.ctx, requestTimeout)
	defer cancel()
	missing, err := s.t.missing(ctx, s.topics)
	switch {
	case err != nil:
		return absent // Fetch is told of it by others
	case len(missing) > 0:
		s.fail(fmt.Errorf("kafka: consume %s: there is no such topic; make it, or set create and grant CREATE", strings.Join(missing, ", ")))
		return true
	case absent:
		s.cl.ForceMetadataRefresh()
	}
	return false
}
