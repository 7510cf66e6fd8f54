package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Bounds on what a guest sends beside a body.
const (
	maxURL            = 8 << 10
	maxRequestHeaders = 64 << 10
)

var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// httpState is the last response of a call.
type httpState struct {
	calls  int
	moved  int64 // bytes of all requests and responses
	status int
	header http.Header
	lines  []byte // header as text, made when it is asked for
	body   []byte
	err    string
}

// httpFunctions are those of the import module wasmsidecar_http:
//
//	request(method, mlen, url, ulen, headers, hlen, body, blen i32) i32
//
// sends a request and waits for the whole response. It answers the status (100 to 599), or one of the negative numbers
// abi.HTTPDenied, HTTPInvalid, HTTPLimit, HTTPUnreachable and HTTPTimeout. An empty method is GET. headers are lines "Name:
// value", each ended by LF or CR LF. Redirects are followed where the policy allows their target.
//
//	response_len(part i32) i32
//	response_read(part, dst, offset, len i32) i32
//	response_header(name, nlen, dst, cap i32) i32
//
// read the last response: part is abi.HTTPBody, abi.HTTPHeaders (lines as above) or abi.HTTPError (what went wrong, as text);
// response_read answers the number of bytes copied, response_header the whole length or -1.
func httpFunctions() []function {
	return []function{
		{"request", types(i32, i32, i32, i32, i32, i32, i32, i32), types(i32), httpRequest},
		{"response_len", types(i32), types(i32), responseLen},
		{"response_read", types(i32, i32, i32, i32), types(i32), responseRead},
		{"response_header", types(i32, i32, i32, i32), types(i32), responseHeader},
	}
}

func httpRequest(ctx context.Context, c *Call, m api.Module, stack []uint64) {
	c.needJob("request")
	err := c.exchange(ctx, func() (outgoing, error) {
		r := outgoing{
			method: text(m, "method", stack[0], stack[1]),
			url:    text(m, "url", stack[2], stack[3]),
			body:   view(m, "request body", stack[6], stack[7]),
		}
		var err error
		r.header, err = parseHeaders(text(m, "request headers", stack[4], stack[5]))
		return r, err
	})
	if err == nil {
		stack[0] = uint64(uint32(c.http.status))
		return
	}
	stack[0] = api.EncodeI32(codeOf(err))
}

func (c *Call) responsePart(part int32) []byte {
	switch part {
	case abi.HTTPBody:
		return c.http.body
	case abi.HTTPHeaders:
		if c.http.lines == nil {
			for _, name := range slices.Sorted(maps.Keys(c.http.header)) {
				for _, v := range c.http.header[name] {
					c.http.lines = append(c.http.lines, name+": "+v+"\n"...)
				}
			}
		}
		return c.http.lines
	case abi.HTTPError:
		return []byte(c.http.err)
	}
	panic(&Fault{Kind: job.KindTrap, Text: fmt.Sprintf("guest asked for part %d of a response; there are 0 to 2", part)})
}

func responseLen(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = uint64(uint32(len(c.responsePart(api.DecodeI32(stack[0])))))
}

func responseRead(_ context.Context, c *Call, m api.Module, stack []uint64) {
	part, offset := c.responsePart(api.DecodeI32(stack[0])), uint64(uint32(stack[2]))
	dst := view(m, "response buffer", stack[1], stack[3])
	if offset >= uint64(len(part)) {
		stack[0] = 0
		return
	}
	stack[0] = uint64(uint32(copy(dst, part[offset:])))
}

func responseHeader(_ context.Context, c *Call, m api.Module, stack []uint64) {
	var values []string
	if name := view(m, "header name", stack[0], stack[1]); len(name) <= maxName {
		values = c.http.header.Values(string(name))
	}
	lookup(m, "header value", strings.Join(values, ", "), len(values) > 0, stack)
}

// outgoing is a request before it is checked.
type outgoing struct {
	method, url string
	header      http.Header
	body        []byte // may alias guest memory
}

