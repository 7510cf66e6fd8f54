package rediskv

import (
	"context"
	"fmt"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"strconv"
	"strings"
)

// minVersion is the oldest Redis that replicates scripts as this package needs it and knows all of its commands.
const (
	minMajor = 6
	minMinor = 2
)

// inspect asks the server what it is. A server that does not answer INFO to this user is taken as it is, with a warning.
func (s *Store) inspect(ctx context.Context) error {
	text, err := s.client.Info(ctx, "server").Result()
	if err != nil {
		if strings.HasPrefix(err.Error(), "NOPERM") {
			s.cfg.Log.Warn("cannot check the redis version and its eviction policy: allow the user +info", "err", err)
			return nil
		}
		return fmt.Errorf("ask for the version: %w", explain(err))
	}
	version := infoField(text, "redis_version")
	if !atLeast(version, minMajor, minMinor) {
		return fmt.Errorf("%w: redis version is %s, want %d.%d or newer", store.ErrUnsupported, version, minMajor, minMinor)
	}
	text, err = s.client.Info(ctx, "memory").Result()
	if err != nil {
		return fmt.Errorf("ask for the eviction policy: %w", explain(err))
	}
	// Without a bound nothing is ever evicted, and a volatile policy evicts claims and results, which all expire.
	policy := infoField(text, "maxmemory_policy")
	if policy != "" && policy != "noeviction" && infoField(text, "maxmemory") != "0" {
		s.evicts = policy
		s.cfg.Log.Warn("redis may evict keys when its memory is full, and with them claims and results: set maxmemory-policy noeviction",
			"maxmemory_policy", policy)
	}
	return nil
}

func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func atLeast(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}
