// Package guest is for guests that are written in Go: a few functions over wasmsidecar's native ABI.
//
//	package main
//
//	import "github.com/wasmsidecar/wasmsidecar/pkg/guest"
//
//	func init() {
//		guest.Handle(func(in []byte) ([]byte, error) { return in, nil })
//	}
//
//	func main() {} // never called
//
// Build it with
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o guest.wasm .
//
// Guests need no locks: an instance runs one job at a time. What init does happens once, perhaps for many jobs, and there is no
// job then. On other systems the package builds too and answers from a Fake, so that a guest's own tests can run anywhere.
package guest

import (
	"errors"
	"fmt"
	"time"
)

// Handler answers a job's body with a result's. An error refuses the job for good, unless it is, or wraps, one of Retry's.
type Handler func(in []byte) ([]byte, error)

var handler Handler

// Handle says what answers jobs. Call it from init.
func Handle(h Handler) { handler = h }

// retryError asks for another attempt.
type retryError struct {
	after time.Duration
	err   error
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// Retry makes an error that asks for the job to be tried again, after that long or, with 0, whenever the route says.
func Retry(after time.Duration, err error) error { return &retryError{after, err} }

// serve runs the handler on the job at hand and tells the host how it went.
func serve() int32 {
	if handler == nil {
		fail("the guest set no handler: call guest.Handle from init")
		return 0
	}
	out, err := handler(Input())
	var again *retryError
	switch {
	case err == nil:
		output(out)
	case errors.As(err, &again):
		retry(again.after.Milliseconds(), err.Error())
	default:
		fail(err.Error())
	}
	return 0
}

// Input is the job's body.
func Input() []byte {
	b := make([]byte, inputLen())
	return b[:inputRead(b, 0)]
}

// Header is the first value of one of the job's headers, or "". Wasm-Job-Id, Wasm-Attempt, Wasm-Route, Wasm-Subject and
// Correlation-Id are always there.
func Header(name string) string {
	v, _ := LookupHeader(name)
	return v
}

// LookupHeader is Header that tells an empty header from none.
func LookupHeader(name string) (string, bool) { return grow(name, headerGet) }

// SetHeader sets a header of the result. Names beginning with Wasm- or Nats- are ignored.
func SetHeader(name, value string) { headerSet(name, value) }

// Config is one of the module's settings, or "".
func Config(name string) string {
	v, _ := LookupConfig(name)
	return v
}

// LookupConfig is Config that tells an empty setting from none.
func LookupConfig(name string) (string, bool) { return grow(name, configGet) }

// grow asks for a value until the buffer holds all of it.
func grow(name string, get func(name string, dst []byte) int32) (string, bool) {
	b := make([]byte, 128)
	for {
		n := get(name, b)
		if n < 0 {
			return "", false
		}
		if int(n) <= len(b) {
			return string(b[:n]), true
		}
		b = make([]byte, n)
	}
}

// Logf writes a line to the sidecar's log, at one of abi's levels.
func Logf(level int, format string, args ...any) { log(int32(level), fmt.Sprintf(format, args...)) }
