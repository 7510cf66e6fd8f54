package transport

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"unicode/utf8"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// drasmJob is what DRASM's Job says:
//
//	{"job_id":"…","module_id":"…","message":{"type_name":"…","payload":[0-255,…]}}
//
// The payload may also be a string, which stands for its UTF-8 bytes, or any other JSON, which stands for itself; and
// payload_base64 may take its place, as data_base64 does in CloudEvents.
type drasmJob struct {
	id, module, typeName string
	body                 []byte
}

func (e *drasmJob) parse(data []byte) error {
	var v struct {
		JobID    string `json:"job_id"`
		ModuleID string `json:"module_id"`
		Message  *struct {
			TypeName string          `json:"type_name"`
			Payload  json.RawMessage `json:"payload"`
			Base64   *[]byte         `json:"payload_base64"`
		} `json:"message"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return drasmError(jsonFault(err))
	}
	e.id, e.module = v.JobID, v.ModuleID
	if v.Message == nil {
		return drasmError("message is missing")
	}
	e.typeName = v.Message.TypeName
	p := v.Message.Payload
	if string(p) == "null" {
		p = nil
	}
	switch {
	case v.Message.Base64 != nil && p != nil:
		return drasmError("message.payload and message.payload_base64 exclude each other")
	case v.Message.Base64 != nil:
		e.body = *v.Message.Base64
	case p == nil:
		return drasmError("message.payload is missing")
	case p[0] == '"':
		var s string
		if err := json.Unmarshal(p, &s); err != nil {
			return drasmError(jsonFault(err))
		}
		e.body = []byte(s)
	default:
		e.body = p
		if b, ok := parseBytes(p); ok {
			e.body = b
		}
	}
	return nil
}

func drasmError(what string) error {
	return invalid(`DRASM envelope: %s; the form is {"job_id":"…","module_id":"…","message":{"type_name":"…","payload":[…]}}`, job.CleanText(what))
}

// jsonFault says what is wrong with a document without naming Go's types.
func jsonFault(err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind):
		if kind.Field == "" {
			return kind.Value + " where an object is needed"
		}
		return "wrong type for " + kind.Field + ": " + kind.Value
	case errors.As(err, &syntax):
		return "not JSON at byte " + strconv.FormatInt(syntax.Offset, 10) + ": " + syntax.Error()
	}
	return err.Error()
}

// parseBytes reads a JSON array of whole numbers from 0 to 255. raw is known to be JSON; anything else is not ok.
func parseBytes(raw []byte) ([]byte, bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) < 2 || raw[0] != '[' {
		return nil, false
	}
	out := make([]byte, 0, len(raw)/3)
	n, digits := 0, 0
	for _, c := range raw[1:] {
		switch {
		case c >= '0' && c <= '9':
			n, digits = n*10+int(c-'0'), digits+1
			if n > 255 {
				return nil, false
			}
		case c == ',' || c == ']':
			if digits > 0 {
				out = append(out, byte(n))
			}
			n, digits = 0, 0
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
		default:
			return nil, false
		}
	}
	return out, true
}

// appendDRASMResult appends DRASM's ResultMsg, as its serializer writes it. Its output is a message written as JSON, and that
// written as an array of numbers.
func appendDRASMResult(b []byte, id string, o *job.Outcome, typeName string) []byte {
	b = append(b, `{"job_id":`...)
	b = appendJSONString(b, id)
	b = append(b, `,"worker_id":`...)
	b = appendJSONString(b, or(o.Worker, "wasmsidecar"))
	if !o.OK() {
		b = append(b, `,"ok":false,"output":null,"error":`...)
		return append(appendJSONString(b, failureText(o)), '}')
	}
	m := append([]byte(nil), `{"type_name":`...)
	m = appendJSONString(m, typeName)
	m = append(m, `,"payload":`...)
	m = append(appendNumbers(m, o.Body), '}')
	b = append(b, `,"ok":true,"output":`...)
	b = appendNumbers(b, m)
	return append(b, `,"error":null}`...)
}

// appendNumbers appends data as a JSON array of numbers.
func appendNumbers(b, data []byte) []byte {
	b = append(b, '[')
	for i, c := range data {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(c), 10)
	}
	return append(b, ']')
}

// appendJSONString appends s quoted as serde_json does: only what must be escaped is.
func appendJSONString(b []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r) // what is not UTF-8 becomes U+FFFD
			i += n
			continue
		}
		i++
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= ' ':
			b = append(b, c)
		case c == '\b':
			b = append(b, `\b`...)
		case c == '\f':
			b = append(b, `\f`...)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, `\u00`...)
			b = append(b, hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(b, '"')
}
