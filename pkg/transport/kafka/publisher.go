package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// overhead is what Kafka's batch, its record and our delay headers add to a message's size; MaxBytes keeps it free.
const overhead = 2 << 10

// Bounds of what waits to be written. Produce blocks beyond them.
const (
	maxBuffered      = 16_384
	maxBufferedBytes = 128 << 20
)

// producerOpts are those of the transport's own client.
func (t *Transport) producerOpts() []kgo.Opt {
	c := &t.cfg
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()), // idempotent by default
		kgo.ProducerLinger(c.Linger),
		kgo.RecordDeliveryTimeout(c.DeliveryTimeout),
		kgo.ProducerBatchCompression(codec(c.Compression)...),
		kgo.ProducerBatchMaxBytesFn(t.batchLimit),
		kgo.MaxBufferedRecords(maxBuffered),
		kgo.MaxBufferedBytes(maxBufferedBytes),
	}
}

// codec is nil for an unknown compression.
func codec(compression string) []kgo.CompressionCodec {
	switch compression {
	case "", "none":
		return []kgo.CompressionCodec{kgo.NoCompression()}
	case "gzip":
		return []kgo.CompressionCodec{kgo.GzipCompression()}
	case "snappy":
		return []kgo.CompressionCodec{kgo.SnappyCompression()}
	case "lz4":
		return []kgo.CompressionCodec{kgo.Lz4Compression()}
	case "zstd":
		return []kgo.CompressionCodec{kgo.ZstdCompression()}
	}
	return nil
}

// batchLimit is the largest record batch of a topic.
func (t *Transport) batchLimit(topic string) int32 {
	limit := int32(t.cfg.MaxMessageBytes)
	if v, ok := t.limits.Load(topic); ok {
		limit = min(limit, v.(int32))
	}
	return limit
}

// messageLimit is the largest Message.Size that a topic takes.
func (t *Transport) messageLimit(topic string) int { return int(t.batchLimit(topic)) - overhead }

// quickRecords is how many records may be on their way for another one not to linger: with so few there is nothing to share a batch
// with, and the linger would be most of what a lone job waits for.
const quickRecords = 16

// publisher writes with one idempotent producer. Records of concurrent calls share batches.
type publisher struct {
	t   *Transport
	cl  *kgo.Client
	max atomic.Int64 // Message.Size that fits every sink

	wave  atomic.Pointer[wave] // the last
	under atomic.Int64         // records under way
	waits sync.Pool            // of *wait

	mu     sync.Mutex
	purged map[string]time.Time // topics that the producer was made to forget
}

// wave is calls that began at about the same time, which wait for as long: a timer for each would cost as much as writing its record.
type wave struct {
	since time.Time
	over  chan struct{}
}

// wait returns what is closed once a call that begins now has waited for the delivery timeout, or a quarter longer.
func (p *publisher) wait(now time.Time) <-chan struct{} {
	d, w := p.t.cfg.DeliveryTimeout, p.wave.Load()
	if w == nil || now.Sub(w.since) > d/4 {
		w = &wave{now, make(chan struct{})}
		time.AfterFunc(d+d/4, func() { close(w.over) })
		p.wave.Store(w)
	}
	return w.over
}

var _ transport.Publisher = (*publisher)(nil)

func newPublisher(t *Transport, cl *kgo.Client) *publisher {
	p := &publisher{t: t, cl: cl, purged: map[string]time.Time{}}
	p.max.Store(int64(t.cfg.MaxMessageBytes - overhead))
	return p
}

// MaxBytes is the smallest of what Prepare found for the sinks, less what Kafka's form adds.
func (p *publisher) MaxBytes() int { return int(p.max.Load()) }

// Publish waits until all in-sync replicas have every message.
func (p *publisher) Publish(ctx context.Context, ms ...*transport.Message) error {
	var one [1]*kgo.Record
	rs := one[:0]
	for _, m := range ms {
		if err := checkTopic(m.Subject); err != nil {
			return err
		}
		if limit := p.t.messageLimit(m.Subject); m.Size() > limit {
			return fmt.Errorf("kafka: publish %d bytes to %s: %d are taken; raise the topic's max.message.bytes or make the message smaller: %w",
				m.Size(), m.Subject, limit, transport.ErrTooLarge)
		}
		rs = append(rs, record(m, m.Subject, 0))
	}
	return p.produce(ctx, rs)
}

