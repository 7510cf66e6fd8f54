package transporttest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// joint is a transport with a store in the same database, and jobs that end together with a record.
type joint struct {
	s       *suite
	tr      transport.Transport
	pub     transport.Joint
	st      store.Joiner
	jobs    string
	results string
	src     transport.Source
	out     transport.Tail
}

func (s *suite) joint(t *testing.T) *joint {
	t.Helper()
	x := &joint{s: s, tr: s.open(t), jobs: s.NewSubject(t), results: s.NewSubject(t)}
	var joins bool
	if x.pub, joins = x.tr.Publisher().(transport.Joint); !joins {
		t.Fatal("the publisher is no transport.Joint")
	}
	if x.st, joins = s.Beside(t).(store.Joiner); !joins {
		t.Fatal("the store is no store.Joiner")
	}
	if !x.st.Joins(x.pub.Database()) || x.st.Joins(nil) || x.st.Joins("elsewhere") {
		t.Fatal("the store does not know its own database from another")
	}
	prepare(t, x.tr, transport.Subjects{Sources: []string{x.jobs}, Sinks: []string{x.results}})
	x.src = s.source(t, x.tr, x.jobs)
	tail, err := x.tr.Tail(t.Context(), x.results, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tail.Close() })
	x.out = tail
	return x
}

// deliver publishes n jobs and fetches them.
func (x *joint) deliver(t *testing.T, n int) []transport.Delivery {
	t.Helper()
	publish(t, x.tr, numbered(x.jobs, n)...)
	return fetch(t, x.src, n)
}

// result is that of a delivery.
func (x *joint) result(d transport.Delivery) *transport.Message {
	return &transport.Message{
		Subject: x.results, Key: []byte("key"), Body: append([]byte("result of "), d.Message().Body...),
		Header: job.Header{{Name: "Wasm-Result-Of", Value: d.Position()}, {Name: "X-Many", Value: "one"}, {Name: "X-Many", Value: "zwei ☃"}},
	}
}

func (x *joint) key(d transport.Delivery) string { return store.Key(x.jobs, "claim", d.Position()) }

// record records that a job is done where nothing was recorded of it, and takes its ending along.
func (x *joint) record(t *testing.T, d transport.Delivery, end transport.Ending) store.Reply {
	t.Helper()
	txn := store.Txn{If: []store.Cond{{Key: x.key(d)}}, Then: []store.Op{store.Put(x.key(d), []byte("done"), time.Minute)}}
	if end != nil {
		txn.Along = end
	}
	r, err := x.st.Txn(t.Context(), txn)
	if err != nil {
		t.Fatalf("Txn: %v", err)
	}
	if r.Along {
		end.Settled()
	}
	return r
}

// published returns the next n results.
func (x *joint) published(t *testing.T, n int) []*transport.Message {
	t.Helper()
	ms := make([]*transport.Message, n)
	for i := range ms {
		m, err := x.out.Next(t.Context())
		if err != nil {
			t.Fatalf("%d of %d results came: %v", i, n, err)
		}
		ms[i] = m
	}
	return ms
}

// nothing proves that no further result is there.
func (x *joint) nothing(t *testing.T) {
	t.Helper()
	publish(t, x.tr, &transport.Message{Subject: x.results, Body: []byte("last")})
	if m := x.published(t, 1)[0]; string(m.Body) != "last" {
		t.Errorf("the result %q is published", m.Body)
	}
}

// A record, its result and the settlement of its message are one; the result is the one that Publish writes.
func (s *suite) jointEnd(t *testing.T) {
	x := s.joint(t)
	ds := x.deliver(t, 2)
	end := x.pub.Ending(t.Context(), ds[0], x.result(ds[0]))
	if r := x.record(t, ds[0], end); !r.Done || !r.Along {
		t.Fatalf("the answer is %+v", r)
	}
	publish(t, x.tr, x.result(ds[0]))
	if ms := x.published(t, 2); fmt.Sprint(ms[0]) != fmt.Sprint(ms[1]) {
		t.Errorf("published along: %v\nby itself: %v", ms[0], ms[1])
	}
	// One that has no result.
	if r := x.record(t, ds[1], x.pub.Ending(t.Context(), ds[1], nil)); !r.Done || !r.Along {
		t.Fatalf("the answer is %+v", r)
	}
	x.nothing(t)
	for _, d := range ds {
		if kv, err := store.Get(t.Context(), x.st, x.key(d)); err != nil || string(kv.Value) != "done" {
			t.Errorf("recorded is %q, %v", kv.Value, err)
		}
		if end := x.pub.Ending(t.Context(), d, nil); end != nil {
			t.Error("a delivery that is settled can end once more")
		}
		d.Ack() // does nothing any more
	}
	quiet(t, x.src, s.settled(), "settled with its record")
}

