package sidecar

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/api"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/telemetry"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// prober asks broker and store every so often whether they answer, so that whoever reads readiness or metrics never waits.
type prober struct {
	mu       sync.Mutex
	state    []probeState
	backlogs map[string]transport.Backlog // by route; none where the last count failed
	depths   map[string]int64             // of dead letters, by topic; the same
}

type probeState struct {
	kind, name string
	err        error
}

const (
	probeEvery   = 2 * time.Second
	probeTimeout = 3 * time.Second
	// countEvery is how often each route's backlog and its dead letters are asked for.
	countEvery = 15 * time.Second
)

func (p *prober) set(kind, name string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.state {
		if p.state[i].kind == kind {
			p.state[i].err = err
			return
		}
	}
	p.state = append(p.state, probeState{kind, name, err})
}

func (p *prober) snapshot() []probeState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]probeState(nil), p.state...)
}

// run probes until ctx ends.
func (p *prober) run(ctx context.Context, cfg *config.Config, parts *parts) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		ping := func(kind, name string, f func(context.Context) error) {
			pctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			if err := f(pctx); ctx.Err() == nil {
				p.set(kind, name, err)
			}
		}
		ping("broker", cfg.Transport, parts.transport.Ping)
		if parts.store != nil {
			ping("store", cfg.Store, parts.store.Ping)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// count asks for the backlog of every route and the number of dead letters in every topic of theirs, one after the other, until ctx ends.
func (p *prober) count(ctx context.Context, cfg *config.Config, t transport.Transport) {
	c, ok := t.(transport.Counter)
	if !ok {
		return
	}
	var topics []string // routes may share them
	for _, r := range cfg.Routes {
		if r.DeadLetter != "" && !slices.Contains(topics, r.DeadLetter) {
			topics = append(topics, r.DeadLetter)
		}
	}
	for begun := time.Now(); ; {
		all := true
		for _, r := range cfg.Routes {
			all = note(ctx, p, p.backlogs, r.Name, func(ctx context.Context) (transport.Backlog, error) {
				return c.RouteBacklog(ctx, r.Name, r.From)
			}) && all
		}
		for _, topic := range topics {
			all = note(ctx, p, p.depths, topic, func(ctx context.Context) (int64, error) { return c.Depth(ctx, topic) }) && all
		}
		wait := countEvery
		if !all && time.Since(begun) < countEvery { // until the routes have their sources, which some never get
			wait = probeEvery
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// note asks for a figure and keeps it, or forgets the last one: an old figure would look like a new one. It says whether there was an answer.
func note[T any](ctx context.Context, p *prober, figures map[string]T, name string, ask func(context.Context) (T, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	n, err := ask(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		figures[name] = n
	} else {
		delete(figures, name)
	}
	return err == nil
}

// topics are the topics of dead letters whose depth is known.
func (p *prober) topics() []telemetry.TopicGauge {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]telemetry.TopicGauge, 0, len(p.depths))
	for topic, n := range p.depths {
		out = append(out, telemetry.TopicGauge{Topic: topic, Depth: n})
	}
	return out
}

// backlog is a route's, nil where it is not known.
func (p *prober) backlog(route string) *telemetry.BacklogGauge {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.backlogs[route]
	if !ok {
		return nil
	}
	return &telemetry.BacklogGauge{Unsettled: b.Unsettled, Delayed: b.Delayed}
}

func (p *prober) gauges() []telemetry.PartGauge {
	var out []telemetry.PartGauge
	for _, s := range p.snapshot() {
		out = append(out, telemetry.PartGauge{Kind: s.kind, Name: s.name, Up: s.err == nil})
	}
	return out
}

// ready says of every part whether it is fit for jobs.
func (s *Sidecar) ready() []api.Check {
	var out []api.Check
	check := func(name string, ok bool, detail string) {
		out = append(out, api.Check{Name: name, OK: ok, Detail: detail})
	}
	states := s.probe.snapshot()
	if len(states) == 0 {
		check("broker "+s.cfg.Transport, false, "connecting")
	}
	for _, st := range states {
		detail := ""
		if st.err != nil {
			detail = st.err.Error()
		}
		check(st.kind+" "+st.name, st.err == nil, detail)
	}
	r := s.router.Load()
	if r == nil {
		check("routes", false, "starting")
		return out
	}
	for i, st := range r.Status() {
		var why []string
		for _, p := range st.Pauses {
			why = append(why, fmt.Sprintf("paused (%s): %v", p.Reason, p.Err))
		}
		paused := len(why) > 0
		for _, b := range s.breakersOf(i) {
			if b.Err != nil && !paused { // other modules go on
				why = append(why, b.Err.Error())
			}
		}
		check("route "+st.Route, !paused, strings.Join(why, "; "))
	}
	return out
}

func (s *Sidecar) memoryGauge() telemetry.MemoryGauge {
	if s.modules == nil || s.modules.engine == nil {
		return telemetry.MemoryGauge{}
	}
	u := s.modules.engine.MemoryUse()
	return telemetry.MemoryGauge{Budget: u.Budget, Running: u.Running, Idle: u.Idle, Waiting: u.Waiting, Waits: u.Waits}
}

func (s *Sidecar) routeGauges() []telemetry.RouteGauge {
	r := s.router.Load()
	if r == nil {
		return nil
	}
	var out []telemetry.RouteGauge
	for i, st := range r.Status() {
		g := telemetry.RouteGauge{Route: st.Route, InFlight: st.InFlight, Out: st.Out, Bytes: st.Bytes, Failed: st.Failed, Paused: map[string]bool{}}
		for _, reason := range router.Reasons() {
			g.Paused[string(reason)] = false
		}
		for _, p := range st.Pauses {
			g.Paused[string(p.Reason)] = true
		}
		for _, b := range s.breakersOf(i) {
			g.Breakers = append(g.Breakers, telemetry.BreakerGauge{Module: b.Module, State: b.State})
		}
		g.Backlog = s.probe.backlog(st.Route)
		out = append(out, g)
	}
	return out
}

func (s *Sidecar) moduleGauges() []telemetry.ModuleGauge {
	if s.modules == nil { // they are still loaded
		return nil
	}
	return s.modules.gauges()
}

// breakersOf returns the states of the ith route's breakers.
func (s *Sidecar) breakersOf(i int) []middleware.BreakerState {
	all := s.breakers.Load()
	if all == nil {
		return nil
	}
	return (*all)[i].States()
}

// brokerGauge is what the transport has counted; false where it counts nothing.
func (s *Sidecar) brokerGauge() (telemetry.BrokerGauge, bool) {
	p := s.parts.Load()
	if p == nil {
		return telemetry.BrokerGauge{}, false
	}
	c, ok := p.transport.(transport.LossCounter)
	if !ok {
		return telemetry.BrokerGauge{}, false
	}
	l := c.Losses()
	return telemetry.BrokerGauge{Name: p.transport.Name(), Gaps: l.Gaps, Remade: l.Remade, Rebalances: l.Rebalance}, true
}
