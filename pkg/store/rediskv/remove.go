package rediskv

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Remove deletes everything that a store with this prefix, or with one that begins with it, has written. It is for stores that
// were made for a measurement: it walks through all keys of the server.
func Remove(ctx context.Context, client redis.UniversalClient, prefix string) error {
	if prefix == "" {
		return errors.New("remove redis store: no prefix, so that all would be removed")
	}
	sweep := func(ctx context.Context, c redis.Cmdable) error {
		for cursor := uint64(0); ; {
			keys, next, err := c.Scan(ctx, cursor, escapeGlob(prefix)+"*", 5000).Result()
			if err != nil {
				return fmt.Errorf("remove redis store: %w", err)
			}
			if len(keys) > 0 {
				pipe := c.Pipeline()
				for _, k := range keys { // one by one: in a cluster they lie in many slots
					pipe.Unlink(ctx, k)
				}
				if _, err := pipe.Exec(ctx); err != nil {
					return fmt.Errorf("remove redis store: %w", err)
				}
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	}
	if cc, ok := client.(*redis.ClusterClient); ok {
		return cc.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return sweep(ctx, c) })
	}
	return sweep(ctx, client)
}
