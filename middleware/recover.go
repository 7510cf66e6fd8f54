package middleware

import (
	"context"
	"log/slog"
	"runtime/debug"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Recover turns a panic into a failed attempt of KindInternal, so that it is retried, counted and dead-lettered like any other
// failure, and never takes the process or the message with it.
func Recover(log *slog.Logger) Stage {
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) (err error) {
			defer func() {
				if p := recover(); p != nil {
					log.Error("panic while running a job", "route", x.Job.Route, "job_id", x.Job.ID, "module", x.Job.Module,
						"panic", p, "stack", string(debug.Stack()))
					x.Result = nil
					err = job.Errorf(job.KindInternal, "panic: %v", p)
				}
			}()
			return next(ctx, x)
		}
	}
}
