package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

var _ transport.Measured = (*Transport)(nil)

// Relay implements transport.Measured by franz-go in a group: records are produced without waiting for one another, and their
// offsets are committed once a second.
func (t *Transport) Relay(ctx context.Context, from, to string, n int) (time.Duration, error) {
	var began time.Time
	cl, err := t.client(&health{t: t}, append(t.producerOpts(), kgo.ConsumeTopics(from), kgo.ConsumerGroup(t.cfg.Group),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitMarks(), kgo.AutoCommitInterval(time.Second))...)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	for got := 0; n == 0 || got < n; {
		fs := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := fs.Err(); err != nil {
			return 0, t.describe("relay from "+from, err)
		}
		rs := fs.Records()
		if began.IsZero() && len(rs) > 0 {
			began = time.Now()
		}
		got += len(rs)
		if to == "" {
			cl.MarkCommitRecords(rs...)
			continue
		}
		for _, r := range rs {
			cl.Produce(ctx, relayed(r, to), func(_ *kgo.Record, err error) {
				if err == nil {
					cl.MarkCommitRecords(r)
				}
			})
		}
	}
	if err := cl.Flush(ctx); err != nil {
		return 0, t.describe("relay to "+to, err)
	}
	return time.Since(began), nil
}

// relayed is the record that Relay writes for another.
func relayed(r *kgo.Record, to string) *kgo.Record {
	out := &kgo.Record{Topic: to, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		if h.Key == transport.HeaderJobID {
			out.Headers = []kgo.RecordHeader{{Key: transport.HeaderResultOf, Value: h.Value}}
		}
	}
	return out
}

// Remove implements transport.Measured.
func (t *Transport) Remove(ctx context.Context, subjects ...string) error {
	topics, err := t.adm.ListTopics(ctx)
	if err != nil {
		return t.describe("list topics", err)
	}
	gone := append([]string{}, subjects...)
	for name := range topics {
		if strings.HasPrefix(name, t.cfg.DelayPrefix) {
			gone = append(gone, name)
		}
	}
	deleted, err := t.adm.DeleteTopics(ctx, gone...)
	if err != nil {
		return t.describe("delete topics", err)
	}
	var errs []error
	for _, d := range deleted {
		if d.Err != nil && !errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
			errs = append(errs, t.describe("delete topic "+d.Topic, d.Err))
		}
	}
	for { // topics vanish some time after they are deleted
		missing, err := t.missing(ctx, gone)
		if err == nil && len(missing) == len(gone) {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(append(errs, fmt.Errorf("kafka: deleted topics are still there: %w", ctx.Err()))...)
		}
	}
	groups, err := t.adm.DeleteGroups(ctx, t.cfg.Group, t.delayGroup())
	if err != nil {
		return errors.Join(append(errs, t.describe("delete groups", err))...)
	}
	for _, g := range groups {
		if g.Err != nil && !errors.Is(g.Err, kerr.GroupIDNotFound) {
			errs = append(errs, t.describe("delete group "+g.Group, g.Err))
		}
	}
	return errors.Join(errs...)
}
