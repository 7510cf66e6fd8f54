package transport

import (
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Decoder turns the messages of one route into jobs. It is immutable and may be used by many goroutines at once.
type Decoder struct {
	Route    string
	Envelope Envelope
	// Module is a fixed name, or a template with {header.NAME} in it; "" is the same as {header.Wasm-Module}.
	Module      string
	MaxBody     int           // largest body in bytes; 0: no limit
	MaxAttempts int           // the route's; a header may ask for fewer. 0: no limit
	Timeout     time.Duration // the route's; a header may ask for less. 0: no limit
	Reply       []string      // patterns of the subjects that producers may have results sent to
}

// Decode makes a job of a delivery. It never returns nil and never panics: a job that cannot be decoded has Invalid set, an
// error of KindInvalid that names what is wrong and the remedy.
func (d *Decoder) Decode(dl Delivery) *job.Job {
	m := dl.Message()
	return &job.Job{ID: dl.Position(), Route: d.Route, Module: d.Module, Subject: m.Subject, Body: m.Body, Header: m.Header}
}
