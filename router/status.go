package router

import (
	"errors"
	"slices"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Reason says in one word why a route takes no jobs.
type Reason string

// The reasons. Each ends by itself once its cause is gone.
const (
	Opening  Reason = "opening" // its source cannot be opened
	Joining  Reason = "joining" // its source has not been given its share of the work yet
	Fetching Reason = "fetch"   // its source can be read no more
	Store    Reason = "store"   // claims or outcomes cannot be recorded
	Publish  Reason = "publish" // results or dead letters cannot be published
	Chain    Reason = "chain"   // something else that the chain needs is away
	Breaker  Reason = "breaker" // its module keeps failing
	Draining Reason = "drain"   // it ends
)

// Reasons returns all of them, in the order in which Status names them.
func Reasons() []Reason {
	return []Reason{Opening, Joining, Fetching, Store, Publish, Chain, Breaker, Draining}
}

// Pause is one reason why a route takes no jobs.
type Pause struct {
	Reason Reason
	Err    error // never nil
}

// Status is the state of one route.
type Status struct {
	Route    string
	Pauses   []Pause // why it takes no jobs; none while it does
	InFlight int     // jobs running
	Out      int     // deliveries not settled, those running included
	Bytes    int64   // of their messages
	Failed   int64   // reads of the source that failed so far
}

var (
	errOpening  = errors.New("its source is being opened")
	errDraining = errors.New("the route drains")
)

// Status returns the state of every route, in the order in which they were given.
func (r *Router) Status() []Status {
	out := make([]Status, len(r.routes))
	for i := range r.routes {
		s := &out[i]
		s.Route = r.routes[i].Window.Route
		if w := r.wins[i].Load(); w != nil {
			s.Pauses, s.Failed = w.pauses(), w.failed.Load()
			s.InFlight, s.Out = w.InFlight()
			s.Bytes = w.held()
			continue
		}
		p := Pause{Opening, errOpening}
		if err := r.opening[i].Load(); err != nil {
			p.Err = *err
		}
		s.Pauses = []Pause{p}
	}
	return out
}

// pauses says why the window takes no jobs.
func (w *Window) pauses() []Pause {
	var out []Pause
	add := func(r Reason, err error) {
		if err != nil {
			out = append(out, Pause{r, err})
		}
	}
	if j, ok := w.src.(interface{ Joined() error }); ok {
		add(Joining, j.Joined())
	}
	if w.cfg.Hold != nil {
		_, err := w.cfg.Hold()
		add(Breaker, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	add(Fetching, w.fetching)
	add(reasonOf(w.trouble), w.trouble)
	if w.draining {
		add(Draining, errDraining)
	}
	order := Reasons()
	slices.SortStableFunc(out, func(a, b Pause) int { return slices.Index(order, a.Reason) - slices.Index(order, b.Reason) })
	return out
}

func reasonOf(err error) Reason {
	switch job.PartOf(err) {
	case job.PartStore:
		return Store
	case job.PartPublisher:
		return Publish
	}
	return Chain
}
