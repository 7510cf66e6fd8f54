package transport_test

import (
	"fmt"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A message becomes a job, and the job's outcome a message.
func Example() {
	d := &transport.Decoder{Route: "images", Module: "{header.X-Operation}"}
	m := &transport.Message{Subject: "images.in", Body: []byte("a picture")}
	m.Header.Add("Nats-Msg-Id", "order-7")
	m.Header.Add("X-Operation", "resize")
	j := d.Decode(delivered{m: m, position: "IMAGES@1767323045000/1"})
	fmt.Println(j.ID, j.Module, j.Invalid)

	o := &job.Outcome{Kind: job.KindFailed, Err: "not a picture", Attempts: 1, Duration: 3 * time.Millisecond}
	r := transport.Result(j, o, transport.EnvelopeNone, "images.out")
	fmt.Println(r.Header.Get("Wasm-Result-Of"), r.Header.Get("Wasm-Ok"))
	fmt.Println(string(r.Body))
	// Output:
	// order-7 resize <nil>
	// order-7 false
	// {"type":"urn:wasmsidecar:problem:failed","title":"The guest refused the job","status":422,"detail":"not a picture","kind":"failed","attempts":1}
}
