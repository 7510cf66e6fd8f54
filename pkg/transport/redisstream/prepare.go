package redisstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// needVersion is the oldest server: XPENDING with an idle time came with it.
const needVersion = "6.2"

// Prepare checks the server's version, makes the groups of job streams, and tries with commands that change nothing whether we
// may do what will be needed. All that is wrong is said at once. A server that may evict keys is warned of.
func (t *Transport) Prepare(ctx context.Context, s transport.Subjects) error {
	t.addJobs(s.Sources...)
	if err := t.client.Ping(ctx).Err(); err != nil {
		return failStart("connect to redis", "", err)
	}
	if err := t.checkServer(ctx); err != nil {
		return err
	}
	var errs []error
	for _, subject := range s.Sources {
		errs = append(errs, t.prepareSource(ctx, subject))
	}
	for _, subject := range s.Sinks {
		errs = append(errs, t.prepareSink(ctx, subject))
	}
	return errors.Join(errs...)
}

// checkServer looks at the version and at what the server does when its memory is full, and takes the size limit over.
func (t *Transport) checkServer(ctx context.Context) error {
	text, err := t.client.Info(ctx).Result()
	switch {
	case denied(err):
		t.log.Warn("redis version is not known: the ACL forbids INFO", "needed", needVersion)
	case err != nil:
		return failStart("read the redis version", "", err)
	default:
		if err := t.judge(parseInfo(text)); err != nil {
			return err
		}
	}
	limit, err := t.client.ConfigGet(ctx, "proto-max-bulk-len").Result()
	if err != nil {
		if replied(err) {
			return nil // the ACL or the provider keeps it secret: the default of 512 MiB is far above ours
		}
		return failStart("read the size limit of redis", "", err)
	}
	if n, err := strconv.ParseInt(limit["proto-max-bulk-len"], 10, 64); err == nil && n > 0 {
		// Room for field names and for the packed form of a message that waits.
		t.maxBytes.Store(min(max(n-n/16, 1), defaultMaxBytes))
	}
	return nil
}

// judge refuses a server that is too old and warns of one that may lose what it was given.
func (t *Transport) judge(info map[string]string) error {
	if v := info["redis_version"]; v != "" && !atLeast(v, needVersion) {
		return fmt.Errorf("check redis: %w: version %s found, %s or newer needed", transport.ErrUnsupported, v, needVersion)
	}
	if p := info["maxmemory_policy"]; p != "" && p != "noeviction" {
		t.log.Warn("redis may evict keys when its memory is full, and jobs or their state with them; set maxmemory-policy to noeviction",
			"maxmemory_policy", p)
	}
	return nil
}

// prepareSource makes the group and tries the commands of a source on an entry that cannot exist.
func (t *Transport) prepareSource(ctx context.Context, stream string) error {
	if err := checkName(stream); err != nil {
		return fmt.Errorf("prepare stream: %w", err)
	}
	made, err := t.makeGroup(ctx, stream)
	if err != nil {
		return err
	}
	k := keysOf(stream)
	pipe := t.client.Pipeline()
	pipe.HIncrBy(ctx, k.count, "settled:"+t.cfg.Group, 0)
	pipe.XAck(ctx, stream, t.cfg.Group, "0-0")
	pipe.XDel(ctx, stream, "0-0")
	pipe.XPending(ctx, stream, t.cfg.Group)
	pipe.XClaimJustID(ctx, &redis.XClaimArgs{Stream: stream, Group: t.cfg.Group, Consumer: t.cfg.Consumer, Messages: []string{"0-0"}})
	pipe.ZCard(ctx, k.due)
	pipe.HLen(ctx, k.moved)
	if _, err := pipe.Exec(ctx); err != nil && !isNil(err) && !noGroup(err) {
		return failStart("prepare stream", stream, err)
	}
	if err := t.look(ctx, stream, made); err != nil {
		return failStart("prepare stream", stream, err)
	}
	if err := dueScript.Run(ctx, t.client, []string{k.stream, k.due, k.moved}, dueBatch, dueBytes).Err(); err != nil {
		return failStart("prepare stream", stream, err)
	}
	groups, err := t.client.XInfoGroups(ctx, stream).Result()
	if err != nil {
		return failStart("prepare stream", stream, err)
	}
	for _, g := range groups {
		if g.Name != t.cfg.Group {
			t.log.Warn("another group reads this job stream; entries are deleted when a job is done, whether or not it has read them",
				"stream", stream, "group", g.Name)
		}
	}
	return nil
}

// prepareSink tries to write with an id that is always refused, after rights and type have been checked.
func (t *Transport) prepareSink(ctx context.Context, stream string) error {
	if err := checkName(stream); err != nil {
		return fmt.Errorf("prepare stream: %w", err)
	}
	n, err := t.client.Exists(ctx, stream).Result()
	if err != nil && !denied(err) {
		return failStart("prepare stream", stream, err)
	}
	if err == nil && n == 0 && !t.cfg.CreateStreams {
		return fmt.Errorf("prepare stream: %w", missing(stream))
	}
	if err := t.client.XLen(ctx, stream).Err(); err != nil && !denied(err) {
		return failStart("prepare stream", stream, err)
	}
	err = t.client.Do(ctx, "xadd", stream, "nomkstream", "0-0", fieldBody, "").Err()
	if err != nil && !isNil(err) && !strings.Contains(err.Error(), "must be greater than 0-0") {
		return failStart("prepare stream", stream, err)
	}
	return nil
}

// parseInfo reads the answer of INFO.
func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		if k, v, ok := strings.Cut(strings.TrimSpace(sc.Text()), ":"); ok {
			info[k] = v
		}
	}
	return info
}

// atLeast compares versions by their first two numbers. What is no number is new.
func atLeast(have, want string) bool {
	h, w := strings.SplitN(have, ".", 3), strings.SplitN(want, ".", 3)
	for i := range min(2, len(h), len(w)) {
		a, errA := strconv.Atoi(h[i])
		b, errB := strconv.Atoi(w[i])
		if errA != nil || errB != nil {
			return true
		}
		if a != b {
			return a > b
		}
	}
	return true
}