// record makes the record of a message, with room for more headers.
func record(m *transport.Message, topic string, more int) *kgo.Record {
	r := &kgo.Record{Topic: topic, Key: m.Key, Value: m.Body}
	if r.Value == nil {
		r.Value = []byte{} // nil would be a tombstone
	}
	n := len(m.Header) + more
	reply := m.ReplyTo != "" && m.Header.Get(transport.HeaderReplyTo) == ""
	if reply {
		n++
	}
	if n == 0 {
		return r
	}
	r.Headers = make([]kgo.RecordHeader, 0, n)
	for _, f := range m.Header {
		value := []byte{} // nil would be null
		if f.Value != "" {
			value = unsafe.Slice(unsafe.StringData(f.Value), len(f.Value)) // the client only reads it
		}
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: f.Name, Value: value})
	}
	if reply {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: transport.HeaderReplyTo, Value: []byte(m.ReplyTo)})
	}
	return r
}

// produce writes records and waits for all of them; its error is the gravest.
func (p *publisher) produce(ctx context.Context, rs []*kgo.Record) error {
	var worst error
	for _, err := range p.produceEach(ctx, rs) {
		if err != nil && (worst == nil || transport.Permanent(err)) {
			worst = err
		}
	}
	return worst
}

// produceEach writes records and returns an error for each, or nil when all were taken. What fails because its topic was made
// again, or is missing and may be made, is written again.
func (p *publisher) produceEach(ctx context.Context, rs []*kgo.Record) []error {
	began := time.Now()
	over := p.wait(began)
	errs := p.send(ctx, over, rs)
	for attempt := 1; attempt < 3 && errs != nil; attempt++ {
		var redo []*kgo.Record
		var at []int
		for i, err := range errs {
			if err != nil && p.mend(ctx, rs[i].Topic, began, err) {
				r := rs[i] // copied, as the client has written its own fields into it
				redo = append(redo, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers})
				at = append(at, i)
			}
		}
		if len(redo) == 0 {
			break
		}
		began = time.Now()
		again := p.send(ctx, over, redo)
		for i, j := range at {
			errs[j] = nil
			if again != nil {
				errs[j] = again[i]
			}
		}
	}
	for i, err := range errs {
		if err != nil {
			errs[i] = p.refused(rs[i], err)
		}
	}
	return errs
}

// send produces records and waits for all of them, or until ctx ends or time is over. It returns nil when every one was taken.
func (p *publisher) send(ctx context.Context, over <-chan struct{}, rs []*kgo.Record) []error {
	if len(rs) == 0 {
		return nil
	}
	late := context.DeadlineExceeded
	w, ok := p.waits.Get().(*wait)
	if !ok {
		w = &wait{p: p, done: make(chan struct{}, 1)}
		w.promise = w.finish
	}
	w.left = len(rs)
	if p.under.Add(int64(len(rs))) <= quickRecords && len(rs) == 1 {
		// ProduceSync does not linger, but goes by no context once the record is under way.
		r := rs[0]
		go func() { w.finish(r, p.cl.ProduceSync(ctx, r).FirstErr()) }()
	} else {
		for _, r := range rs {
			p.cl.Produce(ctx, r, w.promise)
		}
	}
	select {
	case <-w.done:
		return w.over(rs)
	case <-ctx.Done():
		late = context.Cause(ctx)
	case <-over:
	}
	select {
	case <-w.done:
		return w.over(rs)
	default:
	}
	// The rest are under way, and their answers come too late: any of them may be taken yet.
	errs := make([]error, len(rs))
	for i := range errs {
		errs[i] = fmt.Errorf("not taken in time: %w", late)
	}
	return errs
}

