package redisstream

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

var _ transport.Measured = (*Transport)(nil)

// relayCount is how many entries Relay reads, and settles in one pipeline.
const relayCount = 100

// Relay implements transport.Measured by XREADGROUP and a pipeline of XADD, XACK and XDEL.
func (t *Transport) Relay(ctx context.Context, from, to string, n int) (time.Duration, error) {
	var began time.Time
	settled := int64(0)
	defer func() { // one number at last, instead of the scripts that count each time
		if err := t.client.HIncrBy(context.WithoutCancel(ctx), keysOf(from).count, "settled:"+t.cfg.Group, settled).Err(); err != nil {
			t.log.Debug("what was relayed is not counted", "stream", from, "err", err)
		}
	}()
	args := &redis.XReadGroupArgs{Group: t.cfg.Group, Consumer: t.consumer(), Streams: []string{from, ">"}, Count: relayCount, Block: t.cfg.Block}
	for left := n; n == 0 || left > 0; {
		read, err := t.client.XReadGroup(ctx, args).Result()
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, redis.Nil):
			continue
		case err != nil:
			return 0, fail("relay from stream", from, err)
		}
		if began.IsZero() {
			began = time.Now()
		}
		pipe := t.client.Pipeline()
		ids := make([]string, 0, relayCount)
		for _, e := range read[0].Messages {
			ids = append(ids, e.ID)
			if to == "" {
				continue
			}
			id, _ := e.Values[transport.HeaderJobID].(string)
			body, _ := e.Values[fieldBody].(string)
			m := &transport.Message{Header: job.Header{{Name: transport.HeaderResultOf, Value: id}}, Body: []byte(body)}
			pipe.Do(ctx, encode([]any{"xadd", to, "*"}, m)...)
		}
		pipe.XAck(ctx, from, t.cfg.Group, ids...)
		pipe.XDel(ctx, from, ids...)
		if _, err := pipe.Exec(ctx); err != nil {
			return 0, fail("relay from stream", from, err)
		}
		left -= len(ids)
		settled += int64(len(ids))
	}
	return time.Since(began), nil
}

// Remove implements transport.Measured.
func (t *Transport) Remove(ctx context.Context, subjects ...string) error {
	for _, s := range subjects {
		k := keysOf(s)
		if err := t.client.Unlink(ctx, k.stream, k.due, k.moved, k.count).Err(); err != nil {
			return fail("remove stream", s, err)
		}
	}
	return nil
}
