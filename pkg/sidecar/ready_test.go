package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// pinged is a transport of which only Ping is asked.
type pinged struct {
	transport.Transport
	ping func(context.Context) error
}

func (p *pinged) Ping(ctx context.Context) error { return p.ping(ctx) }

// pingedStore is a store of which only Ping is asked.
type pingedStore struct {
	store.Store
	ping func(context.Context) error
}

func (p *pingedStore) Ping(ctx context.Context) error { return p.ping(ctx) }

func TestProber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var refused, hangs atomic.Bool
		p := &prober{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.run(ctx, &config.Config{Transport: config.Kafka, Store: config.Redis}, &parts{
				transport: &pinged{ping: func(context.Context) error {
					if refused.Load() {
						return errors.New("connection refused")
					}
					return nil
				}},
				store: &pingedStore{ping: func(ctx context.Context) error {
					if hangs.Load() {
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				}},
			})
		}()
		up := func(broker, store bool) {
			t.Helper()
			got := p.gauges()
			if len(got) != 2 || got[0].Kind != "broker" || got[0].Name != "kafka" || got[0].Up != broker ||
				got[1].Kind != "store" || got[1].Name != "redis" || got[1].Up != store {
				t.Errorf("gauges %+v, want broker %t and store %t", got, broker, store)
			}
		}
		synctest.Wait()
		up(true, true)
		refused.Store(true)
		time.Sleep(probeEvery)
		synctest.Wait()
		up(false, true)
		refused.Store(false)
		hangs.Store(true) // a part that does not answer is as good as away, and holds up nobody
		time.Sleep(probeEvery + probeTimeout)
		synctest.Wait()
		up(true, false)
		hangs.Store(false)
		time.Sleep(2 * probeEvery)
		synctest.Wait()
		up(true, true)

		hangs.Store(true)
		time.Sleep(probeEvery)
		cancel()
		<-done
		up(true, true) // that it was broken off says nothing about the store
	})
}

// counting is a transport of which only backlogs are asked.
type counting struct {
	transport.Transport
	depths map[string]int64
	count  func(ctx context.Context, route, subject string) (transport.Backlog, error)
}

// Depth of a topic counts how often it was asked for; c hangs as for backlogs.
func (c *counting) Depth(ctx context.Context, subject string) (int64, error) {
	if _, err := c.count(ctx, subject, ""); err != nil {
		return 0, err
	}
	c.depths[subject]++
	return c.depths[subject], nil
}

func (c *counting) RouteBacklog(ctx context.Context, route, subject string) (transport.Backlog, error) {
	return c.count(ctx, route, subject)
}

// Backlogs are asked for now and then, hold up nobody, and are unknown while the broker does not say.
func TestBacklogs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var hangs atomic.Bool
		p := &prober{backlogs: map[string]transport.Backlog{}, depths: map[string]int64{}}
		cfg := &config.Config{Routes: []*config.Route{{Name: "a", From: "in.a", DeadLetter: "dead"}, {Name: "b", From: "in.b", DeadLetter: "dead"}, {Name: "c", From: "in.c", DeadLetter: "more"}}}
		go p.count(t.Context(), cfg, &counting{depths: map[string]int64{}, count: func(ctx context.Context, route, subject string) (transport.Backlog, error) {
			if hangs.Load() && (route == "a" || route == "dead") {
				<-ctx.Done()
				return transport.Backlog{}, ctx.Err()
			}
			return transport.Backlog{Unsettled: int64(len(route + subject)), Delayed: -1}, nil
		}})
		synctest.Wait()
		if a, b := p.backlog("a"), p.backlog("b"); a == nil || b == nil || a.Unsettled != 5 || a.Delayed != -1 {
			t.Errorf("backlogs %v and %v", a, b)
		}
		if got := fmt.Sprint(p.depths); got != "map[dead:1 more:1]" {
			t.Errorf("dead letters %s, want those of each topic, asked for once", got)
		}
		hangs.Store(true)
		time.Sleep(countEvery + 2*probeTimeout + time.Second)
		if a, b := p.backlog("a"), p.backlog("b"); a != nil || b == nil {
			t.Errorf("backlogs %v and %v, want that of b alone", a, b)
		}
		if got := p.topics(); len(got) != 1 || got[0].Topic != "more" {
			t.Errorf("dead letters %v, want those of the topic that answers", got)
		}
		hangs.Store(false)
		time.Sleep(countEvery + probeTimeout)
		if p.backlog("a") == nil {
			t.Error("the backlog of a is not known again")
		}
	})
}

// A route without a source, as one that another replica has in order, is asked for often at the start only.
func TestBacklogThatIsNeverKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &prober{backlogs: map[string]transport.Backlog{}, depths: map[string]int64{}}
		var asked atomic.Int64
		go p.count(t.Context(), &config.Config{Routes: []*config.Route{{Name: "a", From: "in.a"}}}, &counting{
			count: func(context.Context, string, string) (transport.Backlog, error) {
				asked.Add(1)
				return transport.Backlog{}, errors.New("no source")
			},
		})
		time.Sleep(countEvery)
		asked.Store(0)
		if time.Sleep(10 * countEvery); asked.Load() > 11 {
			t.Errorf("asked %d times in %v", asked.Load(), 10*countEvery)
		}
	})
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	s := &Sidecar{cfg: &config.Config{Transport: config.NATS}}
	check := func(name string, ok bool, detail string) {
		t.Helper()
		for _, c := range s.ready() {
			if c.Name == name {
				if c.OK != ok || c.Detail != detail {
					t.Errorf("%s: %+v, want %t, %q", name, c, ok, detail)
				}
				return
			}
		}
		t.Errorf("%s is not in %+v", name, s.ready())
	}
	check("broker nats", false, "connecting")
	check("routes", false, "starting")

	s.probe.set("broker", "nats", nil)
	s.probe.set("store", "nats", errors.New("no quorum"))
	check("broker nats", true, "")
	check("store nats", false, "no quorum")
	s.probe.set("store", "nats", nil)
	check("store nats", true, "")

	dec := &transport.Decoder{Route: "jobs"}
	r, err := router.New(slog.New(slog.DiscardHandler), []router.Route{{
		Open: func(context.Context) (transport.Source, error) { return nil, errors.New("away") },
		Window: router.WindowConfig{
			Route: "jobs", Limit: 1, Decode: dec.Decode, Log: slog.New(slog.DiscardHandler),
			Handle: func(context.Context, *job.Exchange) error { return nil },
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.router.Store(r)
	check("route jobs", false, "paused (opening): its source is being opened")
	if g := s.routeGauges(); len(g) != 1 || !g[0].Paused["opening"] || g[0].Paused["store"] {
		t.Errorf("gauges %+v, want one paused route", g)
	}
}

// Runners stand in for modules of the configuration, which are not even looked for.
func TestRunnersReplaceModules(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Modules["shout"] = config.DefaultModule()
	cfg.Modules["shout"].Source = "no-such-file.wasm"
	mine := job.RunnerFunc(func(context.Context, *job.Job) (*job.Result, error) { return &job.Result{Body: []byte("mine")}, nil })
	opt := Options{Log: slog.New(slog.DiscardHandler), Runners: map[string]job.Runner{"shout": mine}}
	ms, err := loadModules(t.Context(), cfg, opt, func(string, time.Duration) {})
	if err != nil {
		t.Fatal(err)
	}
	defer ms.close()
	r, err := ms.find(&job.Job{Module: "shout"})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := r.Run(t.Context(), &job.Job{}); err != nil || string(res.Body) != "mine" {
		t.Errorf("result %+v, error %v", res, err)
	}
}
