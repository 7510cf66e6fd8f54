package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Route is one way through the house: where its messages come from and what carries them.
type Route struct {
	// Open begins to consume. It is called until it succeeds; a permanent error ends the router.
	Open func(ctx context.Context) (transport.Source, error)
	// Window is the route's window; its Route field names the route.
	Window WindowConfig
}

// Router runs the windows of all routes. Make it with New.
type Router struct {
	log    *slog.Logger
	routes []Route
	wins   []atomic.Pointer[Window]

	opening []atomic.Pointer[error] // why a source is not open yet
}

// closeTimeout bounds how long a source may take to write what is settled and leave its group.
const closeTimeout = 15 * time.Second

// New makes a router. It starts nothing.
func New(log *slog.Logger, routes []Route) (*Router, error) {
	if log == nil || len(routes) == 0 {
		return nil, errors.New("router: a log and at least one route are required")
	}
	seen := map[string]bool{}
	for _, r := range routes {
		if r.Window.Route == "" || seen[r.Window.Route] {
			return nil, fmt.Errorf("router: route name %q is empty or not unique", r.Window.Route)
		}
		seen[r.Window.Route] = true
	}
	return &Router{log: log, routes: routes, wins: make([]atomic.Pointer[Window], len(routes)), opening: make([]atomic.Pointer[error], len(routes))}, nil
}

// Run runs every route until ctx ends and all have drained, or until one of them fails for good, which drains the others and
// is returned. Publishers and stores that the chain uses must outlive Run.
func (r *Router) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	errs := make([]error, len(r.routes))
	for i := range r.routes {
		wg.Go(func() {
			if errs[i] = r.run(ctx, i); errs[i] != nil {
				stop(errs[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *Router) run(ctx context.Context, i int) error {
	route := r.routes[i]
	src, err := r.open(ctx, i)
	if src == nil {
		return err
	}
	w, err := NewWindow(src, route.Window)
	if err == nil {
		r.wins[i].Store(w)
		err = w.Run(ctx)
		r.wins[i].Store(nil)
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if cerr := src.Close(cctx); cerr != nil {
		r.log.Warn("closing a source: some messages may be delivered again", "route", route.Window.Route, "err", cerr)
	}
	return err
}

// open tries to begin consuming until it succeeds, ctx ends (nil, nil) or it fails for good.
func (r *Router) open(ctx context.Context, i int) (transport.Source, error) {
	route, pause := r.routes[i], minPause
	for {
		src, err := route.Open(ctx)
		switch {
		case err == nil:
			return src, nil
		case ctx.Err() != nil:
			return nil, nil //nolint:nilerr // being told to end is no failure
		case transport.Permanent(err):
			return nil, fmt.Errorf("route %q: %w", route.Window.Route, err)
		}
		r.opening[i].Store(&err)
		r.log.Warn("source cannot be opened, trying again", "route", route.Window.Route, "err", err, "pause", pause)
		if !sleep(ctx, pause) {
			return nil, nil
		}
		pause = min(2*pause, maxPause)
	}
}
