package transport

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Result makes the message that carries o, the outcome of j, to subject: what the guest wrote, or a problem document (RFC
// 9457) for a failure, in envelope e. The same job and outcome always give the same message, to the byte. Its Body may alias
// that of o.
func Result(j *job.Job, o *job.Outcome, e Envelope, subject string) *Message {
	var t texts
	t.b.Grow(len(j.ID) + len(j.Route) + 48)
	msgID := t.join(j.ID, "/", j.Route)
	if j.Generation > 0 { // another outcome of the same job: neither a broker nor the next route may take it for a repeat
		msgID += "/" + strconv.Itoa(j.Generation)
	}
	h := make(job.Header, 0, 16+len(o.Header))
	if e == EnvelopeWatermill {
		h.Add(HeaderWatermillUUID, uuidOf(msgID))
	}
	h.Add(HeaderResultOf, j.ID)
	h.Add(HeaderMsgID, msgID)
	h.Add(HeaderHops, t.number(uint64(j.Hops)+1))
	h.Add(HeaderOK, strconv.FormatBool(o.OK()))
	if !o.OK() {
		h.Add(HeaderKind, string(o.Kind))
	}
	addText(&h, HeaderModule, or(o.Module, j.Module))
	addText(&h, HeaderDigest, o.Digest)
	h.Add(HeaderAttempt, t.number(uint64(o.Attempts)))
	if o.Fuel > 0 {
		h.Add(HeaderFuel, t.number(o.Fuel))
	}
	h.Add(HeaderDuration, t.number(uint64(max(o.Duration.Microseconds(), 0))))
	addText(&h, HeaderSource, or(o.Source, j.Source))
	correlation := or(o.CorrelationID, j.CorrelationID)
	addText(&h, HeaderCorrelation, correlation)
	if e == EnvelopeWatermill {
		addText(&h, HeaderCorrelationWM, correlation)
	}
	if parent := j.Header.Get(HeaderTraceparent); validTraceparent(parent) {
		addText(&h, HeaderTraceparent, parent)
		addText(&h, HeaderTracestate, j.Header.Get(HeaderTracestate))
	}

	m := &Message{Subject: subject, Body: o.Body}
	if j.Key != "" {
		m.Key = []byte(j.Key)
	}
	ours := "" // the content type, where the body is of our making
	switch {
	case e == EnvelopeDRASM:
		ours = "application/json"
		m.Body = appendDRASMResult(nil, j.ID, o, or(o.TypeName, j.TypeName))
	case !o.OK():
		ours = "application/problem+json"
		m.Body = appendProblem(nil, o)
	}
	addText(&h, HeaderContentType, ours)
	for _, f := range o.Header {
		if guestMaySet(f.Name) && (ours == "" || !strings.EqualFold(f.Name, HeaderContentType)) {
			h.Add(f.Name, job.CleanText(f.Value))
		}
	}
	m.Header = h
	return m
}

// guestMaySet says whether a guest's header goes onto its result. The runtime refuses the others when they are set; this holds
// for outcomes from anywhere.
func guestMaySet(name string) bool {
	switch {
	case !token(name), hasPrefixFold(name, "Wasm-"), hasPrefixFold(name, "Nats-"):
		return false
	}
	for _, ours := range [...]string{HeaderCorrelation, HeaderCorrelationWM, HeaderTraceparent, HeaderTracestate, HeaderWatermillUUID} {
		if strings.EqualFold(name, ours) {
			return false
		}
	}
	return true
}

// problemType names a kind of failure in a problem document.
const problemType = "urn:wasmsidecar:problem:"

func appendProblem(b []byte, o *job.Outcome) []byte {
	fate := o.Kind.Fate()
	b = append(b, `{"type":`...)
	b = appendJSONString(b, problemType+string(o.Kind))
	b = append(b, `,"title":`...)
	b = appendJSONString(b, fate.Title)
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(fate.Status), 10)
	b = append(b, `,"detail":`...)
	b = appendJSONString(b, failureText(o))
	b = append(b, `,"kind":`...)
	b = appendJSONString(b, string(o.Kind))
	b = append(b, `,"attempts":`...)
	b = strconv.AppendInt(b, int64(o.Attempts), 10)
	return append(b, '}')
}

// failureText is what went wrong, never empty.
func failureText(o *job.Outcome) string {
	return job.CleanText(or(o.Err, o.Kind.Fate().Title))
}

// addText adds a header unless it is empty, and makes it fit for one.
func addText(h *job.Header, name, value string) {
	if value != "" {
		h.Add(name, job.CleanText(value))
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// uuidOf makes a UUID (version 8, RFC 9562) that is always the same for s.
func uuidOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	x := hex.EncodeToString(u)
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

// texts cuts short strings from one buffer, so that they cost one allocation together.
type texts struct{ b strings.Builder }

func (t *texts) join(parts ...string) string {
	start := t.b.Len()
	for _, p := range parts {
		t.b.WriteString(p)
	}
	return t.b.String()[start:]
}

// number writes a count, which is not negative.
func (t *texts) number(n uint64) string {
	var buf [20]byte
	start := t.b.Len()
	t.b.Write(strconv.AppendUint(buf[:0], n, 10))
	return t.b.String()[start:]
}

// validTraceparent says whether v is a traceparent of W3C Trace Context, section 3.2.2, of any version: what is none is dropped
// rather than passed on, as that document asks.
func validTraceparent(v string) bool {
	if len(v) < 55 || len(v) > 256 || len(v) > 55 && v[55] != '-' {
		return false
	}
	for i := range 55 {
		switch c := v[i]; {
		case i == 2 || i == 35 || i == 52:
			if c != '-' {
				return false
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return false
		}
	}
	return len(job.CleanText(v)) == len(v)
}
