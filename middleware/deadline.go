package middleware

import (
	"context"
	"errors"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/deadline"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Admit waits until a job may begin, for example until there is memory for it. The context is for its run, after which release
// is called. An error is how the attempt ends, of a Kind that does not count.
type Admit func(ctx context.Context, j *job.Job) (running context.Context, release func(), err error)

// Deadline bounds one attempt: by the job's own timeout, else by limit; where neither says anything the module's limits are
// all that holds. An attempt that ends because its time is up is of KindTimeout, whatever the runner says. One that ends
// because the sidecar gave up on it (drain, lost claim) is of KindUnavailable and does not count.
//
// The time begins when admit, which may be nil, has returned: see Config.Admit.
func Deadline(limit time.Duration, admit Admit) Stage {
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) error {
			d := limit
			if x.Job.Timeout > 0 && (d == 0 || x.Job.Timeout < d) {
				d = x.Job.Timeout
			}
			outer := ctx
			if admit != nil && x.Job.Invalid == nil {
				admitted, release, err := admit(ctx, x.Job)
				if err != nil {
					return err
				}
				defer release()
				ctx = admitted
			}
			if d > 0 {
				var limited deadline.Context
				limited.Begin(ctx, time.Now().Add(d))
				defer limited.End()
				ctx = &limited
			}
			err := next(ctx, x)
			switch {
			case err == nil:
				return nil
			case outer.Err() != nil:
				return job.Errorf(job.KindUnavailable, "given up: %w", context.Cause(outer))
			case d > 0 && errors.Is(ctx.Err(), context.DeadlineExceeded):
				return job.Errorf(job.KindTimeout, "no result after %s: %w", d, err)
			}
			return err
		}
	}
}
