package inmem_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/inmem"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/transporttest"
)

func TestSuite(t *testing.T) {
	b, err := inmem.NewBroker(inmem.Config{MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	transporttest.Run(t, harness(b, func(tr *inmem.Transport) transport.Transport { return tr }))
}

// The wrapper that makes calls fail does not get in the way of those that it lets pass.
func TestFaultySuite(t *testing.T) {
	b, err := inmem.NewBroker(inmem.Config{})
	if err != nil {
		t.Fatal(err)
	}
	transporttest.Run(t, harness(b, func(tr *inmem.Transport) transport.Transport {
		return transporttest.NewFaulty(tr, transporttest.Faults{})
	}))
}

func harness(b *inmem.Broker, wrap func(*inmem.Transport) transport.Transport) transporttest.Harness {
	var n atomic.Int64
	return transporttest.Harness{
		Lease:      500 * time.Millisecond,
		Open:       func(testing.TB) transport.Transport { return wrap(b.Open()) },
		NewSubject: func(testing.TB) string { return fmt.Sprintf("subject-%d", n.Add(1)) },
		RawPublish: func(t testing.TB, subject string, body []byte) {
			tr := b.Open()
			if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: subject, Body: body}); err != nil {
				t.Fatal(err)
			}
		},
		RecreateSubject: func(_ testing.TB, subject string) { b.Drop(subject) },
	}
}
