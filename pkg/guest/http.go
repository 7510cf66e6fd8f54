package guest

import (
	"fmt"
	"strings"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
)

// Request is an http request. A guest that sends one imports wasmsidecar_http, and its module must be granted the host.
type Request struct {
	Method string // empty: GET
	URL    string
	Header [][2]string
	Body   []byte
}

// Response is the answer to a Request.
type Response struct {
	Status int
	Header [][2]string
	Body   []byte
}

// HTTPError is why there is no response.
type HTTPError struct {
	Code int // abi.HTTPDenied and its siblings
	Text string
}

// Error returns the text.
func (e *HTTPError) Error() string { return fmt.Sprintf("http request: %s", e.Text) }

// Do sends a request and returns the whole response, whatever its status. Its error is an *HTTPError.
func Do(r Request) (*Response, error) {
	var h strings.Builder
	for _, f := range r.Header {
		h.WriteString(f[0] + ": " + f[1] + "\n")
	}
	status := httpRequest(r.Method, r.URL, h.String(), r.Body)
	if status < 0 {
		return nil, &HTTPError{Code: int(status), Text: string(part(abi.HTTPError))}
	}
	res := &Response{Status: int(status), Body: part(abi.HTTPBody)}
	for line := range strings.Lines(string(part(abi.HTTPHeaders))) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		res.Header = append(res.Header, [2]string{name, value})
	}
	return res, nil
}

func part(p int32) []byte {
	b := make([]byte, responseLen(p))
	return b[:responseRead(p, b, 0)]
}
