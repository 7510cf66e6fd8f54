package rediskv

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// Range implements store.Store.
func (s *Store) Range(ctx context.Context, r store.Range) ([]store.Member, error) {
	part, limit, err := r.Check()
	if err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, store.ErrClosed
	}
	if err := ctx.Err(); err != nil || r.Min > r.Max {
		return nil, err
	}
	order, _ := s.names(part).set(r.Set)
	low, high := "["+packScore(r.Min), "+"
	if r.Max != math.MaxInt64 {
		high = "(" + packScore(r.Max+1)
	}
	args := []any{"zrangebylex", order, low, high, "LIMIT", 0, limit}
	switch {
	case r.Reverse && r.After != "":
		args[0], args[2], args[3] = "zrevrangebylex", "("+packScore(r.Max)+r.After, low
	case r.Reverse:
		args[0], args[2], args[3] = "zrevrangebylex", high, low
	case r.After != "":
		args[2] = "(" + packScore(r.Min) + r.After
	}
	reply, err := s.batch.do(ctx, nil, 100, args...)
	if err != nil {
		return nil, fmt.Errorf("redis range of set %q: %w", r.Set, err)
	}
	list, ok := reply.([]any)
	if !ok {
		return nil, fmt.Errorf("redis range of set %q: unexpected reply %T", r.Set, reply)
	}
	members := make([]store.Member, len(list))
	for i, e := range list {
		v, ok := e.(string)
		if !ok || len(v) < 8 {
			return nil, fmt.Errorf("redis range of set %q: element that this store did not write", r.Set)
		}
		members[i] = store.Member{Name: v[8:], Score: unpackScore(v)}
	}
	return members, nil
}

// packScore returns 8 bytes that sort as the numbers do, negative ones first.
func packScore(score int64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(score)^1<<63)
	return string(b[:])
}

func unpackScore(s string) int64 {
	return int64(binary.BigEndian.Uint64([]byte(s[:8])) ^ 1<<63)
}
