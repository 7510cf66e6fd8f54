//go:build !wasip1

package guest

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
)

// Fake is a job for the tests of a guest: Run hands it to the guest's handler in this process. It exists on systems other than
// wasip1 only. Guests have one job at a time, so tests that use it must not run in parallel.
type Fake struct {
	Body   []byte
	Header map[string]string
	Config map[string]string
	// Do answers http requests; nil denies them.
	Do func(Request) (*Response, error)

	Result       []byte            // what the guest answered
	ResultHeader map[string]string // what it set
	Log          []string          // what it logged, each line as "LEVEL text"
	RetryAfter   time.Duration     // after a Retry, its wish

	response *Response
	httpErr  string
	problem  string
}

var fake = &Fake{}

// Run runs the handler. It returns the guest's refusal or wish to be tried again as an error.
func (f *Fake) Run() error {
	f.Result, f.ResultHeader, f.Log, f.RetryAfter = nil, map[string]string{}, nil, 0
	old := fake
	fake = f
	defer func() { fake = old }()
	f.problem = ""
	serve()
	if f.problem != "" {
		return errors.New(f.problem)
	}
	return nil
}

func inputLen() uint32 { return uint32(len(fake.Body)) }

func inputRead(dst []byte, offset uint32) uint32 {
	if int64(offset) >= int64(len(fake.Body)) {
		return 0
	}
	return uint32(copy(dst, fake.Body[offset:]))
}

func output(b []byte) { fake.Result = append(fake.Result, b...) }

func headerGet(name string, dst []byte) int32 {
	for k, v := range fake.Header {
		if strings.EqualFold(k, name) {
			copy(dst, v)
			return int32(len(v))
		}
	}
	return abi.Missing
}

func headerSet(name, value string) {
	if fake.ResultHeader != nil {
		fake.ResultHeader[name] = value
	}
}

func fail(text string) { fake.problem = text }

func retry(afterMS int64, text string) {
	fake.problem, fake.RetryAfter = text, time.Duration(afterMS)*time.Millisecond
}

func log(level int32, text string) {
	fake.Log = append(fake.Log, strconv.Itoa(int(level))+" "+text)
}

func configGet(name string, dst []byte) int32 {
	v, ok := fake.Config[name]
	if !ok {
		return abi.Missing
	}
	copy(dst, v)
	return int32(len(v))
}

func httpRequest(method, url, headers string, body []byte) int32 {
	fake.response, fake.httpErr = nil, ""
	if fake.Do == nil {
		fake.httpErr = "not granted: the test's Fake has no Do"
		return abi.HTTPDenied
	}
	r := Request{Method: method, URL: url, Body: body}
	for line := range strings.Lines(headers) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		r.Header = append(r.Header, [2]string{name, value})
	}
	res, err := fake.Do(r)
	var e *HTTPError
	switch {
	case errors.As(err, &e):
		fake.httpErr = e.Text
		return int32(e.Code)
	case err != nil:
		fake.httpErr = err.Error()
		return abi.HTTPUnreachable
	}
	fake.response = res
	return int32(res.Status)
}

func responsePart(p int32) []byte {
	if p == abi.HTTPError {
		return []byte(fake.httpErr)
	}
	if fake.response == nil {
		return nil
	}
	if p == abi.HTTPBody {
		return fake.response.Body
	}
	if p != abi.HTTPHeaders {
		return nil
	}
	var b strings.Builder
	for _, f := range fake.response.Header {
		b.WriteString(f[0] + ": " + f[1] + "\n")
	}
	return []byte(b.String())
}

func responseLen(p int32) uint32 { return uint32(len(responsePart(p))) }

func responseRead(p int32, dst []byte, offset uint32) uint32 {
	b := responsePart(p)
	if int64(offset) >= int64(len(b)) {
		return 0
	}
	return uint32(copy(dst, b[offset:]))
}
