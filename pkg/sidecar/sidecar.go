package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/api"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/telemetry"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// ErrUnreachable says that broker or store did not answer within the connect timeout.
var ErrUnreachable = errors.New("unreachable")

// ErrConfig is in the chain of errors that only a change of the configuration, or of what it names, can mend: a data directory
// in use, an address taken, a topic that is missing and may not be made.
var ErrConfig = errors.New("configuration")

// configError marks an error as ErrConfig without adding to its words.
type configError struct{ error }

func (e configError) Unwrap() error        { return e.error }
func (e configError) Is(target error) bool { return target == ErrConfig }

// Options are what a configuration does not say.
type Options struct {
	Log     *slog.Logger // required
	Version string
	// Runners replaces the modules of the configuration, by name; for tests and benchmarks.
	Runners map[string]job.Runner
	// Sink is told of everything besides logs and metrics; may be nil.
	Sink event.Sink
	// Hold, if not nil, keeps the routes from taking jobs until it is closed; for benchmarks, which fill the queues first.
	Hold <-chan struct{}
}

// Sidecar is one running configuration. Make it with New, run it once with Run.
type Sidecar struct {
	cfg     *config.Config
	opt     Options
	log     *slog.Logger
	modules *modules
	admin   *api.Server
	metrics *telemetry.Metrics
	sink    event.Sink
	// scheduled are the jobs of the schedules, in the order of the configuration.
	scheduled []transport.Message

	running chan struct{} // closed when every part is up
	reload  chan struct{} // modules are to be looked at

	parts  atomic.Pointer[parts] // nil until broker and store answer
	router atomic.Pointer[router.Router]
	probe  prober
	// breakers of each route, in the order of the configuration; nil until the routes are made.
	breakers atomic.Pointer[[]*middleware.Breakers]
	suspects *middleware.Suspects // the gate that the routes share
}

// parts are the connections that jobs travel over.
type parts struct {
	transport transport.Transport
	store     store.Store // nil where every route has dedup: off
}

// New loads the configuration's modules and prepares everything that needs neither broker nor store. Its errors are mistakes
// of the configuration. Close what it returns, unless it is run.
func New(ctx context.Context, cfg *config.Config, opt Options) (*Sidecar, error) {
	if opt.Log == nil {
		return nil, errors.New("sidecar: a log is required")
	}
	s := &Sidecar{
		cfg: cfg, opt: opt, log: opt.Log, suspects: middleware.NewSuspects(), running: make(chan struct{}), reload: make(chan struct{}, 1),
		probe: prober{backlogs: map[string]transport.Backlog{}, depths: map[string]int64{}},
	}
	names := make([]string, 0, len(cfg.Modules))
	for name := range cfg.Modules {
		names = append(names, name)
	}
	for name := range opt.Runners {
		names = append(names, name)
	}
	var err error
	s.metrics, err = telemetry.NewMetrics(opt.Version, names, telemetry.Gauges{
		Routes: s.routeGauges, Broker: s.brokerGauge, Topics: s.probe.topics, Parts: s.probe.gauges, Modules: s.moduleGauges, Memory: s.memoryGauge, Suspects: s.suspects.Len,
	})
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	sinks := event.Sinks{telemetry.NewLog(opt.Log), s.metrics}
	if opt.Sink != nil {
		sinks = append(sinks, opt.Sink)
	}
	s.sink = sinks
	if s.scheduled, err = scheduled(cfg); err != nil {
		return nil, err
	}
	if s.modules, err = loadModules(ctx, cfg, opt, s.metrics.Compiled); err != nil {
		return nil, err
	}
	if cfg.Admin.Listen != "" {
		s.admin, err = api.New(api.Config{Listen: cfg.Admin.Listen, Ready: s.ready, Gatherer: s.metrics, Log: opt.Log})
		if err != nil {
			s.modules.close()
			return nil, err
		}
	}
	return s, nil
}

// Close releases what New made, for a sidecar that is not run.
func (s *Sidecar) Close() {
	s.modules.close()
	if s.admin != nil {
		if err := s.admin.Close(); err != nil {
			s.log.Debug("closing the admin server", "err", err)
		}
	}
}

