package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Prepare checks the brokers' version, makes or names missing topics, delay topics among them, and finds the size limits.
func (t *Transport) Prepare(ctx context.Context, s transport.Subjects) error {
	ctx, cancel := context.WithTimeout(ctx, 4*requestTimeout)
	defer cancel()
	if err := t.checkVersion(ctx); err != nil {
		return err
	}
	var topics []string
	for _, subject := range slices.Concat(s.Sources, s.Sinks) {
		if err := checkTopic(subject); err != nil {
			return err
		}
		if !slices.Contains(topics, subject) {
			topics = append(topics, subject)
		}
	}
	var delays []string
	if t.cfg.Delays && len(s.Sources) > 0 {
		delays = t.delayTopics()
	}
	missing, err := t.missing(ctx, slices.Concat(topics, delays))
	if err != nil {
		return err
	}
	if len(missing) > 0 && !t.cfg.CreateTopics {
		return fmt.Errorf("kafka: these topics are missing: %s; make them, or set kafka.create: true, for which the right to CREATE them is needed (connecting %s): %w",
			listed(missing, delays), t.cfg.SASL.who(), transport.ErrRejected)
	}
	if err := t.createTopics(ctx, missing); err != nil {
		return err
	}
	return t.findLimits(ctx, s, delays)
}

// listed names topics; those for delays, of which there are many, by the first and the last of them.
func listed(missing, delays []string) string {
	var names, waiting []string
	for _, topic := range missing {
		if slices.Contains(delays, topic) {
			waiting = append(waiting, topic)
		} else {
			names = append(names, topic)
		}
	}
	if n := len(waiting); n > 2 {
		waiting = []string{fmt.Sprintf("%s … %s (%d delay topics, by powers of two)", waiting[0], waiting[n-1], n)}
	}
	return strings.Join(append(names, waiting...), ", ")
}

// checkVersion asks every broker what it speaks.
func (t *Transport) checkVersion(ctx context.Context) error {
	versions, err := t.adm.ApiVersions(ctx)
	if err != nil {
		return t.describe("ask the brokers for their versions", err)
	}
	for _, v := range versions {
		if v.Err != nil {
			return t.describe("ask the brokers for their versions", v.Err)
		}
		// Topic ids, without which a topic that was made again cannot be told from the old one, came with metadata version 10.
		if got, ok := v.KeyMaxVersion(kmsg.Metadata.Int16()); !ok || got < 10 {
			return fmt.Errorf("kafka: broker %d is %s; version 2.8 or newer is needed: %w", v.NodeID, v.VersionGuess(), transport.ErrUnsupported)
		}
		if _, ok := v.KeyMaxVersion(kmsg.ConsumerGroupHeartbeat.Int16()); !ok && t.cfg.Protocol == "consumer" {
			return fmt.Errorf("kafka: broker %d is %s; the group protocol consumer needs version 4.0 or newer, or use classic: %w",
				v.NodeID, v.VersionGuess(), transport.ErrUnsupported)
		}
	}
	return nil
}

// missing returns those topics that do not exist.
func (t *Transport) missing(ctx context.Context, topics []string) ([]string, error) {
	if len(topics) == 0 {
		return nil, nil
	}
	details, err := t.adm.ListTopics(ctx, topics...)
	if err != nil {
		return nil, t.describe("list topics", err)
	}
	var missing []string
	for _, topic := range topics {
		d, ok := details[topic]
		switch {
		case !ok || errors.Is(d.Err, kerr.UnknownTopicOrPartition):
			missing = append(missing, topic)
		case d.Err != nil:
			return nil, t.describe("look at topic "+topic, d.Err)
		}
	}
	return missing, nil
}

