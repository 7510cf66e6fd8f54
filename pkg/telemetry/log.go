// Package telemetry makes events visible: as log lines and as Prometheus metrics. It listens and never decides.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// NewLogger returns a logger that writes lines of the given format ("text" or "json") and level ("debug", "info", "warn",
// "error") to w.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log format %q: want text or json", format)
}

// Log is a sink that writes one line for each job that ends (Info), for each retry (Warn) and for each dead letter (Error);
// everything else at Debug. Emit writes to the logger, so give it one that does not block.
type Log struct{ log *slog.Logger }

// NewLog returns a sink that writes to log.
func NewLog(log *slog.Logger) *Log { return &Log{log} }

// line is the level and the text of an event's line.
func line(t event.Type) (slog.Level, string) {
	switch t {
	case event.Finished:
		return slog.LevelInfo, "job finished"
	case event.Repeated:
		return slog.LevelInfo, "job seen again"
	case event.Retried:
		return slog.LevelWarn, "job will be retried"
	case event.Dead:
		return slog.LevelError, "job dead-lettered"
	case event.Crashed:
		return slog.LevelWarn, "earlier owner ended without a word"
	case event.Fenced:
		return slog.LevelWarn, "claim lost to another owner"
	case event.Left:
		return slog.LevelDebug, "job left for later"
	case event.Attempted:
		return slog.LevelDebug, "attempt ended"
	}
	return slog.LevelDebug, string(t)
}

// Emit writes the event's line. What a producer or a guest chose is cleaned first.
func (l *Log) Emit(e event.Event) {
	level, text := line(e.Type)
	ctx := context.Background()
	if !l.log.Enabled(ctx, level) {
		return
	}
	j := e.Job
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("job_id", job.CleanText(j.ID)), slog.String("route", j.Route))
	if j.Module != "" {
		attrs = append(attrs, slog.String("module", job.CleanText(j.Module)))
	}
	if j.CorrelationID != "" && j.CorrelationID != j.ID {
		attrs = append(attrs, slog.String("correlation_id", job.CleanText(j.CorrelationID)))
	}
	if e.Kind != "" {
		attrs = append(attrs, slog.String("kind", string(e.Kind)))
	}
	if e.Attempt > 0 {
		attrs = append(attrs, slog.Int("attempt", e.Attempt))
	}
	if e.Type == event.Finished || e.Type == event.Attempted {
		attrs = append(attrs, slog.Duration("duration", e.Duration))
	}
	if e.Delay > 0 {
		attrs = append(attrs, slog.Duration("delay", e.Delay))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("err", job.CleanText(e.Err.Error())))
	}
	l.log.LogAttrs(ctx, level, text, attrs...) //nolint:sloglint // one for each kind of event
}
