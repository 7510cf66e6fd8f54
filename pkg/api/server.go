// Package api is the sidecar's HTTP side: health, readiness and metrics. It reads the state of the parts and changes nothing.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check is one part of what readiness depends on.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Config is what a Server needs.
type Config struct {
	Listen   string // host:port
	Ready    func() []Check
	Gatherer prometheus.Gatherer
	Log      *slog.Logger
}

// Server answers /healthz (the process lives), /readyz (it takes jobs; 503 with the reasons when it does not) and /metrics.
type Server struct {
	cfg Config
	ln  net.Listener
	srv *http.Server
}

// New listens on cfg.Listen; nothing is answered before Run.
func New(cfg Config) (*Server, error) {
	if cfg.Ready == nil || cfg.Gatherer == nil || cfg.Log == nil {
		return nil, errors.New("admin server: readiness, metrics and log are required")
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("admin server: listen on %s: %w; choose another admin.listen, or \"off\"", cfg.Listen, err)
	}
	s := &Server{cfg: cfg, ln: ln}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintln(w, "ok") // the client is gone if this fails, and nobody else is interested
	})
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, Timeout: 10 * time.Second}))
	s.srv = &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Addr is the address that is listened on.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Run answers until ctx ends, then finishes what is being answered, for up to two seconds, and returns.
func (s *Server) Run(ctx context.Context) error {
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := s.srv.Shutdown(sctx); err != nil {
			s.cfg.Log.Debug("admin server: closing with requests under way", "err", err)
			_ = s.srv.Close()
		}
	})
	err := s.srv.Serve(s.ln)
	if !stop() {
		<-over // Serve returns when Shutdown begins
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin server: %w", err)
	}
	return nil
}

// Close stops listening, for a server that is never run.
func (s *Server) Close() error { return s.ln.Close() }

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	checks := s.cfg.Ready()
	status := http.StatusOK
	for _, c := range checks {
		if !c.OK {
			status = http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(map[string]any{"ready": status == http.StatusOK, "checks": checks}); err != nil {
		s.cfg.Log.Debug("admin server: answer cut off", "err", err)
	}
}
