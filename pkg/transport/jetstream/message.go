package jetstream

import (
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// fromNATS makes a message of what NATS delivered. Names come in their own order, since NATS' form here has none.
func fromNATS(subject string, h nats.Header, body []byte) transport.Message {
	m := transport.Message{Subject: subject, Body: body}
	if len(h) == 0 {
		return m
	}
	m.Header = make(job.Header, 0, len(h))
	for name, values := range h {
		for _, v := range values {
			m.Header = append(m.Header, job.Field{Name: name, Value: v})
		}
	}
	if len(m.Header) > 1 {
		sort.SliceStable(m.Header, func(i, k int) bool { return m.Header[i].Name < m.Header[k].Name })
	}
	if key, ok := m.Header.Lookup(transport.HeaderKey); ok {
		m.Key = []byte(key)
	}
	return m
}

// toNATS makes what NATS sends of a message. The key and the reply subject travel as headers, since JetStream uses the reply
// of a message for its acknowledgement.
func toNATS(m *transport.Message) *nats.Msg {
	h := make(nats.Header, len(m.Header)+2)
	values := make([]string, len(m.Header)) // of which each name usually has one
	for i, f := range m.Header {
		name := f.Name
		if len(name) == len(transport.HeaderMsgID) && strings.EqualFold(name, transport.HeaderMsgID) {
			name = transport.HeaderMsgID // the server compares bytes
		}
		if old := h[name]; old != nil {
			h[name] = append(old, f.Value)
			continue
		}
		values[i] = f.Value
		h[name] = values[i : i+1 : i+1]
	}
	if len(m.Key) > 0 && m.Header.Get(transport.HeaderKey) == "" {
		h[transport.HeaderKey] = []string{string(m.Key)}
	}
	if m.ReplyTo != "" && m.Header.Get(transport.HeaderReplyTo) == "" {
		h[transport.HeaderReplyTo] = []string{m.ReplyTo}
	}
	return &nats.Msg{Subject: m.Subject, Header: h, Data: m.Body}
}

// wireSize is what counts against the server's max_payload.
func wireSize(m *nats.Msg) int {
	n := len(m.Data)
	if len(m.Header) > 0 {
		n += len("NATS/1.0\r\n\r\n")
		for name, values := range m.Header {
			for _, v := range values {
				n += len(name) + len(v) + len(": \r\n")
			}
		}
	}
	return n
}

// badHeader returns the name of a header that cannot be written, or "".
func badHeader(h nats.Header) (string, bool) {
	for name := range h {
		for i := range len(name) {
			if c := name[i]; c <= ' ' || c >= 0x7f || c == ':' {
				return name, true
			}
		}
		if name == "" {
			return name, true
		}
	}
	return "", false
}

// meta is what the reply subject of a delivered message says about it.
type meta struct {
	delivered uint64 // how many times the consumer has handed it out, this time included
	sequence  uint64 // in the stream
	published int64  // Unix nanoseconds
}

// parseMeta reads $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<time>.<pending>, which newer forms
// begin with <domain>.<account> and may end with more.
func parseMeta(reply string) (meta, bool) {
	const prefix = "$JS.ACK."
	if !strings.HasPrefix(reply, prefix) {
		return meta{}, false
	}
	skip := 2
	if strings.Count(reply, ".") >= 10 {
		skip = 4
	}
	rest := reply[len(prefix):]
	for range skip {
		_, rest, _ = strings.Cut(rest, ".")
	}
	var n [4]uint64
	for i := range n {
		var tok string
		tok, rest, _ = strings.Cut(rest, ".")
		v, err := strconv.ParseUint(tok, 10, 64)
		if err != nil {
			return meta{}, false
		}
		n[i] = v
	}
	return meta{delivered: n[0], sequence: n[1], published: int64(n[3])}, true
}

// position names a message for good: streams that are deleted and made again begin at 1 again, but at another time.
func position(stream string, created int64, sequence uint64) string {
	var room [128]byte
	b := append(room[:0], stream...)
	b = append(b, '@')
	b = strconv.AppendInt(b, created, 10)
	b = append(b, '/')
	b = strconv.AppendUint(b, sequence, 10)
	return string(b)
}

// legal makes a name that NATS allows for streams and consumers of any text.
func legal(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, s)
}

// createdMS is how a stream's creation time appears in names and positions.
func createdMS(t time.Time) int64 { return t.UnixMilli() }
