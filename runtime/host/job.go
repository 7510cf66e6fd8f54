package host

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

func jobFunctions() []function {
	return []function{
		{"input_len", nil, types(i32), inputLen},
		{"input_read", types(i32, i32, i32), types(i32), inputRead},
		{"output", types(i32, i32), nil, output},
		{"header_get", types(i32, i32, i32, i32), types(i32), headerGet},
		{"header_set", types(i32, i32, i32, i32), nil, headerSet},
		{"fail", types(i32, i32), nil, fail},
		{"retry", types(i64, i32, i32), nil, retry},
		{"config_get", types(i32, i32, i32, i32), types(i32), configGet},
		{"next", nil, types(i32), next},
	}
}

// needJob stops a guest that asks for its job while it initializes: what it does then may be kept for many jobs.
func (c *Call) needJob(function string) {
	if !c.ready {
		panic(&Fault{Kind: job.KindTrap, Text: "guest called " + function + " while it initialized; there is no job before handle"})
	}
}

// inputLen is input_len() i32.
func inputLen(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	c.needJob("input_len")
	stack[0] = uint64(uint32(len(c.Job.Body)))
}

// inputRead is input_read(dst, offset, len) i32, the number of bytes copied.
func inputRead(_ context.Context, c *Call, m api.Module, stack []uint64) {
	c.needJob("input_read")
	dst := view(m, "input buffer", stack[0], stack[2])
	offset := uint64(uint32(stack[1]))
	if offset >= uint64(len(c.Job.Body)) {
		stack[0] = 0
		return
	}
	stack[0] = uint64(uint32(copy(dst, c.Job.Body[offset:])))
}

// output is output(src, len); it appends to the result.
func output(_ context.Context, c *Call, m api.Module, stack []uint64) {
	c.needJob("output")
	_, _ = c.Write(view(m, "output", stack[0], stack[1])) // panics rather than fail
}

// headerGet is header_get(name, nlen, dst, cap) i32, the whole length of the first value or -1. What the sidecar knows of the
// job is there as Wasm-* headers whether the message carried them or not.
func headerGet(_ context.Context, c *Call, m api.Module, stack []uint64) {
	c.needJob("header_get")
	var value string
	var ok bool
	if name := view(m, "header name", stack[0], stack[1]); len(name) <= maxName {
		value, ok = Field(c.Job, string(name))
	}
	lookup(m, "header value", value, ok, stack)
}

// maxName is the longest name that is looked up. There are none beyond it, and a guest must not have the host copy all of its memory
// again and again, which takes time and memory that nobody counts.
const maxName = 64 << 10

// Field returns a header as the guest of j sees it: the sidecar's own knowledge first, then the message's headers.
func Field(j *job.Job, name string) (string, bool) {
	for _, f := range knowledge {
		if strings.EqualFold(f.name, name) {
			if v := f.value(j); v != "" {
				return v, true
			}
			break
		}
	}
	return j.Header.Lookup(name)
}

var knowledge = [...]struct {
	name  string
	value func(*job.Job) string
}{
	{"Wasm-Job-Id", func(j *job.Job) string { return j.ID }},
	{"Wasm-Attempt", func(j *job.Job) string { return strconv.Itoa(j.Attempt) }},
	{"Wasm-Route", func(j *job.Job) string { return j.Route }},
	{"Wasm-Subject", func(j *job.Job) string { return j.Subject }},
	{"Wasm-Key", func(j *job.Job) string { return j.Key }},
	{"Wasm-Source", func(j *job.Job) string { return j.Source }},
	{"Wasm-Type-Name", func(j *job.Job) string { return j.TypeName }},
	{"Correlation-Id", func(j *job.Job) string { return j.CorrelationID }},
}

// headerSet is header_set(name, nlen, value, vlen); it replaces. Names that are no header names or that belong to the sidecar
// or the broker (Wasm-, Nats-) are ignored, with a warning in the log. Values are cleaned as job.CleanText says.
func headerSet(_ context.Context, c *Call, m api.Module, stack []uint64) {
	c.needJob("header_set")
	name, value := view(m, "header name", stack[0], stack[1]), view(m, "header value", stack[2], stack[3])
	c.SetHeader(string(name[:min(len(name), 4*job.MaxErrorText)]), string(value[:min(len(value), 4*job.MaxErrorText)])) // no more of them counts
}

// SetHeader sets a header of the result, or refuses to with a warning, which counts as one of the guest's lines. It panics with
// a Fault when there are too many.
func (c *Call) SetHeader(name, value string) {
	if !validName(name) || hasPrefixFold(name, "Wasm-") || hasPrefixFold(name, "Nats-") {
		if !c.log.cut && c.log.lines < c.LogLines {
			c.log.lines++
			c.Logger.LogAttrs(context.Background(), slog.LevelWarn, "guest set a header that it may not set; ignored",
				c.about(slog.String("header", job.CleanText(name)))...)
		}
		return
	}
	c.header.Set(name, job.CleanText(value))
	if len(c.header) > MaxResultHeaders || c.header.Size() > MaxResultHeaderBytes {
		panic(&Fault{Kind: job.KindLimit, Text: "result headers are over the limit of " + strconv.Itoa(MaxResultHeaders) + " headers and " +
			strconv.Itoa(MaxResultHeaderBytes) + " bytes"})
	}
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// validName says whether s is a token as RFC 9110 has it, the common ground of all brokers' header names.
func validName(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i := range len(s) {
		b := s[i]
		switch {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0:
		default:
			return false
		}
	}
	return true
}

// fail is fail(src, len): the guest's verdict that the job must not be tried again.
func fail(_ context.Context, c *Call, m api.Module, stack []uint64) {
	c.needJob("fail")
	c.verdict = &job.Error{Kind: job.KindFailed, Err: said(m, stack[0], stack[1], "guest failed the job")}
}

// retry is retry(after_ms, src, len): the guest's wish to be tried again, in after_ms milliseconds or, when that is not
// positive, whenever the route says.
func retry(_ context.Context, c *Call, m api.Module, stack []uint64) {
	c.needJob("retry")
	const most = int64(10 * 365 * 24 * time.Hour / time.Millisecond)
	after := time.Duration(min(max(int64(stack[0]), 0), most)) * time.Millisecond
	c.verdict = &job.Error{Kind: job.KindRetry, Err: said(m, stack[1], stack[2], "guest asked for a retry"), RetryAfter: after}
}

// said makes an error of the guest's own words, or of others where it had none.
func said(m api.Module, ptr, length uint64, otherwise string) error {
	b := view(m, "error text", ptr, min(uint64(uint32(length)), 4*job.MaxErrorText))
	if s := job.CleanText(string(b)); strings.TrimSpace(s) != "" {
		return errors.New(s)
	}
	return errors.New(otherwise)
}

// configGet is config_get(name, nlen, dst, cap) i32, the whole length of the value or -1.
func configGet(_ context.Context, c *Call, m api.Module, stack []uint64) {
	var value string
	var ok bool
	if name := view(m, "config name", stack[0], stack[1]); len(name) <= maxName {
		value, ok = c.Config[string(name)]
	}
	lookup(m, "config value", value, ok, stack)
}

// next is next() i32: whether there is another message of a batch. Routes have no batches, so there is none.
func next(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	c.needJob("next")
	stack[0] = 0
}