// Where the condition does not hold nothing is published and nothing settled.
func (s *suite) jointRefused(t *testing.T) {
	x := s.joint(t)
	d := x.deliver(t, 1)[0]
	if r := x.record(t, d, nil); !r.Done || r.Along {
		t.Fatalf("the answer is %+v", r)
	}
	if r := x.record(t, d, x.pub.Ending(t.Context(), d, x.result(d))); r.Done || r.Along {
		t.Fatalf("the second record is answered with %+v", r)
	}
	x.nothing(t)
	d.Release()
	fetch(t, x.src, 1)[0].Ack()
}

// A result that is refused leaves the record alone: the caller publishes, sees why that fails, and settles.
func (s *suite) jointResultRefused(t *testing.T) {
	x := s.joint(t)
	d := x.deliver(t, 1)[0]
	m := x.result(d)
	m.Subject = s.NewSubject(t)
	s.Spoil(t, m.Subject)
	if r := x.record(t, d, x.pub.Ending(t.Context(), d, m)); !r.Done || r.Along {
		t.Fatalf("the answer is %+v", r)
	}
	d.Release()
	fetch(t, x.src, 1)[0].Ack()
	quiet(t, x.src, s.settled(), "acknowledged")
}

// What cannot be part of a transaction is said at once, and one that was made too late does no harm.
func (s *suite) jointUnable(t *testing.T) {
	x, other := s.joint(t), s.joint(t)
	ds := x.deliver(t, 2)
	large := x.result(ds[0])
	large.Body = make([]byte, 32<<20)
	unnamed := x.result(ds[0])
	unnamed.Subject = "no\nname"
	for what, end := range map[string]transport.Ending{
		"a large result":               x.pub.Ending(t.Context(), ds[0], large),
		"a subject that is none":       x.pub.Ending(t.Context(), ds[0], unnamed),
		"another transport's delivery": other.pub.Ending(t.Context(), ds[0], nil),
		"no delivery":                  x.pub.Ending(t.Context(), nil, nil),
	} {
		if end != nil {
			t.Errorf("%s can be taken along", what)
		}
	}
	late := x.pub.Ending(t.Context(), ds[1], x.result(ds[1]))
	ds[1].Ack()
	if r := x.record(t, ds[1], late); !r.Done {
		t.Errorf("the answer is %+v", r)
	}
	ds[0].Ack()
	quiet(t, x.src, s.settled(), "acknowledged")
}

// Many at once, some of which are refused: each has its own fate.
func (s *suite) jointMany(t *testing.T) {
	x := s.joint(t)
	const n = 200
	ds := x.deliver(t, n)
	want := make([]string, 0, n)
	for i, d := range ds {
		if i%5 == 0 {
			x.record(t, d, nil)
			want = append(want, "")
		} else {
			want = append(want, string(x.result(d).Body))
		}
	}
	var wg sync.WaitGroup
	for i, d := range ds {
		wg.Go(func() {
			r, err := x.st.Txn(t.Context(), store.Txn{
				If:    []store.Cond{{Key: x.key(d)}},
				Then:  []store.Op{store.Put(x.key(d), fmt.Append(nil, i), time.Minute)},
				Along: x.pub.Ending(t.Context(), d, x.result(d)),
			})
			if err != nil || r.Done != (i%5 != 0) || r.Along != r.Done {
				t.Errorf("job %d is answered with %+v, %v", i, r, err)
			}
			kv, err := store.Get(t.Context(), x.st, x.key(d))
			if err != nil || r.Done && (kv.Revision != r.Revision || string(kv.Value) != fmt.Sprint(i)) {
				t.Errorf("job %d has %q at revision %d, %v; answered was %+v", i, kv.Value, kv.Revision, err, r)
			}
			if !r.Along {
				d.Ack()
			}
		})
	}
	wg.Wait()
	got := make([]string, n/5, n)
	for _, m := range x.published(t, n-n/5) {
		got = append(got, string(m.Body))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("published are %v", got)
	}
	x.nothing(t)
	quiet(t, x.src, s.settled(), "settled")
}
