package transport

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Decoder turns the messages of one route into jobs. It is immutable and may be used by many goroutines at once.
type Decoder struct {
	Route    string
	Envelope Envelope
	// Module is a fixed name, or a template with {header.NAME} in it; "" is the same as {header.Wasm-Module}, but a message
	// without that header is no fault yet: its job has no Module. See ValidModule.
	Module      string
	MaxBody     int           // largest body in bytes, the envelope taken off; 0: no limit
	MaxAttempts int           // the route's; a header may ask for fewer. 0: no limit
	Timeout     time.Duration // the route's; a header may ask for less. 0: no limit
	Reply       []string      // patterns of the subjects that producers may have results sent to
}

// Decode makes a job of a delivery. It never returns nil and never panics: a job that cannot be decoded has Invalid set, an
// *job.Error of KindInvalid that names what is wrong and the remedy; it has its id, and its Body is the message's.
//
// A job that a sidecar has moved (Moved) has in Attempt the number of executions made so far, and any other has 0. A reply
// subject that Reply does not allow is left out of the job, which runs all the same; the header stays in Header.
func (d *Decoder) Decode(dl Delivery) *job.Job {
	m := dl.Message()
	var f fields
	f.scan(m.Header)
	j := &job.Job{
		Route: d.Route, Subject: m.Subject, Source: dl.Position(), Header: m.Header, Body: m.Body,
		Published: dl.Published(), Redelivered: dl.Redelivered(),
		CorrelationID: f.first(fieldCorrelation, fieldCorrelationWM),
	}
	if j.Key = f[fieldKey]; len(m.Key) > 0 {
		j.Key = string(m.Key)
	}
	reply := m.ReplyTo
	if reply == "" {
		reply = f[fieldReplyTo]
	}
	if reply != "" && ReplyAllowed(d.Reply, reply) {
		j.ReplyTo = reply
	}
	var env drasmJob
	if d.Envelope == EnvelopeDRASM {
		if err := env.parse(m.Body); err != nil {
			j.Invalid = err
		} else {
			j.Body, j.TypeName = env.body, env.typeName
		}
	}
	j.ID = id(&f, env.id, j.Source, m)
	err := d.module(j, f[fieldModule], env.module)
	if j.Invalid == nil {
		j.Invalid = err
	}
	if err := d.times(j, &f); j.Invalid == nil {
		j.Invalid = err
	}
	if err := d.counts(j, &f); j.Invalid == nil {
		j.Invalid = err
	}
	if d.MaxBody > 0 && len(j.Body) > d.MaxBody && j.Invalid == nil {
		j.Invalid = invalid("the body has %d bytes and route %q takes %d; send less, or raise the route's limit", len(j.Body), d.Route, d.MaxBody)
	}
	return j
}

// invalid makes the error of a message that cannot be decoded. It returns the interface, so that nil stays nil.
func invalid(format string, args ...any) error {
	return job.Errorf(job.KindInvalid, "decode: "+format, args...)
}

// id finds the job id: the headers in their order, the envelope's, or the position.
func id(f *fields, envelope, position string, m *Message) string {
	s := f.first(fieldJobID, fieldMsgID, fieldIdempotency)
	if s == "" {
		if s = f[fieldCEID]; s != "" && f[fieldCESource] != "" {
			s = f[fieldCESource] + "/" + s
		}
	}
	for _, next := range [...]string{f[fieldWatermillUUID], envelope, position} {
		if s == "" {
			s = next
		}
	}
	if s == "" { // a transport that breaks its contract must not make one job of all its messages
		sum := sha256.Sum256(append(append([]byte(m.Subject), 0), m.Body...))
		return hex.EncodeToString(sum[:])
	}
	if !fitsHeader(s) || len(s) > job.MaxIDLen {
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:])
	}
	return s
}

// fitsHeader says whether s survives as a header's value on every broker: valid UTF-8 without control characters, and without
// the spaces around it that NATS takes away.
func fitsHeader(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return s[0] != ' ' && s[len(s)-1] != ' ' && utf8.ValidString(s)
}

const headerOpen = "{header."

// ValidModule reports what is wrong with the module of a Decoder: a brace that is not part of {header.NAME}.
func ValidModule(template string) error {
	for rest := template; ; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			return nil
		}
		name, more, ok := strings.Cut(rest[i:], "}")
		if !ok || !strings.HasPrefix(name, headerOpen) || !token(name[len(headerOpen):]) {
			return job.Errorf(job.KindInvalid, "module %q: only {header.NAME} may stand in braces", clip(template))
		}
		rest = more
	}
}