// refusal is an error together with the number that the guest is told.
type refusal struct {
	code int32
	err  error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func codeOf(err error) int32 {
	var r *refusal
	if errors.As(err, &r) {
		return r.code
	}
	return abi.HTTPUnreachable
}

// exchange reads a request, sends it and keeps the response. Its error is a *refusal; what the guest may not have or what is
// away is noted as the call's trouble besides.
func (c *Call) exchange(ctx context.Context, read func() (outgoing, error)) error {
	c.http.status, c.http.header, c.http.lines, c.http.body, c.http.err = 0, nil, nil, nil, ""
	c.trouble = nil
	r, err := read()
	if err == nil {
		err = c.send(ctx, r)
	}
	if ctx.Err() != nil {
		panic(sys.NewExitError(sys.ExitCodeContextCanceled)) // the job's time is over, so the guest's is
	}
	if err == nil {
		return nil
	}
	c.http.err = job.CleanText(err.Error())
	switch codeOf(err) {
	case abi.HTTPDenied:
		c.trouble = job.Errorf(job.KindDenied, "http request: %w", err)
	case abi.HTTPLimit:
		c.trouble = job.Errorf(job.KindLimit, "http request: %w", err)
	case abi.HTTPUnreachable, abi.HTTPTimeout:
		c.trouble = job.Errorf(job.KindUpstream, "http request: %w", err)
	}
	return err
}

func (c *Call) send(ctx context.Context, r outgoing) error {
	if c.HTTP.Empty() || c.Egress == nil {
		return &refusal{abi.HTTPDenied, errors.New("module has no allow.http")}
	}
	if c.http.calls++; c.http.calls > c.HTTPCalls {
		return &refusal{abi.HTTPLimit, fmt.Errorf("over the limit of %d requests per job", c.HTTPCalls)}
	}
	if r.method == "" {
		r.method = "GET"
	}
	if !slices.Contains(methods, r.method) {
		return &refusal{abi.HTTPInvalid, fmt.Errorf("method %q is not one of %s", job.CleanText(r.method), strings.Join(methods, ", "))}
	}
	if len(r.url) > maxURL {
		return &refusal{abi.HTTPInvalid, fmt.Errorf("url of %d bytes is over the limit of %d", len(r.url), maxURL)}
	}
	u, err := url.Parse(r.url)
	if err != nil {
		return &refusal{abi.HTTPInvalid, err}
	}
	if err := c.HTTP.Check(u); err != nil {
		return &refusal{abi.HTTPDenied, err}
	}
	if int64(len(r.body)) > c.HTTPBytes {
		return &refusal{abi.HTTPLimit, fmt.Errorf("request body of %d bytes is over the limit of %d", len(r.body), c.HTTPBytes)}
	}
	ctx, cancel := context.WithTimeout(ctx, c.HTTPTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(bytes.Clone(r.body)))
	if err != nil {
		return &refusal{abi.HTTPInvalid, err}
	}
	if r.header != nil {
		req.Header = r.header
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "wasmsidecar")
	}
	size := int64(len(r.url)+len(r.body)) + sizeOf(req.Header)
	if err := c.move(size); err != nil {
		return &refusal{abi.HTTPLimit, err}
	}
	if again := req.GetBody; again != nil {
		req.GetBody = func() (io.ReadCloser, error) { // for a redirect, or a connection that was lost
			if err := c.move(size); err != nil {
				return nil, err
			}
			return again()
		}
	}
	res, err := c.Egress.client(c.HTTP).Do(req)
	if err != nil {
		return &refusal{whyNot(ctx, err), err}
	}
	defer res.Body.Close()
	c.http.status = res.StatusCode
	if err := c.move(sizeOf(res.Header)); err != nil {
		return &refusal{abi.HTTPLimit, err}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, min(c.HTTPBytes, c.HTTPTotal-c.http.moved)+1))
	if err := c.move(int64(len(body))); err != nil {
		return &refusal{abi.HTTPLimit, err}
	}
	if err != nil {
		return &refusal{whyNot(ctx, err), fmt.Errorf("read response of %s: %w", u.Host, err)}
	}
	if int64(len(body)) > c.HTTPBytes {
		return &refusal{abi.HTTPLimit, fmt.Errorf("response of %s is over the limit of %d bytes", u.Host, c.HTTPBytes)}
	}
	c.http.header, c.http.body = res.Header, body
	return nil
}

// errTotal is in the chain of every error of move.
var errTotal = errors.New("over the limit")

// move counts bytes on their way out or in.
func (c *Call) move(n int64) error {
	if c.http.moved += n; c.http.moved > c.HTTPTotal {
		return fmt.Errorf("%w of %d bytes per job, requests and responses together (limits.http_total)", errTotal, c.HTTPTotal)
	}
	return nil
}

// sizeOf is how many bytes a header has.
func sizeOf(h http.Header) (n int64) {
	for name, values := range h {
		for _, v := range values {
			n += int64(len(name) + len(v))
		}
	}
	return n
}

func whyNot(ctx context.Context, err error) int32 {
	switch {
	case errors.Is(err, errTotal):
		return abi.HTTPLimit
	case errors.Is(err, errDenied):
		return abi.HTTPDenied
	case ctx.Err() != nil:
		return abi.HTTPTimeout
	}
	return abi.HTTPUnreachable
}

// parseHeaders reads lines "Name: value". Names that say how a connection is used, or whose value the client makes, are left
// out: Host, Connection, Content-Length, Transfer-Encoding and their like.
func parseHeaders(raw string) (http.Header, error) {
	if len(raw) > maxRequestHeaders {
		return nil, &refusal{abi.HTTPLimit, fmt.Errorf("request headers of %d bytes are over the limit of %d", len(raw), maxRequestHeaders)}
	}
	h := http.Header{}
	for line := range strings.Lines(raw) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, &refusal{abi.HTTPInvalid, fmt.Errorf("header line %q has no colon", job.CleanText(line))}
		}
		if err := addHeader(h, name, strings.TrimSpace(value)); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func addHeader(h http.Header, name, value string) error {
	if !validName(name) {
		return &refusal{abi.HTTPInvalid, fmt.Errorf("header name %q is not a token", job.CleanText(name))}
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return &refusal{abi.HTTPInvalid, fmt.Errorf("value of header %q has control characters", name)}
	}
	switch name = http.CanonicalHeaderKey(name); name {
	case "Host", "Connection", "Content-Length", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return nil
	}
	if strings.HasPrefix(name, "Proxy-") {
		return nil
	}
	h.Add(name, value)
	return nil
}