// Reload has the sidecar look at once whether files of modules have changed. It does not wait for what becomes of that.
func (s *Sidecar) Reload() {
	select {
	case s.reload <- struct{}{}:
	default: // it is about to
	}
}

// Running is closed when every part is up and the routes begin to take jobs.
func (s *Sidecar) Running() <-chan struct{} { return s.running }

// AdminAddr is where health and metrics are served; "" where they are not.
func (s *Sidecar) AdminAddr() string {
	if s.admin == nil {
		return ""
	}
	return s.admin.Addr()
}

// Run connects, carries jobs until ctx ends, and drains. It returns nil after a clean drain; ErrUnreachable, wrapped, when
// broker or store did not answer within the connect timeout; ErrConfig, wrapped, when they answered that this cannot work; and
// whatever ended a route for good.
func (s *Sidecar) Run(ctx context.Context) error {
	defer s.modules.close()
	// The admin server outlives the drain, so that readiness can be seen to be gone.
	side, stopSide := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stopSide()
	if s.admin != nil {
		wg.Go(func() {
			if err := s.admin.Run(side); err != nil {
				s.log.Error("admin server ended", "err", err)
			}
		})
		s.log.Info("admin server listens", "addr", s.admin.Addr())
	}

	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	wg.Go(func() { s.modules.watch(watching, s.cfg.Reload, s.reload, s.metrics.Swapped) })

	c, err := connect(ctx, s.cfg, s.log)
	if err != nil {
		return configError{err}
	}
	defer c.close(s.log)
	p, err := s.prepare(ctx, c)
	if err != nil || p == nil {
		return err
	}
	s.parts.Store(p)
	wg.Go(func() { s.probe.run(side, s.cfg, p) })
	if s.admin != nil {
		wg.Go(func() { s.probe.count(ctx, s.cfg, p.transport) })
	}

	r, closeRoutes, err := s.routes(p)
	if err != nil {
		return err
	}
	defer closeRoutes()
	s.router.Store(r)
	stopRequests, err := s.serveRequests(ctx, p.transport)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, stopRequests)()
	close(s.running)
	if s.opt.Hold != nil {
		select {
		case <-s.opt.Hold:
		case <-ctx.Done():
		}
	}
	stopSchedules, err := s.runSchedules(ctx, p)
	if err != nil {
		return err
	}
	defer stopSchedules()
	s.log.Info("ready", "transport", s.cfg.Transport, "store", s.cfg.Store, "routes", len(s.cfg.Routes), "modules", s.modules.names())
	if err = r.Run(ctx); err == nil {
		s.log.Info("drained")
	}
	return err
}

// serveRequests makes jobs of requests, where the broker knows requests and a route may reply. The returned function stops it.
func (s *Sidecar) serveRequests(ctx context.Context, t transport.Transport) (func(), error) {
	rs, ok := t.(interface {
		ServeRequests(ctx context.Context, subject string) (io.Closer, error)
	})
	var closers []io.Closer
	stop := func() {
		for _, c := range closers {
			if err := c.Close(); err != nil {
				s.log.Warn("closing a request subject", "err", err)
			}
		}
	}
	for _, r := range s.cfg.Routes {
		if !ok || len(r.Reply) == 0 {
			continue
		}
		c, err := rs.ServeRequests(ctx, r.From)
		if err != nil {
			stop()
			return nil, fmt.Errorf("route %q: %w", r.Name, err)
		}
		closers = append(closers, c)
	}
	return stop, nil
}

// prepare waits until broker and store answer and have what the routes need. It returns nil without an error when ctx ends.
func (s *Sidecar) prepare(ctx context.Context, c *connections) (*parts, error) {
	limit := ctx
	if t := s.cfg.ConnectTimeout; t > 0 {
		var cancel context.CancelFunc
		limit, cancel = context.WithTimeout(ctx, t)
		defer cancel()
	}
	p := &parts{transport: c.transport}
	want := subjects(s.cfg)
	err := s.await(ctx, limit, part{"broker", s.cfg.Transport}, func(ctx context.Context) error {
		return c.transport.Prepare(ctx, want)
	}, transport.Permanent)
	if err != nil || ctx.Err() != nil {
		return nil, err
	}
	if !needsStore(s.cfg) {
		return p, nil
	}
	err = s.await(ctx, limit, part{"store", s.cfg.Store}, func(ctx context.Context) (err error) {
		p.store, err = c.openStore(ctx)
		return err
	}, permanentStore)
	if err != nil || ctx.Err() != nil {
		return nil, err
	}
	return p, nil
}

