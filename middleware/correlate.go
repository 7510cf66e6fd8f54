package middleware

import (
	"context"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Correlate gives every job a correlation id: the one it came with, else its own id, so that a repeat has the same. The guest
// sees it as a header; results and dead letters carry it on, as they carry traceparent.
func Correlate() Stage {
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) error {
			if j := x.Job; j.CorrelationID == "" {
				j.CorrelationID = job.CleanText(j.ID)
				j.Header = append(j.Header.Clone(1), job.Field{Name: transport.HeaderCorrelation, Value: j.CorrelationID})
			}
			return next(ctx, x)
		}
	}
}
