package services

import "go.uber.org/goleak"

// ServerLeaks are goroutines that a nats-server 2.15.2 in the process may leave behind when a stream is deleted while it is being
// made, or the server shut down meanwhile. They are the server's own; tests that look for leaks of ours pass over them.
func ServerLeaks() []goleak.Option {
	const server = "github.com/nats-io/nats-server/v2/server"
	return []goleak.Option{
		goleak.IgnoreAnyFunction(server + ".(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction(server + ".(*msgBlock).flushLoop"),
		goleak.IgnoreAnyFunction(server + "/ats.Register.func1"),
	}
}