// part is a broker or a store that has to answer before jobs are taken.
type part struct{ kind, name string }

// where is the part's address, without credentials; "" where it has none.
func (p part) where(cfg *config.Config) string {
	switch p.name {
	case config.Kafka:
		return strings.Join(cfg.Kafka.Brokers, ",")
	case config.Redis:
		return strings.Join(cfg.Redis.Addrs, ",")
	case config.NATS:
		var out []string
		for _, u := range cfg.NATS.URLs {
			if parsed, err := url.Parse(u); err == nil {
				u = parsed.Redacted()
			}
			out = append(out, u)
		}
		return strings.Join(out, ",")
	}
	return ""
}

// Address is where a configuration's broker is reached from outside, without credentials; "" for one that is inside a process.
func Address(cfg *config.Config) string {
	if cfg.Transport == config.Embedded {
		return cfg.Embedded.Listen
	}
	return part{"broker", cfg.Transport}.where(cfg)
}

// await calls try until it succeeds, fails for good, or the time is up. The first tries are short, so that the log soon says
// what is waited for.
func (s *Sidecar) await(ctx, limit context.Context, p part, try func(context.Context) error, permanent func(error) bool) error {
	pause, patience := 100*time.Millisecond, time.Second
	at := p.where(s.cfg)
	for {
		once, cancel := context.WithTimeout(limit, patience)
		patience = min(2*patience, 10*time.Second)
		err := try(once)
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
			s.probe.set(p.kind, p.name, nil)
			return nil //nolint:nilerr // being told to end is no failure
		case permanent(err):
			return configError{fmt.Errorf("%s %s: %w", p.kind, p.name, err)}
		case limit.Err() == nil:
			s.log.Warn("waiting for the "+p.kind, p.kind, p.name, "at", at, "err", err, "pause", pause) //nolint:sloglint // one of two messages
		}
		s.probe.set(p.kind, p.name, err)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-limit.Done():
			t.Stop()
			if ctx.Err() != nil {
				return nil //nolint:nilerr // being told to end is no failure
			}
			return fmt.Errorf("%s %s at %s is %w after %s: %w; check its address and credentials, or raise connect_timeout", p.kind, p.name, at, ErrUnreachable, s.cfg.ConnectTimeout, err)
		}
		pause = min(2*pause, 2*time.Second)
	}
}

func permanentStore(err error) bool {
	return errors.Is(err, transport.ErrUnsupported) || errors.Is(err, store.ErrUnsupported) || errors.Is(err, store.ErrInvalid)
}