// createTopics makes topics, delay topics in their own way, and waits until they have leaders.
func (t *Transport) createTopics(ctx context.Context, topics []string) error {
	delays := t.delayTopics()
	isDelay := func(topic string) bool { return slices.Contains(delays, topic) }
	jobs := slices.DeleteFunc(slices.Clone(topics), isDelay)
	if err := t.createAlike(ctx, jobs, int32(t.cfg.Partitions), nil); err != nil {
		return err
	}
	late := slices.DeleteFunc(slices.Clone(topics), func(topic string) bool { return !isDelay(topic) })
	return t.createAlike(ctx, late, delayPartitions, t.delayConfig())
}

func (t *Transport) createAlike(ctx context.Context, topics []string, partitions int32, config map[string]*string) error {
	if len(topics) == 0 {
		return nil
	}
	made, err := t.adm.CreateTopics(ctx, partitions, int16(t.cfg.Replication), config, topics...)
	if err != nil {
		return t.describe("make topics", err)
	}
	for _, topic := range topics {
		c := made[topic]
		switch err := c.Err; {
		case err == nil, errors.Is(err, kerr.TopicAlreadyExists):
		case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
			return fmt.Errorf("kafka: make topic %s: not authorised %s; make it by hand or grant CREATE on it: %w: %w", topic, t.cfg.SASL.who(), transport.ErrRejected, err)
		case errors.Is(err, kerr.InvalidReplicationFactor), errors.Is(err, kerr.InvalidPartitions), errors.Is(err, kerr.PolicyViolation),
			errors.Is(err, kerr.InvalidTopicException), errors.Is(err, kerr.InvalidConfig):
			return fmt.Errorf("kafka: make topic %s with %d partitions and replication %d: %s; change partitions and replication, or make it by hand: %w: %w",
				topic, partitions, t.cfg.Replication, c.ErrMessage, transport.ErrRejected, err)
		default:
			return t.describe("make topic "+topic, err)
		}
	}
	for {
		details, err := t.adm.ListTopics(ctx, topics...)
		if err == nil && led(details, topics) {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("kafka: topics %s were made but have no leaders yet: %w", strings.Join(topics, ", "), ctx.Err())
		}
	}
}

// led says whether every partition of every topic has a leader.
func led(details kadm.TopicDetails, topics []string) bool {
	for _, topic := range topics {
		d := details[topic]
		if d.Err != nil || len(d.Partitions) == 0 {
			return false
		}
		for _, p := range d.Partitions {
			if p.Err != nil || p.Leader < 0 {
				return false
			}
		}
	}
	return true
}

// findLimits asks each topic for its largest batch: sinks are written to, and so are sources, by retries and by routes that are
// chained. A broker that will not tell leaves the configured one.
func (t *Transport) findLimits(ctx context.Context, s transport.Subjects, delays []string) error {
	written := slices.Concat(s.Sources, s.Sinks, delays)
	if len(written) == 0 {
		return nil
	}
	configs, err := t.adm.DescribeTopicConfigs(ctx, written...)
	if err != nil {
		return t.describe("read the topics' max.message.bytes", err)
	}
	least := t.cfg.MaxMessageBytes
	for _, c := range configs {
		if c.Err != nil {
			t.log.Warn("the topic's largest message is not known; grant DESCRIBE_CONFIGS", "topic", c.Name, "assumed", t.cfg.MaxMessageBytes, "err", c.Err)
			continue
		}
		for _, kv := range c.Configs {
			if kv.Key != "max.message.bytes" {
				continue
			}
			if n, err := strconv.Atoi(kv.MaybeValue()); err == nil && n > 0 {
				t.limits.Store(c.Name, int32(min(n, t.cfg.MaxMessageBytes)))
				if slices.Contains(s.Sinks, c.Name) {
					least = min(least, n)
				}
			}
		}
	}
	if least <= overhead {
		return fmt.Errorf("kafka: a topic's max.message.bytes is %d, too small for results and dead letters; raise it: %w", least, transport.ErrRejected)
	}
	t.pub.max.Store(int64(least - overhead))
	return nil
}
