package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// ModuleDRASM is the import module of DRASM guests.
const ModuleDRASM = "env"

// drasmState keeps a guest's allocator from calling back into the host function that called it.
type drasmState struct{ allocating bool }

func drasmFunctions() []function {
	return []function{
		{"log", types(i32, i32), nil, drasmLog},
		{"http_request", types(i32, i32), types(i64), drasmRequest},
	}
}

// drasmLog is log(ptr, len).
func drasmLog(_ context.Context, c *Call, m api.Module, stack []uint64) {
	c.LogBytes(slog.LevelInfo, view(m, "log text", stack[0], stack[1]))
}

// drasmRequest is http_request(ptr, len) i64 = len<<32 | ptr. It takes {"url", "method"?, "headers"?, "body"?} (a string body
// goes as it is, anything else as JSON) and answers, in memory that the guest's own alloc gives, the response's body when that
// is JSON, else {"status", "body"}; on failure {"_error", "status"?}.
func drasmRequest(ctx context.Context, c *Call, m api.Module, stack []uint64) {
	c.needJob("http_request")
	reply := c.drasmReply(ctx, view(m, "request", stack[0], stack[1]))
	ptr, err := c.Alloc(ctx, m, reply)
	if err != nil {
		panic(err)
	}
	stack[0] = uint64(len(reply))<<32 | uint64(ptr)
}

func (c *Call) drasmReply(ctx context.Context, raw []byte) []byte {
	err := c.exchange(ctx, func() (outgoing, error) { return parseDRASM(raw, c.HTTPBytes) })
	if err != nil {
		out := map[string]any{"_error": c.http.err}
		if c.http.status != 0 {
			out["status"] = c.http.status
		}
		return mustJSON(out)
	}
	if json.Valid(c.http.body) {
		return c.http.body
	}
	return mustJSON(map[string]any{"status": c.http.status, "body": strings.ToValidUTF8(string(c.http.body), "\uFFFD")})
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // of maps of strings and numbers
	}
	return b
}

// maxRequest is the most JSON, in bytes, that a request is read from, its body apart: what it makes in the host's memory is a
// multiple of that.
const maxRequest = 512 << 10

