package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Kafka cannot take a single record away. Discard writes a mark instead: an empty record behind it in the same partition, which names
// its offset, lives as long as it does and is passed over by Browse. An offset that is committed for a group would be simpler, but
// says nothing of single records, and is forgotten when the group has been empty for a week.

// headerDiscarded is on a mark: the offset that it takes away.
const headerDiscarded = "Wasm-Discarded"

// browser reads every partition to the end that it had.
type browser struct {
	t      *Transport
	topic  string
	prefix string // of positions, without the partition
	cl     *kgo.Client
	ends   map[int32]int64 // of partitions that are not read to their end
	queue  []*kgo.Record
	gone   map[int32]map[int64]bool // what marks name
	slabs  slabs
}

// Browse reads what a topic holds now. It reads the topic twice: marks lie behind what they name.
func (t *Transport) Browse(ctx context.Context, subject string, since time.Time) (transport.Browser, error) {
	marks, err := t.browse(ctx, subject, since)
	if err != nil {
		return nil, err
	}
	defer marks.cl.Close()
	gone := map[int32]map[int64]bool{}
	for {
		r, err := marks.record(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if at, ok := discarded(r); ok {
			if gone[r.Partition] == nil {
				gone[r.Partition] = map[int64]bool{}
			}
			gone[r.Partition][at] = true
		}
	}
	x, err := t.browse(ctx, subject, since)
	if err != nil {
		return nil, err
	}
	x.gone = gone
	return x, nil
}

// browse opens a browser that shows everything.
func (t *Transport) browse(ctx context.Context, topic string, since time.Time) (*browser, error) {
	if err := checkTopic(topic); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*requestTimeout)
	defer cancel()
	doing := "browse " + topic
	details, err := t.adm.ListTopics(ctx, topic)
	if err != nil {
		return nil, t.describe(doing, err)
	}
	if err := details[topic].Err; errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil, fmt.Errorf("kafka: browse %s: there is no such topic: %w", topic, transport.ErrRejected)
	} else if err != nil {
		return nil, t.describe(doing, err)
	}
	starts, err := t.adm.ListStartOffsets(ctx, topic)
	if err == nil && !since.IsZero() {
		starts, err = t.adm.ListOffsetsAfterMilli(ctx, since.UnixMilli(), topic)
	}
	if err != nil {
		return nil, t.describe(doing, err)
	}
	ends, err := t.adm.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return nil, t.describe(doing, err)
	}
	x := &browser{t: t, topic: topic, prefix: fmt.Sprintf("%s@%s/", topic, uuid.UUID(details[topic].ID)), ends: map[int32]int64{}}
	at := map[int32]kgo.Offset{}
	ends.Each(func(end kadm.ListedOffset) {
		start, ok := starts.Lookup(topic, end.Partition)
		if bad := errors.Join(end.Err, start.Err); bad != nil || !ok {
			err = errors.Join(err, bad)
		} else if start.Offset < end.Offset && start.Offset >= 0 {
			x.ends[end.Partition], at[end.Partition] = end.Offset, kgo.NewOffset().At(start.Offset)
		}
	})
	if err != nil {
		return nil, t.describe(doing, err)
	}
	opts := []kgo.Opt{kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMinBytes(1), kgo.FetchMaxBytes(fetchBytes), kgo.KeepControlRecords()}
	if len(at) > 0 {
		opts = append(opts, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}))
	}
	x.cl, err = t.client(&health{t: t}, opts...)
	return x, err
}

// record returns the next record, marks and all.
func (x *browser) record(ctx context.Context) (*kgo.Record, error) {
	for {
		for len(x.queue) > 0 {
			r := x.queue[0]
			x.queue = x.queue[1:]
			end, open := x.ends[r.Partition]
			if !open {
				continue
			}
			if r.Offset+1 >= end { // control records count too, or a transaction's end would be waited for in vain
				delete(x.ends, r.Partition)
			}
			if r.Offset < end && !r.Attrs.IsControl() {
				return r, nil
			}
		}
		if len(x.ends) == 0 {
			return nil, io.EOF
		}
		fs := x.cl.PollRecords(ctx, pollMax)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		x.queue = fs.Records()
		if err := fs.Err(); err != nil && len(x.queue) == 0 {
			return nil, x.t.describe("browse "+x.topic, err)
		}
	}
}

// discarded reads a mark.
func discarded(r *kgo.Record) (int64, bool) {
	for _, h := range r.Headers {
		if h.Key == headerDiscarded {
			n, err := strconv.ParseInt(string(h.Value), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// Next returns the next message that is neither a mark nor discarded.
func (x *browser) Next(ctx context.Context) (*transport.Stored, error) {
	for {
		r, err := x.record(ctx)
		if err != nil {
			return nil, err
		}
		if _, mark := discarded(r); mark || x.gone[r.Partition][r.Offset] {
			continue
		}
		d := x.slabs.fill(&partition{topicPartition: topicPartition{r.Topic, r.Partition}}, r)
		return &transport.Stored{
			Message: d.msg, Position: fmt.Sprintf("%s%d/%d", x.prefix, r.Partition, r.Offset), Published: r.Timestamp,
		}, nil
	}
}

// Close ends the browser.
func (x *browser) Close() error {
	x.cl.Close()
	return nil
}

// Discard writes marks, each with the key of what it takes away, so that a compacted topic takes them too.
func (t *Transport) Discard(ctx context.Context, subject string, ms ...*transport.Stored) error {
	if len(ms) == 0 {
		return nil
	}
	if err := checkTopic(subject); err != nil {
		return err
	}
	details, err := t.adm.ListTopics(ctx, subject)
	if err != nil {
		return t.describe("discard at "+subject, err)
	}
	prefix := fmt.Sprintf("%s@%s/", subject, uuid.UUID(details[subject].ID))
	// The transport's own producer chooses partitions by key; marks belong where the offsets are.
	cl, err := t.client(&health{t: t}, append(t.producerOpts(), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	rs := make([]*kgo.Record, len(ms))
	for i, m := range ms {
		text, ok := strings.CutPrefix(m.Position, prefix)
		part, offset, ok2 := strings.Cut(text, "/")
		num, err := strconv.ParseInt(part, 10, 32)
		if !ok || !ok2 || err != nil {
			return fmt.Errorf("kafka: discard: %q is not a position in topic %s as it is now: %w", m.Position, subject, transport.ErrRejected)
		}
		mark := &transport.Message{Key: m.Key, Header: job.Header{{Name: headerDiscarded, Value: offset}}}
		rs[i] = record(mark, subject, 0)
		rs[i].Partition = int32(num)
	}
	if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
		return t.describe("discard at "+subject, err)
	}
	return nil
}