// wait gathers the answers to the records of one call.
type wait struct {
	p       *publisher
	promise func(*kgo.Record, error) // finish
	done    chan struct{}            // gets one with the last answer

	mu     sync.Mutex
	left   int
	failed []failure
}

// failure is a record that was not taken.
type failure struct {
	r   *kgo.Record
	err error
}

func (w *wait) finish(r *kgo.Record, err error) {
	w.p.under.Add(-1)
	w.mu.Lock()
	if err != nil {
		w.failed = append(w.failed, failure{r, err})
	}
	w.left--
	last := w.left == 0
	w.mu.Unlock()
	if last {
		w.done <- struct{}{}
	}
}

// over returns the errors of records, nil when every one was taken, and gives w back: all have been answered.
func (w *wait) over(rs []*kgo.Record) (errs []error) {
	for _, f := range w.failed {
		if errs == nil {
			errs = make([]error, len(rs))
		}
		errs[slices.Index(rs, f.r)] = f.err
	}
	w.failed = nil
	w.p.waits.Put(w)
	return errs
}

// mend does what it can about a record that failed, and says whether writing it again may help.
func (p *publisher) mend(ctx context.Context, topic string, began time.Time, err error) bool {
	switch {
	case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID):
		// The topic was made again. Unless the producer forgets it, everything it writes there fails from now on.
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.purged[topic].Before(began) {
			p.cl.PurgeTopicsFromProducing(topic)
			p.purged[topic] = time.Now()
			p.t.recreated.Add(1)
			p.t.log.Warn("topic was deleted; writing to what is made in its place", "topic", topic)
		}
		return true
	case isPurged(err):
		return true // by another call's mending, while this record was buffered
	case errors.Is(err, kerr.UnknownTopicOrPartition) && p.t.cfg.CreateTopics:
		ctx, cancel := context.WithTimeout(ctx, p.t.cfg.DeliveryTimeout)
		defer cancel()
		return p.t.createTopics(ctx, []string{topic}) == nil
	}
	return false
}

// isPurged knows the client's error for records of a topic that it was made to forget; it has no name.
func isPurged(err error) bool { return strings.Contains(err.Error(), "purged while buffered") }

// refused says why a record was not taken, and whether that is for good.
func (p *publisher) refused(r *kgo.Record, err error) error {
	switch {
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		return fmt.Errorf("kafka: publish %d bytes to %s: more than the %d that a batch may have; raise the topic's max.message.bytes or make the message smaller: %w: %w",
			recordSize(r), r.Topic, p.t.batchLimit(r.Topic), transport.ErrTooLarge, err)
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fmt.Errorf("kafka: publish to %s: not authorised %s; grant WRITE on the topic: %w: %w", r.Topic, p.t.cfg.SASL.who(), transport.ErrRejected, err)
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		return fmt.Errorf("kafka: publish to %s: there is no such topic; make it, or set create and grant CREATE: %w: %w", r.Topic, transport.ErrRejected, err)
	case errors.Is(err, kerr.InvalidTopicException):
		return fmt.Errorf("kafka: publish to %s: the broker refuses the topic's name: %w: %w", r.Topic, transport.ErrRejected, err)
	case errors.Is(err, kerr.InvalidRecord), errors.Is(err, kerr.PolicyViolation):
		return fmt.Errorf("kafka: publish to %s: the topic refuses the record (a compacted topic needs keys; set Wasm-Key): %w: %w", r.Topic, transport.ErrRejected, err)
	default:
		return p.t.describe("publish to "+r.Topic, err)
	}
}

// close flushes until ctx ends.
func (p *publisher) close(ctx context.Context) error {
	err := p.cl.Flush(ctx)
	p.cl.Close()
	if err != nil {
		return fmt.Errorf("kafka: flush what is being published: %w", err)
	}
	return nil
}

// headersOf gives the headers of a record that are not ours for moving it.
func headersOf(h job.Header, without ...string) job.Header {
	out := make(job.Header, 0, len(h)+2)
next:
	for _, f := range h {
		for _, name := range without {
			if strings.EqualFold(f.Name, name) {
				continue next
			}
		}
		out = append(out, f)
	}
	return out
}