// parseRequest reads a request that is JSON: {"url", "method"?, "headers"?, "body"?}. The body, of about that many bytes at most,
// is left as it is.
func parseRequest(raw []byte, body int64) (outgoing, json.RawMessage, error) {
	if most := maxRequest + 6*body; int64(len(raw)) > most { // a byte is up to six of JSON
		return outgoing{}, nil, &refusal{abi.HTTPLimit, fmt.Errorf("request of %d bytes is over the limit of %d", len(raw), most)}
	}
	var in struct {
		URL     string            `json:"url"`
		Method  string            `json:"method"`
		Headers map[string]string `json:"headers"`
		Body    json.RawMessage   `json:"body"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return outgoing{}, nil, &refusal{abi.HTTPInvalid, fmt.Errorf("request is not as expected: %w", err)}
	}
	if in.URL == "" {
		return outgoing{}, nil, &refusal{abi.HTTPInvalid, errors.New("request has no url")}
	}
	r := outgoing{method: strings.ToUpper(in.Method), url: in.URL, header: http.Header{}}
	for _, name := range slices.Sorted(maps.Keys(in.Headers)) {
		if err := addHeader(r.header, name, in.Headers[name]); err != nil {
			return outgoing{}, nil, err
		}
	}
	return r, in.Body, nil
}

// parseDRASM reads a request of DRASM's making.
func parseDRASM(raw []byte, most int64) (outgoing, error) {
	r, body, err := parseRequest(raw, most)
	if err != nil {
		return outgoing{}, err
	}
	var s string
	switch {
	case len(body) == 0 || string(body) == "null":
	case json.Unmarshal(body, &s) == nil:
		r.body = []byte(s)
	default:
		r.body = body
		if r.header.Get("Content-Type") == "" {
			r.header.Set("Content-Type", "application/json")
		}
	}
	return r, nil
}

// Alloc puts b into memory that the guest's alloc(i32) i32 gives and returns where. Its error is a *Fault, or what the guest's
// alloc failed with.
func (c *Call) Alloc(ctx context.Context, m api.Module, b []byte) (uint32, error) {
	if c.drasm.allocating {
		return 0, &Fault{Kind: job.KindTrap, Text: "guest asked for a reply while it allocated memory for another"}
	}
	c.drasm.allocating = true
	got, err := c.Invoke(ctx, "alloc", uint64(uint32(len(b))))
	c.drasm.allocating = false
	if err != nil {
		return 0, allocFailed(err)
	}
	ptr := uint32(got[0])
	if !m.Memory().Write(ptr, b) {
		return 0, &Fault{Kind: job.KindTrap, Text: fmt.Sprintf("alloc(%d) returned %d, which is out of bounds", len(b), ptr)}
	}
	return ptr, nil
}

// allocFailed makes the guest's crash inside alloc its Fault and leaves what others caused as it is.
func allocFailed(err error) error {
	var fault *Fault
	var exit *sys.ExitError
	var broken runtime.Error
	var stop *Stop
	if errors.As(err, &fault) || errors.As(err, &stop) || errors.As(err, &exit) || errors.As(err, &broken) {
		return err
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return &Fault{Kind: job.KindTrap, Text: "alloc: " + strings.TrimPrefix(first, "wasm error: ")}
}

// Take returns a copy of what a guest returned as len<<32 | ptr, of at most limit bytes. Its error is a *Fault.
func Take(m api.Module, packed uint64, limit int64) ([]byte, error) {
	ptr, n := uint32(packed), uint32(packed>>32)
	if int64(n) > limit {
		return nil, &Fault{Kind: job.KindLimit, Text: fmt.Sprintf("reply of %d bytes is over the limit of %d (limits.output)", n, limit), Err: ErrOutput}
	}
	b, ok := m.Memory().Read(ptr, n)
	if !ok {
		return nil, &Fault{Kind: job.KindTrap, Text: fmt.Sprintf("reply out of bounds: %d bytes at %d of a memory of %d", n, ptr, m.Memory().Size())}
	}
	return append(make([]byte, 0, len(b)), b...), nil
}

// Envelope is DRASM's {"type_name": …, "payload": [byte, …]}.
type Envelope struct {
	TypeName string
	Payload  []byte
}

// Append appends the envelope's JSON to b, the payload as an array of numbers.
func (e Envelope) Append(b []byte) []byte {
	name, err := json.Marshal(strings.ToValidUTF8(e.TypeName, "\uFFFD"))
	if err != nil {
		panic(err) // of a string
	}
	b = slices.Grow(b, len(name)+4*len(e.Payload)+32)
	b = append(append(b, `{"type_name":`...), name...)
	b = append(b, `,"payload":[`...)
	for i, x := range e.Payload {
		if i > 0 {
			b = append(b, ',')
		}
		if x >= 100 {
			b = append(b, '0'+x/100)
		}
		if x >= 10 {
			b = append(b, '0'+x/10%10)
		}
		b = append(b, '0'+x%10)
	}
	return append(b, "]}"...)
}

// ParseEnvelope reads an envelope. A payload that is a string is taken as its bytes; neither member may be missing.
func ParseEnvelope(b []byte) (Envelope, error) {
	var raw struct {
		TypeName *string         `json:"type_name"`
		Payload  json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return Envelope{}, fmt.Errorf("reply is no envelope: %w", err)
	}
	if raw.TypeName == nil || raw.Payload == nil {
		return Envelope{}, errors.New("reply is no envelope: want an object with type_name and payload")
	}
	e := Envelope{TypeName: *raw.TypeName}
	if raw.Payload[0] == '"' {
		var s string
		if err := json.Unmarshal(raw.Payload, &s); err != nil || !utf8.ValidString(s) {
			return Envelope{}, errors.New("reply is no envelope: payload is no text")
		}
		e.Payload = []byte(s)
		return e, nil
	}
	var err error
	if e.Payload, err = parseBytes(raw.Payload); err != nil {
		return Envelope{}, fmt.Errorf("reply is no envelope: %w", err)
	}
	return e, nil
}

// parseBytes reads a valid JSON value as an array of numbers from 0 to 255.
func parseBytes(raw []byte) ([]byte, error) {
	bad := errors.New("payload is no array of numbers from 0 to 255")
	if raw[0] != '[' {
		return nil, bad
	}
	out := make([]byte, 0, len(raw)/3)
	n, digits := 0, 0
	for _, x := range raw[1:] {
		switch {
		case '0' <= x && x <= '9':
			if n, digits = n*10+int(x-'0'), digits+1; n > 255 {
				return nil, bad
			}
		case x == ',' || x == ']':
			if digits > 0 {
				out = append(out, byte(n))
			}
			n, digits = 0, 0
		case x == ' ' || x == '\t' || x == '\r' || x == '\n':
		default:
			return nil, bad
		}
	}
	return out, nil
}
