package jetstream

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	// duplicates is how long streams that are made recognise a message id.
	duplicates = 2 * time.Minute
	// remakePause lies between the end of a stream and its making again: nats-server 2.15.2 tells consumers of the end before
	// it has moved the stream's directory away, and crashes when the stream is made again in between.
	remakePause = time.Second
	// skewLasts is how long what was learned of the server's clock is good enough, as clocks drift.
	skewLasts = time.Minute
)

// Prepare checks the server's version and that streams hold the subjects, makes those that are missing if it may, and finds
// the size limits. A subject that occurs more than once among the sources is read by several routes.
func (t *Transport) Prepare(ctx context.Context, s transport.Subjects) error {
	if err := t.open(); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if err := t.awaitConnection(wait, nil); err != nil {
		return fmt.Errorf("prepare: %w", classify(err)) // here at the start, credentials that are refused need the operator
	}
	if v := t.nc.ConnectedServerVersion(); older(v, minVersion) {
		return fmt.Errorf("NATS server %s at %s is too old: %s or newer is needed: %w",
			v, t.nc.ConnectedUrlRedacted(), minVersion, transport.ErrUnsupported)
	}
	if err := t.Ping(ctx); err != nil {
		return err
	}
	for i, subject := range s.Sources {
		policy := jetstream.WorkQueuePolicy
		if slices.ContainsFunc(s.Sources[i+1:], func(o string) bool { return overlap(o, subject) }) ||
			slices.ContainsFunc(s.Sources[:i], func(o string) bool { return overlap(o, subject) }) {
			policy = jetstream.InterestPolicy
		}
		t.mu.Lock()
		t.retained[subject] = policy
		t.mu.Unlock()
	}
	var errs []error
	room := t.payloadRoom()
	hold := func(subject string, make *jetstream.StreamConfig) {
		err := t.api(ctx, fmt.Sprintf("prepare %q", subject), func(ctx context.Context) error {
			name, err := t.streamFor(ctx, subject, make)
			if err != nil {
				return err
			}
			info, err := t.streamInfo(ctx, name)
			if err != nil {
				return err
			}
			c := info.Config
			if c.NoAck || c.Sealed {
				return fmt.Errorf("stream %q is sealed or acknowledges nothing (no_ack): what is published to it cannot be relied on: %w",
					name, transport.ErrRejected)
			}
			if subject == t.waitSubject(">") {
				if err := canWait(&c); err != nil {
					return err
				}
			}
			if n := int(c.MaxMsgSize); n > 0 {
				room = min(room, max(1, n-formRoom))
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	t.mu.Lock()
	t.sinks = slices.Clone(s.Sinks)
	t.mu.Unlock()
	for _, subject := range broadFirst(s.Sources) {
		hold(subject, t.jobStream(subject))
	}
	for _, subject := range broadFirst(s.Sinks) {
		hold(subject, t.resultStream(subject))
	}
	if len(s.Sources) > 0 {
		hold(t.waitSubject(">"), t.waitStream())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	t.maxBytes.Store(int64(room))
	return nil
}

// jobStream is what is made for a job subject that no stream holds.
func (t *Transport) jobStream(subject string) *jetstream.StreamConfig {
	c := t.stream(subject)
	t.mu.Lock()
	policy, ok := t.retained[subject]
	t.mu.Unlock()
	if !ok {
		policy = jetstream.WorkQueuePolicy
	}
	c.Retention = policy
	// A full queue refuses new jobs rather than drop old ones.
	c.Discard = jetstream.DiscardNew
	return c
}

// resultStream is what is made for a result or dead-letter subject that no stream holds.
func (t *Transport) resultStream(subject string) *jetstream.StreamConfig {
	c := t.stream(subject)
	c.Retention, c.MaxAge = jetstream.LimitsPolicy, t.cfg.MaxAge
	if c.MaxAge > 0 {
		c.Duplicates = min(c.Duplicates, c.MaxAge)
	}
	return c
}

func (t *Transport) stream(subject string) *jetstream.StreamConfig {
	c := &jetstream.StreamConfig{
		Name: streamName(subject), Subjects: []string{subject}, Description: "made by wasmsidecar", Storage: jetstream.FileStorage,
		Replicas: t.cfg.Replicas, Duplicates: duplicates,
	}
	if t.cfg.Memory {
		c.Storage = jetstream.MemoryStorage
	}
	return c
}

// wanted is the stream that Prepare makes or made for a subject, or nil: it may be made again when it was deleted.
func (t *Transport) wanted(subject string) *jetstream.StreamConfig {
	t.mu.Lock()
	var source, sink string
	for s := range t.retained {
		if covers(s, subject) && (source == "" || covers(s, source)) {
			source = s
		}
	}
	for _, s := range t.sinks {
		if covers(s, subject) && (sink == "" || covers(s, sink)) {
			sink = s
		}
	}
	t.mu.Unlock()
	switch {
	case covers(t.waitSubject(">"), subject):
		return t.waitStream()
	case source != "":
		return t.jobStream(source)
	case sink != "":
		return t.resultStream(sink)
	}
	return nil
}

// streamName names the stream that is made for a subject.
func streamName(subject string) string {
	name := "WASM_" + legal(subject)
	if len(name) > 120 {
		name = name[:100] + "_" + hash(subject)
	}
	return name
}

// hash shortens any text to 13 characters that may stand in names and subjects.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:8]))
}

// streamFor returns the name of the stream that holds all of subject. Without one, it makes the stream that made describes,
// if that may be.
func (t *Transport) streamFor(ctx context.Context, subject string, made *jetstream.StreamConfig) (string, error) {
	again := false
	for {
		name, err := t.holder(ctx, subject)
		if err == nil {
			t.saw(name)
			return name, nil
		}
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return "", err
		}
		c := t.stream(subject)
		if made != nil {
			*c = *made
		}
		if made == nil || !t.cfg.CreateStreams {
			return "", fmt.Errorf("no stream holds subject %q: make one, as with 'nats stream add %s --subjects %q': %w",
				subject, c.Name, subject, transport.ErrRejected)
		}
		if d := max(t.remakeIn(c.Name), t.remakeIn(c.Name+"_"+hash(subject))); d > 0 {
			if err := pause(ctx, d); err != nil {
				return "", err
			}
			continue // someone else may have made it
		}
		_, err = t.js.CreateStream(ctx, *c)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			// The name belongs to another subject (a_b and a.b), or someone was faster.
			if name, err := t.holder(ctx, subject); err == nil {
				return name, nil
			}
			c.Name += "_" + hash(subject)
			_, err = t.js.CreateStream(ctx, *c)
		}
		switch {
		case err == nil:
			t.saw(c.Name)
			t.log.Info("stream made", "stream", c.Name, "subjects", strings.Join(c.Subjects, " "), "retention", c.Retention.String())
			return c.Name, nil
		case isCode(err, codeSubjectOverlap) && !again:
			again = true
			continue // another process has just made it
		}
		return "", fmt.Errorf("make stream %q for subject %q; allow it or make the stream beforehand: %w", c.Name, subject, err)
	}
}

// saw remembers that a stream is there.
func (t *Transport) saw(name string) {
	t.mu.Lock()
	t.seen[name] = time.Time{}
	t.mu.Unlock()
}

// remakeIn is how long a missing stream may not be made yet; 0 where it never was there.
func (t *Transport) remakeIn(name string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	since, ok := t.seen[name]
	if !ok {
		return 0
	}
	if since.IsZero() {
		since = time.Now()
		t.seen[name] = since
	}
	return max(0, remakePause-time.Since(since))
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// holder returns the one stream that holds all of subject, or ErrStreamNotFound.
func (t *Transport) holder(ctx context.Context, subject string) (string, error) {
	if !strings.ContainsAny(subject, "*>") {
		return t.js.StreamNameBySubject(ctx, subject)
	}
	var part []string
	list := t.js.ListStreams(ctx, jetstream.WithStreamListSubject(subject))
	for info := range list.Info() {
		for _, held := range info.Config.Subjects {
			if covers(held, subject) {
				return info.Config.Name, nil
			}
		}
		part = append(part, strconv.Quote(info.Config.Name))
	}
	if err := list.Err(); err != nil {
		return "", err
	}
	if len(part) == 0 {
		return "", jetstream.ErrStreamNotFound
	}
	return "", fmt.Errorf("subject %q is held in part only, by stream %s: a source reads one stream; widen that stream's subjects or "+
		"name the narrower subjects: %w", subject, strings.Join(part, ", "), transport.ErrRejected)
}

// streamInfo asks for a stream and learns how far the server's clock is ahead.
func (t *Transport) streamInfo(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	begun := time.Now()
	s, err := t.js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	info := s.CachedInfo()
	t.measureClock(begun, info)
	return info, nil
}

// measureClock learns how far the server's clock is ahead, from what it said of a stream when it was asked at begun.
func (t *Transport) measureClock(begun time.Time, info *jetstream.StreamInfo) {
	if info.TimeStamp.IsZero() {
		return
	}
	// The answer was made after the question was asked and before it came, so this is the most and the least that the server can
	// be ahead. A slow answer says little, and must do where there is no better one.
	if t.skewStale() || time.Since(begun) < 50*time.Millisecond {
		t.skew.Store(int64(info.TimeStamp.Sub(begun)))
		t.leastSkew.Store(int64(time.Until(info.TimeStamp)))
		t.skewed.Store(int64(time.Since(t.epoch)))
	}
}

// skewStale says that the server's clock was last compared with ours long ago.
func (t *Transport) skewStale() bool {
	last := t.skewed.Load()
	return last == 0 || time.Since(t.epoch)-time.Duration(last) > skewLasts
}

// covers says whether every subject that narrow matches is matched by wide.
func covers(wide, narrow string) bool {
	for {
		w, wrest, wmore := strings.Cut(wide, ".")
		n, nrest, nmore := strings.Cut(narrow, ".")
		switch {
		case w == ">":
			return true
		case n == ">" || w != "*" && w != n:
			return false
		case wmore != nmore:
			return false
		case !wmore:
			return true
		}
		wide, narrow = wrest, nrest
	}
}

// overlap says whether some subject is matched by both.
func overlap(a, b string) bool {
	for {
		x, arest, amore := strings.Cut(a, ".")
		y, brest, bmore := strings.Cut(b, ".")
		switch {
		case x == ">" || y == ">":
			return true
		case x != "*" && y != "*" && x != y:
			return false
		case amore != bmore:
			return false
		case !amore:
			return true
		}
		a, b = arest, brest
	}
}

// broadFirst sorts subjects so that one that covers others comes before them, and drops repeats.
func broadFirst(subjects []string) []string {
	out := slices.Clone(subjects)
	slices.Sort(out)
	out = slices.Compact(out)
	width := func(s string) int {
		n := 0
		for _, o := range out {
			if covers(s, o) {
				n++
			}
		}
		return n
	}
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(width(b), width(a)) })
	return out
}

// older compares versions by their first three numbers.
func older(v, than string) bool {
	a, b := numbers(v), numbers(than)
	return slices.Compare(a[:], b[:]) < 0
}

func numbers(v string) (out [3]int) {
	v, _, _ = strings.Cut(v, "-")
	for i, p := range strings.SplitN(v, ".", 3) {
		out[i], _ = strconv.Atoi(p)
	}
	return out
}
