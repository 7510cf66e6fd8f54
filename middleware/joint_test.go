package middleware_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// together is a publisher in the database of a store which takes along what it makes.
type together struct {
	*outbox
	store.Store
	answer func(n int, r store.Reply) (store.Reply, error) // what becomes of the nth answer to a transaction with an ending
	asked  int
	steps  []string
}

func (p *together) Database() any       { return p }
func (p *together) Joins(with any) bool { return with == p }

func (p *together) Ending(_ context.Context, d transport.Delivery, m *transport.Message) transport.Ending {
	if d == nil {
		return nil
	}
	return &end{p, m}
}

// end is an ending of a together.
type end struct {
	p *together
	m *transport.Message
}

func (e *end) Settled() { e.p.steps = append(e.p.steps, "settled") }

func (p *together) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	r, err := p.Store.Txn(ctx, t)
	e, _ := t.Along.(*end)
	if e == nil || err != nil {
		return r, err
	}
	r.Along = r.Done
	if p.answer != nil {
		p.asked++
		if r, err = p.answer(p.asked, r); err != nil {
			return r, err
		}
	}
	if r.Along && e.m != nil {
		p.steps = append(p.steps, "along "+string(e.m.Body))
	}
	return r, nil
}

// handed is a delivery, as far as the chain sees one.
type handed struct{ transport.Delivery }

// A job's record takes the publication of its result and the settlement of its message along; what the store did not take along, or
// does not know of, is done as it is everywhere else.
func TestJoint(t *testing.T) {
	t.Parallel()
	fails := func(context.Context, *job.Job) (*job.Result, error) {
		return nil, job.Errorf(job.KindFailed, "no")
	}
	lost := errors.New("the answer is lost")
	tests := []struct {
		name   string
		runner job.RunnerFunc
		job    func(*job.Job)
		answer func(int, store.Reply) (store.Reply, error)
		bare   bool // without a delivery
		want   string
		verb   job.Verb
	}{
		{name: "together", want: "along out, settled", verb: job.Settled},
		{name: "no delivery", bare: true, want: "publish results"},
		{name: "a reply is wanted", job: func(j *job.Job) { j.ReplyTo = "reply" }, want: "publish results, publish reply"},
		{name: "a dead letter", runner: fails, want: "publish results, publish dead", verb: job.Dead},
		{name: "round a loop of routes", job: func(j *job.Job) { j.Hops = job.MaxHops }, want: "settled", verb: job.Settled},
		{
			name: "left", want: "publish results",
			answer: func(_ int, r store.Reply) (store.Reply, error) { r.Along = false; return r, nil },
		},
		{ // the record is found; of the rest nobody knows
			name: "the answer is lost", want: "publish results",
			answer: func(n int, r store.Reply) (store.Reply, error) {
				if n == 1 {
					return store.Reply{}, lost
				}
				return r, nil
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &together{Store: newStore(t), answer: tt.answer}
				p.outbox = &outbox{fail: func(m *transport.Message) error { p.steps = append(p.steps, "publish "+m.Subject); return nil }}
				if tt.runner == nil {
					tt.runner = ok
				}
				c := chainOver(t, p, p, pureRunner{tt.runner})
				x := c.exchange("a")
				if tt.job != nil {
					tt.job(x.Job)
				}
				if !tt.bare {
					x.Delivery = handed{}
				}
				if err := c.handle(t.Context(), x); err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(p.steps, ", "); got != tt.want || x.Settlement.Verb != tt.verb {
					t.Errorf("%s; settlement %v; want %s; %v", got, x.Settlement.Verb, tt.want, tt.verb)
				}
			})
		})
	}
}

// Of two that ran a job unclaimed the second emits the outcome of the first, step by step: the first may not have got so far.
func TestJointTwins(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	carry := func(body string, meanwhile func()) (*together, *job.Exchange) {
		p := &together{Store: st, outbox: &outbox{}}
		c := chainOver(t, p, p, pureRunner{func(context.Context, *job.Job) (*job.Result, error) {
			meanwhile()
			return &job.Result{Body: []byte(body)}, nil
		}})
		x := c.exchange("a")
		x.Delivery = handed{}
		if err := c.handle(t.Context(), x); err != nil {
			t.Error(err)
		}
		return p, x
	}
	second, x := carry("second", func() {
		first, x := carry("first", func() {})
		if !slices.Equal(first.steps, []string{"along first", "settled"}) || x.Settlement.Verb != job.Settled {
			t.Errorf("the first: %v, settlement %v", first.steps, x.Settlement.Verb)
		}
	})
	if got := bodies(second.to("results")); !slices.Equal(got, []string{"first"}) || len(second.steps) != 0 || x.Settlement.Verb != job.Ack || !x.Repeat {
		t.Errorf("the second published %v, along with its record %v, settlement %v", got, second.steps, x.Settlement.Verb)
	}
}

// chainOver is a process whose store and publisher are given.
func chainOver(t *testing.T, st store.Store, pub transport.Publisher, r job.Runner) *process {
	t.Helper()
	p := &process{events: &events{}}
	log := slog.New(slog.DiscardHandler)
	c, err := middleware.NewClaims(st, middleware.ClaimsConfig{Route: "jobs", Partition: "jobs", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p.claims = c
	p.handle, err = middleware.Chain(middleware.Config{
		Route: "jobs", Runner: func(*job.Job) (job.Runner, error) { return r, nil }, To: "results", DeadLetter: "dead", Publisher: pub,
		Claims: c, Retry: threeTries, Sink: p.events, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// exchange is a trip that has not begun.
func (p *process) exchange(id string) *job.Exchange {
	return &job.Exchange{
		Job:      &job.Job{ID: id, Route: "jobs", Subject: "jobs", Source: "jobs/" + id, Body: []byte("in"), Raw: []byte("in")},
		Received: time.Now(), Draining: make(chan struct{}),
	}
}