// routes makes the router and what its chains need; the returned function closes the latter.
func (s *Sidecar) routes(p *parts) (*router.Router, func(), error) {
	var claims []*middleware.Claims
	closeAll := func() {
		for _, c := range claims {
			if err := c.Close(); err != nil {
				s.log.Debug("closing claims", "err", err)
			}
		}
	}
	worker, err := os.Hostname()
	if err != nil {
		worker = "wasmsidecar"
	}
	most := messageBytes()
	bytes := router.NewBytes(most)
	var routes []router.Route
	var breakers []*middleware.Breakers
	for _, r := range s.cfg.Routes {
		within := s.modules.within(r.Limits)
		cfg := middleware.Config{
			Route: r.Name, Runner: within.find, Admit: within.admit, To: r.To, DeadLetter: r.DeadLetter, Envelope: transport.Envelope(r.Envelope),
			Publisher: p.transport.Publisher(), Replier: p.transport.Replier(),
			Retry: middleware.RetryPolicy{
				MaxAttempts: r.Retry.MaxAttempts, MaxCrashes: r.Retry.MaxCrashes, Backoff: r.Retry.Backoff,
				MaxBackoff: r.Retry.MaxBackoff, NoJitter: r.Retry.Jitter == "none",
			},
			Timeout: r.Timeout, Worker: worker, Sink: s.sink, Log: s.log, Suspects: s.suspects, ClaimAlways: r.Dedup.Claim == "always",
		}
		cfg.Breakers = middleware.NewBreakers(r.Name, s.modules.names(), middleware.BreakerConfig{
			Consecutive: r.Breaker.Consecutive, Percent: r.Breaker.Percent, Min: r.Breaker.Min, Window: r.Breaker.Window, Open: r.Breaker.Open,
		}, s.log)
		breakers = append(breakers, cfg.Breakers)
		if !r.Dedup.Off {
			c, err := middleware.NewClaims(p.store, middleware.ClaimsConfig{
				Route: r.Name, Partition: r.From, Scope: scope(s.cfg), Lease: r.Lease, TTL: r.Dedup.TTL, Results: r.Dedup.Results,
				RunUnclaimed: s.cfg.OnStoreError == "run", Log: s.log,
			})
			if err != nil {
				closeAll()
				return nil, nil, err
			}
			claims = append(claims, c)
			cfg.Claims = c
		}
		h, err := middleware.Chain(cfg)
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("route %q: %w", r.Name, err)
		}
		dec := &transport.Decoder{
			Route: r.Name, Envelope: transport.Envelope(r.Envelope), Module: r.Module, MaxBody: int(r.MaxBody),
			MaxAttempts: r.Retry.MaxAttempts, Timeout: r.Timeout, Reply: r.Reply,
		}
		src := transport.SourceConfig{
			Route: r.Name, Subject: r.From, Limit: router.MaxOut(r.Concurrency), Lease: r.Lease, DrainBudget: min(5*time.Second, s.cfg.Drain.Timeout),
			Bytes: most / int64(len(s.cfg.Routes)), Sole: r.Order == "key",
		}
		open := func(ctx context.Context) (transport.Source, error) { return p.transport.Source(ctx, src) }
		if s.cfg.OrderedByLease(r) {
			open = inTurn(open, p.store, turnConfig{Route: r.Name, Key: store.Key(r.From, "order", scope(s.cfg), r.Name), Lease: r.Lease, Log: s.log})
		}
		routes = append(routes, router.Route{
			Open: open,
			Window: router.WindowConfig{
				Route: r.Name, Limit: r.Concurrency, MaxOut: src.Limit, Bytes: bytes, ByKey: r.Order == "key",
				DrainTimeout: s.cfg.Drain.Timeout, Decode: dec.Decode, Handle: h, Hold: cfg.Breakers.Hold(r.Module), Log: s.log,
			},
		})
	}
	rt, err := router.New(s.log, routes)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	s.breakers.Store(&breakers)
	return rt, closeAll, nil
}

// subjects is what the routes read and write, and the schedules write.
func subjects(cfg *config.Config) transport.Subjects {
	var out transport.Subjects
	seen := map[string]bool{}
	for _, r := range cfg.Routes {
		out.Sources = append(out.Sources, r.From)
		seen[r.From] = true
	}
	sink := func(s string) {
		if s != "" && !seen[s] {
			seen[s] = true
			out.Sinks = append(out.Sinks, s)
		}
	}
	for _, r := range cfg.Routes {
		sink(r.To)
		sink(r.DeadLetter)
	}
	for _, s := range cfg.Schedules {
		sink(s.To)
	}
	return out
}

func needsStore(cfg *config.Config) bool {
	for _, r := range cfg.Routes {
		if !r.Dedup.Off || cfg.OrderedByLease(r) {
			return true
		}
	}
	return len(cfg.Schedules) > 0
}

// embeddedGroup names the consumers of sidecars with an embedded server.
const embeddedGroup = "wasmsidecar"

// scope tells apart the sidecars that share a store but not their work: by transport and consumer group. One with an embedded server
// is as one over NATS: others may join it there.
func scope(cfg *config.Config) string {
	group := ""
	switch cfg.Transport {
	case config.Embedded:
		return config.NATS + ":" + embeddedGroup
	case config.Kafka:
		group = cfg.Kafka.Group
	case config.Redis:
		group = cfg.Redis.Group
	case config.NATS:
		group = cfg.NATS.Group
	}
	return cfg.Transport + ":" + group
}
