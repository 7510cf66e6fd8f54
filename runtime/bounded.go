package runtime

import "github.com/wasmsidecar/wasmsidecar/internal/deadline"

// bounded is the context of a guest: the job's, until a time. It carries the run's meter. End must be called.
type bounded struct {
	deadline.Context
	meter meter
}

// Value implements context.Context.
func (b *bounded) Value(key any) any {
	if _, ok := key.(meterKey); ok {
		return &b.meter
	}
	return b.Context.Value(key)
}
