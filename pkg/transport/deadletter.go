package transport

import (
	"strconv"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Headers of a dead letter beside those of transport.go.
const (
	// HeaderDeadGeneration is the generation of the job that died, where it is not 0.
	HeaderDeadGeneration = "Wasm-Dead-Generation"
	// HeaderDeadTruncated says that the dead letter was cut to fit: the original body's size in bytes.
	HeaderDeadTruncated = "Wasm-Dead-Truncated"
)

// Headers under which Watermill's poison queue writes the same.
const (
	headerPoisonReason     = "reason_poisoned"
	headerPoisonTopic      = "topic_poisoned"
	headerPoisonHandler    = "handler_poisoned"
	headerPoisonSubscriber = "subscriber_poisoned"
)

// DeadLetter makes the message that carries orig, which j was decoded from and which ended with o, to the dead letters at
// subject: its body and its headers, in whatever envelope they came, and why it is there. What does not fit into maxBytes (0:
// no limit) is cut off, the body's end first and then the original headers from the last on; HeaderDeadTruncated says so. The
// same arguments always give the same message.
func DeadLetter(j *job.Job, o *job.Outcome, orig *Message, subject string, maxBytes int) *Message {
	m := &Message{Subject: subject, Key: keyOf(orig, j), Body: orig.Body}
	h := make(job.Header, 0, len(orig.Header)+18)
	carry(&h, orig, j, func(name string) bool { return ofMove(name) || ofDeadLetter(name) })
	kept := len(h) // headers of the original's; those behind are ours

	reason, source := failureText(o), or(o.Source, j.Source)
	h.Add(HeaderJobID, j.ID)
	h.Add(HeaderMsgID, moveID(j, o.Attempts, "dead"))
	h.Add(HeaderDeadKind, string(o.Kind))
	h.Add(HeaderDeadError, reason)
	h.Add(HeaderDeadAttempts, strconv.Itoa(o.Attempts))
	h.Add(HeaderDeadRoute, j.Route)
	h.Add(HeaderDeadAt, time.UnixMilli(o.FinishedAt).UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	addText(&h, HeaderDeadSource, source)
	addText(&h, HeaderDigest, o.Digest)
	if j.Generation > 0 {
		h.Add(HeaderDeadGeneration, strconv.Itoa(j.Generation))
	}
	h.Add(headerPoisonReason, reason)
	h.Add(headerPoisonTopic, orig.Subject)
	h.Add(headerPoisonHandler, j.Route)
	h.Add(headerPoisonSubscriber, "wasmsidecar")
	m.Header = h
	if maxBytes > 0 && m.Size() > maxBytes {
		truncate(m, kept, maxBytes)
	}
	return m
}

// bareKey is the longest key of a BareDeadLetter.
const bareKey = 1 << 10

// BareDeadLetter is DeadLetter without the original headers and without a key that is long, for a broker that refuses them: JetStream
// takes 64 KiB of headers, and a message that has almost as many can get no more.
func BareDeadLetter(j *job.Job, o *job.Outcome, orig *Message, subject string, maxBytes int) *Message {
	bare := *orig
	bare.Header = nil
	m := DeadLetter(j, o, &bare, subject, maxBytes)
	if len(m.Key) > bareKey {
		m.Key = nil
	}
	if m.Header.Get(HeaderDeadTruncated) == "" {
		truncate(m, 0, m.Size()+64) // says so, and cuts nothing
	}
	return m
}

// truncate cuts m to size. The first kept of its headers are the original's.
func truncate(m *Message, kept, size int) {
	m.Header.Add(HeaderDeadTruncated, strconv.Itoa(len(m.Body)))
	over := m.Size() - size
	cut := min(max(over, 0), len(m.Body))
	m.Body = m.Body[:len(m.Body)-cut]
	over -= cut
	first := kept
	for first > 0 && over > 0 {
		first--
		over -= len(m.Header[first].Name) + len(m.Header[first].Value)
	}
	m.Header = append(m.Header[:first:first], m.Header[kept:]...)
	if over > 0 && len(m.Key) > 0 {
		over -= len(m.Key)
		m.Key = nil
	}
	for i := range m.Header { // what is left are a few short headers and the reason, twice
		f := &m.Header[i]
		if over > 0 && (f.Name == HeaderDeadError || f.Name == headerPoisonReason) {
			n := min(over, len(f.Value))
			f.Value = strings.ToValidUTF8(f.Value[:len(f.Value)-n], "")
			over -= n
		}
	}
}

// ofDeadLetter says whether an earlier dead letter has written the header.
func ofDeadLetter(name string) bool {
	if hasPrefixFold(name, "Wasm-Dead-") || strings.EqualFold(name, HeaderDigest) {
		return true
	}
	for _, p := range [...]string{headerPoisonReason, headerPoisonTopic, headerPoisonHandler, headerPoisonSubscriber} {
		if strings.EqualFold(name, p) {
			return true
		}
	}
	return false
}
