package middleware

import (
	"context"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Observe tells the sink what became of each trip through the chain, after its outputs are out.
func Observe(sink event.Sink) Stage {
	return func(next job.Handler) job.Handler {
		return func(ctx context.Context, x *job.Exchange) error {
			begun := time.Now()
			err := next(ctx, x)
			e := event.Event{Time: time.Now(), Job: x.Job, Attempt: x.Job.Attempt, Err: x.Err}
			switch o := x.Outcome; {
			case err != nil:
				e.Type, e.Kind, e.Err = event.Left, job.KindUnavailable, err
			case o == nil && x.Repeat: // done so long ago that its output is no longer kept
				e.Type = event.Repeated
			case o == nil && x.Settlement.Verb == job.Leave:
				e.Type, e.Delay = event.Left, x.Settlement.After
			case o == nil:
				return nil // the retry has been told already
			default:
				e.Type, e.Kind, e.Attempt, e.Duration = event.Finished, o.Kind, o.Attempts, o.Duration
				e.Wait = waited(x.Job, x.Received, begun)
				if x.Repeat {
					e.Type = event.Repeated
				}
				if x.Settlement.Verb == job.Dead {
					dead := e
					dead.Type = event.Dead
					sink.Emit(dead)
				}
			}
			sink.Emit(e)
			return err
		}
	}
}

// waited is how long a job waited: since the broker took its message, where the broker says so and its clock agrees with ours.
func waited(j *job.Job, received, begun time.Time) time.Duration {
	from := received
	if !j.Published.IsZero() && j.Published.Before(received) {
		from = j.Published
	}
	return max(begun.Sub(from), 0)
}
