package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// tail reads all partitions that a topic has when it begins.
type tail struct {
	t     *Transport
	cl    *kgo.Client
	topic string
	queue []*kgo.Record
	slabs slabs
}

// Tail observes a topic. Partitions that are added later are not seen.
func (t *Transport) Tail(ctx context.Context, subject string, fromStart bool) (transport.Tail, error) {
	if err := checkTopic(subject); err != nil {
		return nil, err
	}
	list := t.adm.ListEndOffsets
	if fromStart {
		list = t.adm.ListStartOffsets
	}
	listed, err := list(ctx, subject)
	if err != nil {
		return nil, t.describe("tail "+subject, err)
	}
	at := map[int32]kgo.Offset{}
	listed.Each(func(o kadm.ListedOffset) {
		if o.Err != nil {
			err = errors.Join(err, o.Err)
			return
		}
		at[o.Partition] = kgo.NewOffset().At(o.Offset)
	})
	switch {
	case len(at) == 0 && (err == nil || errors.Is(err, kerr.UnknownTopicOrPartition)):
		return nil, fmt.Errorf("kafka: tail %s: there is no such topic; make it first: %w", subject, transport.ErrRejected)
	case err != nil:
		return nil, t.describe("tail "+subject, err)
	}
	cl, err := t.client(&health{t: t}, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{subject: at}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMinBytes(1), kgo.FetchMaxBytes(fetchBytes))
	if err != nil {
		return nil, err
	}
	return &tail{t: t, cl: cl, topic: subject}, nil
}

// Next waits for the next message of any partition.
func (l *tail) Next(ctx context.Context) (*transport.Message, error) {
	for len(l.queue) == 0 {
		fs := l.cl.PollRecords(ctx, pollMax)
		if fs.IsClientClosed() {
			return nil, fmt.Errorf("kafka: tail %s: %w", l.topic, transport.ErrClosed)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l.queue = fs.Records()
		if err := fs.Err(); err != nil && len(l.queue) == 0 {
			return nil, l.t.describe("tail "+l.topic, err)
		}
	}
	r := l.queue[0]
	l.queue = l.queue[1:]
	d := l.slabs.fill(&partition{topicPartition: topicPartition{r.Topic, r.Partition}}, r)
	m := d.msg
	return &m, nil
}

func (l *tail) Close() error {
	l.cl.Close()
	return nil
}
