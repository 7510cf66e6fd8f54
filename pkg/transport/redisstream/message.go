package redisstream

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Field names of entries. Watermill's are those of its Redis marshaler.
const (
	fieldBody     = "body"
	fieldPayload  = "payload"
	fieldData     = "data"
	fieldMetadata = "metadata"
)

// decode makes a message of an entry's fields and shares no memory with them.
func decode(m *transport.Message, subject string, fields []field) {
	m.Subject = subject
	body, watermill := bodyField(fields)
	switch {
	case body >= 0:
		m.Body = bytes.Clone(fields[body].value)
	default:
		m.Body = object(fields)
	}
	if body < 0 || len(fields) > 1 {
		m.Header = make(job.Header, 0, len(fields))
	}
	for i, f := range fields {
		switch {
		case i == body:
		case body < 0 && !conventional(f.name):
		case watermill && string(f.name) == fieldMetadata && addMetadata(&m.Header, f.value):
		default:
			m.Header = append(m.Header, job.Field{Name: name(f.name), Value: string(f.value)})
		}
	}
	if k := m.Header.Get(transport.HeaderKey); k != "" {
		m.Key = []byte(k)
	}
	m.ReplyTo = m.Header.Get(transport.HeaderReplyTo)
}

// bodyField returns the place of the field that is the body, or -1, and whether the entry has Watermill's format.
func bodyField(fields []field) (int, bool) {
	body, payload, data, watermill := -1, -1, -1, false
	for i := range fields {
		switch string(fields[i].name) {
		case fieldBody:
			if body < 0 {
				body = i
			}
		case fieldPayload:
			if payload < 0 {
				payload = i
			}
		case fieldData:
			if data < 0 {
				data = i
			}
		case transport.HeaderWatermillUUID:
			watermill = true
		}
	}
	switch {
	case watermill && payload >= 0:
		return payload, true
	case body >= 0:
		return body, watermill
	case payload >= 0:
		return payload, watermill
	}
	return data, watermill
}

// addMetadata adds Watermill's metadata as headers, in the order of their names. It says whether b could be read.
func addMetadata(h *job.Header, b []byte) bool {
	var meta map[string]string
	if err := msgpack.Unmarshal(b, &meta); err != nil {
		return false
	}
	names := make([]string, 0, len(meta))
	for n := range meta {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		h.Add(n, meta[n])
	}
	return true
}

// object makes a JSON object of all fields, in their order. A name that occurs more than once has a list of its values.
func object(fields []field) []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	seen := make(map[string]bool, len(fields))
	for i, f := range fields {
		if seen[string(f.name)] {
			continue
		}
		seen[string(f.name)] = true
		var values []string
		for _, g := range fields[i:] {
			if bytes.Equal(f.name, g.name) {
				values = append(values, string(g.value))
			}
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		text(&b, string(f.name))
		b.WriteByte(':')
		if len(values) == 1 {
			text(&b, values[0])
			continue
		}
		b.WriteByte('[')
		for j, v := range values {
			if j > 0 {
				b.WriteByte(',')
			}
			text(&b, v)
		}
		b.WriteByte(']')
	}
	b.WriteByte('}')
	return b.Bytes()
}

// text writes a JSON string. What is not UTF-8 is replaced; characters that only HTML minds are left as they are.
func text(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil { // a string can always be written
		b.WriteString(`""`)
		return
	}
	b.Truncate(b.Len() - 1) // the line end that Encode adds
}

// conventional says whether a field is a header even where all fields together are the body.
func conventional(name []byte) bool {
	n := strings.ToLower(string(name))
	for _, p := range []string{"wasm-", "nats-", "ce-"} {
		if strings.HasPrefix(n, p) {
			return true
		}
	}
	switch n {
	case "reply-to", "correlation-id", "traceparent", "tracestate", "baggage", "content-type", "idempotency-key",
		transport.HeaderWatermillUUID:
		return true
	}
	return false
}

// name returns the name of a header, without new memory for the usual ones.
func name(b []byte) string {
	switch string(b) {
	case transport.HeaderJobID:
		return transport.HeaderJobID
	case transport.HeaderModule:
		return transport.HeaderModule
	case transport.HeaderKey:
		return transport.HeaderKey
	case transport.HeaderMsgID:
		return transport.HeaderMsgID
	case transport.HeaderReplyTo:
		return transport.HeaderReplyTo
	case transport.HeaderCorrelation:
		return transport.HeaderCorrelation
	case transport.HeaderTraceparent:
		return transport.HeaderTraceparent
	case transport.HeaderContentType:
		return transport.HeaderContentType
	}
	return string(b)
}

// encode appends the fields of a message, names and values in turn, as arguments of XADD. They point into the message.
func encode(args []any, m *transport.Message) []any {
	if uuid, ok := m.Header.Lookup(transport.HeaderWatermillUUID); ok {
		return append(args, transport.HeaderWatermillUUID, uuid, fieldMetadata, metadata(m), fieldPayload, body(m))
	}
	args = append(args, fieldBody, body(m))
	for _, h := range [...]job.Header{m.Header, carried(m)} {
		for i := range h {
			args = append(args, &h[i].Name, &h[i].Value)
		}
	}
	return args
}

// carried returns what the message says outside its headers and they do not say already.
func carried(m *transport.Message) job.Header {
	var h job.Header
	if _, ok := m.Header.Lookup(transport.HeaderKey); !ok && len(m.Key) > 0 {
		h.Add(transport.HeaderKey, string(m.Key))
	}
	if _, ok := m.Header.Lookup(transport.HeaderReplyTo); !ok && m.ReplyTo != "" {
		h.Add(transport.HeaderReplyTo, m.ReplyTo)
	}
	return h
}

// body returns the body, never nil: go-redis refuses a nil argument.
func body(m *transport.Message) []byte {
	if m.Body == nil {
		return []byte{}
	}
	return m.Body
}

// metadata packs the headers as Watermill does. It knows one value for a name: the first.
func metadata(m *transport.Message) []byte {
	meta := make(map[string]string, len(m.Header)+2)
	seen := map[string]bool{transport.HeaderWatermillUUID: true}
	for _, h := range []job.Header{m.Header, carried(m)} {
		for _, f := range h {
			if k := strings.ToLower(f.Name); !seen[k] {
				seen[k], meta[f.Name] = true, f.Value
			}
		}
	}
	var b bytes.Buffer
	enc := msgpack.NewEncoder(&b)
	enc.SetSortMapKeys(true)
	if err := enc.Encode(meta); err != nil { // writing to memory does not fail
		return []byte{0x80} // an empty map
	}
	return b.Bytes()
}