// module sets j.Module from what the route says, the header and the envelope.
func (d *Decoder) module(j *job.Job, header, envelope string) error {
	open := d.Module == "" || strings.EqualFold(d.Module, headerOpen+HeaderModule+"}")
	switch {
	case open && header != "":
		j.Module = header
		return nil
	case open && (envelope != "" || d.Module == ""):
		j.Module = envelope
		return nil
	case !strings.Contains(d.Module, headerOpen):
		j.Module = d.Module
		return nil
	}
	var b strings.Builder
	for rest := d.Module; ; {
		before, after, found := strings.Cut(rest, headerOpen)
		b.WriteString(before)
		if !found {
			j.Module = b.String()
			return nil
		}
		name, more, _ := strings.Cut(after, "}")
		v := j.Header.Get(name)
		if v == "" {
			return invalid("header %s is missing; route %q takes the module's name from it", clip(name), d.Route)
		}
		b.WriteString(v)
		rest = more
	}
}

// times reads the headers about when, and for how long, a job runs.
func (d *Decoder) times(j *job.Job, f *fields) (err error) {
	at, err := parseTime(HeaderDeliverAt, f[fieldDeliverAt])
	if err != nil {
		return err
	}
	j.NotBefore = at
	if j.ExpiresAt, err = parseTime(HeaderExpiresAt, f[fieldExpiresAt]); err != nil {
		return err
	}
	delay, err := parseDuration(HeaderDelay, f[fieldDelay])
	if err != nil {
		return err
	}
	// A moved message has waited, or says in Wasm-Deliver-At until when; its delay must not begin anew.
	if delay > 0 && f[fieldMoved] == "" {
		from := j.Published
		if from.IsZero() {
			from = time.Now()
		}
		if due := from.Add(delay); due.After(j.NotBefore) {
			j.NotBefore = due
		}
	}
	if j.Timeout, err = parseSpan(HeaderTimeout, f[fieldTimeout]); err != nil {
		return err
	}
	if j.Backoff, err = parseSpan(HeaderBackoff, f[fieldBackoff]); err != nil {
		return err
	}
	if j.MaxBackoff, err = parseSpan(HeaderMaxBackoff, f[fieldMaxBackoff]); err != nil {
		return err
	}
	if d.Timeout > 0 && j.Timeout > d.Timeout {
		j.Timeout = d.Timeout
	}
	return nil
}

// counts reads the headers that count attempts, generations and hops.
func (d *Decoder) counts(j *job.Job, f *fields) (err error) {
	if v := f[fieldMaxAttempts]; v != "" {
		if j.MaxAttempts, err = parseCount(HeaderMaxAttempts, v, 1); err != nil {
			return err
		}
		if d.MaxAttempts > 0 {
			j.MaxAttempts = min(j.MaxAttempts, d.MaxAttempts)
		}
	}
	if v := f[fieldHops]; v != "" {
		if j.Hops, err = parseCount(HeaderHops, v, 0); err != nil {
			return err
		}
		if j.Hops >= job.MaxHops {
			return invalid("%d results led to this job, the limit is %d; look for a route whose results are its own jobs", j.Hops, job.MaxHops)
		}
	}
	switch v := f[fieldMoved]; {
	case v != "":
		g, a, ok := strings.Cut(v, ".")
		if ok {
			if j.Generation, err = parseCount(HeaderMoved, g, 0); err == nil {
				j.Attempt, err = parseCount(HeaderMoved, a, 0)
			}
		}
		if !ok || err != nil {
			j.Generation, j.Attempt = 0, 0
			return invalid("header %s: %q is not <generation>.<attempt>; leave it to sidecars", HeaderMoved, clip(v))
		}
		j.Moved = true
	case f[fieldDeadGeneration] != "":
		// A dead letter that is read as a job, to send it on its way again.
		if j.Generation, err = parseCount(HeaderDeadGeneration, f[fieldDeadGeneration], 0); err != nil {
			return err
		}
	}
	return nil
}

// maxTime is the last instant that RFC 3339 can write, in Unix milliseconds.
const maxTime = 253402300799999

// parseTime reads RFC 3339 or Unix milliseconds; "" is no time.
func parseTime(name, v string) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	if ms, err := strconv.ParseInt(v, 10, 64); err == nil && ms >= 0 && ms <= maxTime {
		return time.UnixMilli(ms).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return time.Time{}, invalid("header %s: %q is not a time; write RFC 3339, as 2026-01-02T15:04:05Z, or Unix milliseconds", name, clip(v))
	}
	return t.UTC(), nil
}

// parseDuration reads a duration that is not negative; "" is none.
func parseDuration(name, v string) (time.Duration, error) {
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, invalid("header %s: %q is not a duration; write one such as 1.5s, 250ms or 2h", name, clip(v))
	}
	return d, nil
}

// parseSpan reads a duration above zero; "" is none.
func parseSpan(name, v string) (time.Duration, error) {
	d, err := parseDuration(name, v)
	if err == nil && v != "" && d == 0 {
		err = invalid("header %s: %q leaves no time; write a duration above zero", name, clip(v))
	}
	return d, err
}

// maxCount keeps the arithmetic on counts from headers far from overflow.
const maxCount = 1 << 30

func parseCount(name, v string, least int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > maxCount {
		return 0, invalid("header %s: %q is not a count; write a whole number from %d", name, clip(v), least)
	}
	return n, nil
}

// clip keeps text from a producer short in an error.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return job.CleanText(s)
	}
	return job.CleanText(s[:most]) + "…"
}
