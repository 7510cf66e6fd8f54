package middleware_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
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

// A record that cannot be read, as that of a later build, keeps its own job waiting and no other: the store is not away. The job
// runs once the record has gone.
func TestRecordThatCannotBeRead(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	var key string
	spy := &lossy{Store: st, before: func(t store.Txn) error { key = t.If[0].Key; return nil }}
	p := setup{store: spy, policy: threeTries, runner: ok}.start(t)
	if _, err := p.trip(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	change := func(op store.Op) {
		if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{op}}); err != nil {
			t.Fatal(err)
		}
	}
	record := key
	change(store.Put(record, []byte("\x7fof a later build"), time.Hour))
	for range 2 {
		if x, err := p.trip(t.Context(), "a"); err != nil || x.Settlement.Verb != job.Retry || x.Settlement.After < time.Second {
			t.Errorf("settlement %v, error %v", x.Settlement, err)
		}
	}
	if x, err := p.trip(t.Context(), "b"); err != nil || x.Settlement.Verb != job.Ack {
		t.Errorf("another job: settlement %v, error %v", x.Settlement, err)
	}
	change(store.Delete(record))
	if x, err := p.trip(t.Context(), "a"); err != nil || x.Settlement.Verb != job.Ack || x.Repeat {
		t.Errorf("without the record: settlement %v, error %v", x.Settlement, err)
	}
}

// narrow is a store that takes values of so many bytes.
type narrow struct {
	store.Store
	most int
}

func (n narrow) MaxValue() int { return n.most }

func (n narrow) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	for _, o := range t.Then {
		if len(o.Value) > n.most {
			return store.Reply{}, store.ErrTooLarge
		}
	}
	return n.Store.Txn(ctx, t)
}

// A job whose correlation id or module is longer than the store takes is recorded all the same: what is emitted of them is short.
func TestLongTextIsRecorded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := setup{store: narrow{newStore(t), 8 << 10}, policy: threeTries, runner: func(context.Context, *job.Job) (*job.Result, error) {
			return nil, job.Errorf(job.KindInvalid, "there is no such module")
		}}.start(t)
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			x := p.exchange("a")
			x.Job.CorrelationID, x.Job.Module = strings.Repeat("c", 1<<20), strings.Repeat("m", 1<<20)
			if err := p.handle(ctx, x); err != nil || x.Settlement.Verb != job.Dead {
				t.Errorf("settlement %v, error %v", x.Settlement, err)
			}
			cancel()
		}
		if out := p.out.to("results"); len(out) != 2 || !slices.Equal(out[0].Header, out[1].Header) {
			t.Errorf("%d results", len(out))
		}
	})
}

// A job whose key leaves a result no room beside it ends all the same: its result goes out without.
func TestKeyThatLeavesNoRoom(t *testing.T) {
	t.Parallel()
	const most = 16 << 10
	out := &outbox{max: most, fail: func(m *transport.Message) error {
		if m.Size() > most {
			return transport.ErrTooLarge
		}
		return nil
	}}
	p := setup{store: newStore(t), policy: threeTries, out: out, runner: ok}.start(t)
	for n := range 2 {
		x := p.exchange("a")
		x.Job.Key = strings.Repeat("k", most-100)
		if err := p.handle(t.Context(), x); err != nil || x.Settlement.Verb != job.Ack || x.Repeat != (n == 1) {
			t.Errorf("delivery %d: settlement %v, error %v", n, x.Settlement, err)
		}
	}
	if ms := out.to("results"); len(ms) != 2 || len(ms[0].Key) != 0 || ms[0].Header.Get(transport.HeaderOK) != "true" || !slices.Equal(ms[0].Header, ms[1].Header) {
		t.Errorf("%d results", len(ms))
	}
}

// The same on a broker that takes so many bytes of headers, of which the key is one, and of a job that ends in a dead letter.
func TestKeyThatLeavesHeadersNoRoom(t *testing.T) {
	t.Parallel()
	const most = 64 << 10
	out := &outbox{fail: func(m *transport.Message) error {
		if m.Header.Size()+len(m.Key) > most {
			return transport.ErrRejected
		}
		return nil
	}}
	p := setup{store: newStore(t), policy: threeTries, out: out, runner: func(context.Context, *job.Job) (*job.Result, error) {
		return nil, job.Errorf(job.KindFailed, "no")
	}}.start(t)
	x := p.exchange("a")
	x.Job.Key = strings.Repeat("k", most-100)
	x.Job.Header = job.Header{{Name: transport.HeaderKey, Value: x.Job.Key}}
	if err := p.handle(t.Context(), x); err != nil || x.Settlement.Verb != job.Dead {
		t.Errorf("settlement %v, error %v", x.Settlement, err)
	}
	if n := len(out.to("dead")); n != 1 || x.Outcome.Kind != job.KindFailed {
		t.Errorf("%d dead letters of kind %s", n, x.Outcome.Kind)
	}
}
