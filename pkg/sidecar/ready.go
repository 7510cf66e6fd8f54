package sidecar

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/api"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/telemetry"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// prober asks broker and store every so often whether they answer, so that whoever reads readiness or metrics never waits.
type prober struct {
	mu    sync.Mutex
	state []probeState
}

type probeState struct {
	kind, name string
	err        error
}

const (
	probeEvery   = 2 * time.Second
	probeTimeout = 3 * time.Second
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
	for _, st := range r.Status() {
		var why []string
		for _, p := range st.Pauses {
			why = append(why, fmt.Sprintf("paused (%s): %v", p.Reason, p.Err))
		}
		check("route "+st.Route, len(why) == 0, strings.Join(why, "; "))
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
	for _, st := range r.Status() {
		g := telemetry.RouteGauge{Route: st.Route, InFlight: st.InFlight, Out: st.Out, Failed: st.Failed, Paused: map[string]bool{}}
		for _, reason := range router.Reasons() {
			g.Paused[string(reason)] = false
		}
		for _, p := range st.Pauses {
			g.Paused[string(p.Reason)] = true
		}
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
