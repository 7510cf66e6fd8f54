package redisstream

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// browseCount is how many entries a range has: a reply is held whole, and entries may be large.
const browseCount = 16

// browser reads a stream by ranges.
type browser struct {
	t      *Transport
	stream string
	from   string // where the next range begins
	last   string // the newest entry when it was opened; "" where there was none
	left   []*transport.Stored
	buf    buffer
}

// Browse reads the entries that a stream has now. A stream that does not exist is an empty one.
func (t *Transport) Browse(ctx context.Context, subject string, since time.Time) (transport.Browser, error) {
	if err := checkName(subject); err != nil {
		return nil, fmt.Errorf("browse: %w", err)
	}
	if t.isClosed() {
		return nil, fmt.Errorf("browse stream %q: %w", subject, transport.ErrClosed)
	}
	newest, err := t.client.XRevRangeN(ctx, subject, "+", "-", 1).Result()
	if err != nil {
		return nil, failStart("browse stream", subject, err)
	}
	x := &browser{t: t, stream: subject, from: "-"}
	if len(newest) > 0 {
		x.last = newest[0].ID
	}
	if !since.IsZero() {
		x.from = strconv.FormatInt(max(since.UnixMilli(), 0), 10)
	}
	return x, nil
}

// Next returns the next entry.
func (x *browser) Next(ctx context.Context) (*transport.Stored, error) {
	if len(x.left) == 0 && x.last != "" {
		if err := x.read(ctx); err != nil {
			return nil, fail("browse stream", x.stream, err)
		}
	}
	if len(x.left) == 0 {
		return nil, io.EOF
	}
	m := x.left[0]
	x.left = x.left[1:]
	return m, nil
}

// read takes the next range. go-redis' own form of entries would lose the order of fields, and those that occur twice.
func (x *browser) read(ctx context.Context) error {
	x.buf.reset()
	cmd := redis.NewRawWriteToCmd(ctx, &x.buf, "xrange", x.stream, x.from, x.last, "count", browseCount)
	if err := x.t.client.Process(ctx, cmd); err != nil {
		return err
	}
	es, err := claimReply(x.buf.b, nil)
	if err != nil {
		return err
	}
	for i := range es {
		m := &transport.Stored{Position: x.stream + "/" + es[i].id, Published: published(es[i].id)}
		decode(&m.Message, x.stream, es[i].fields)
		x.left = append(x.left, m)
		x.from = "(" + es[i].id
	}
	return nil
}

// Close does nothing: a browser holds nothing between two reads.
func (x *browser) Close() error { return nil }

// Discard deletes entries.
func (t *Transport) Discard(ctx context.Context, subject string, ms ...*transport.Stored) error {
	if len(ms) == 0 {
		return nil
	}
	ids := make([]any, len(ms))
	for i, m := range ms {
		id, ok := strings.CutPrefix(m.Position, subject+"/")
		if !ok {
			return fmt.Errorf("discard: %q is not a position in stream %q: %w", m.Position, subject, transport.ErrRejected)
		}
		ids[i] = id
	}
	k := keysOf(subject)
	for part := range slices.Chunk(ids, settleBatch) {
		err := discardScript.Run(ctx, t.client, []string{k.stream, k.count}, append([]any{t.cfg.Group}, part...)...).Err()
		if err != nil && !isNil(err) {
			return fail("discard from stream", subject, err)
		}
	}
	return nil
}
