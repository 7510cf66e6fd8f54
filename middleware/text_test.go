package middleware_test

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// What producers and guests write as text need not be UTF-8. A job with such a correlation id and such headers is repeated as it was,
// and holds up nobody.
func TestTextThatIsNoUTF8(t *testing.T) {
	t.Parallel()
	const odd = "\xff\xfe odd"
	run := func(context.Context, *job.Job) (*job.Result, error) {
		return &job.Result{Body: []byte("out"), TypeName: odd, Module: odd, Header: job.Header{{Name: "X", Value: odd}}}, nil
	}
	p := setup{store: newStore(t), policy: threeTries, runner: run}.start(t)
	for n := range 2 {
		x := p.exchange("a")
		x.Job.CorrelationID, x.Job.Source = odd, odd
		if err := p.handle(t.Context(), x); err != nil || x.Settlement.Verb != job.Ack || x.Repeat != (n == 1) {
			t.Errorf("delivery %d: settlement %v, repeat %t, error %v", n, x.Settlement, x.Repeat, err)
		}
	}
	out := p.out.to("results")
	if len(out) != 2 || !slices.Equal(out[0].Header, out[1].Header) || !bytes.Equal(out[0].Body, out[1].Body) {
		t.Errorf("results %v", out)
	}
}
