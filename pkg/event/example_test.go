package event_test

import (
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

func ExampleSinks() {
	dead := 0
	all := event.Sinks{
		event.SinkFunc(func(e event.Event) { fmt.Println(e.Type, e.Job.ID, e.Kind) }),
		event.SinkFunc(func(e event.Event) {
			if e.Type == event.Dead {
				dead++
			}
		}),
	}
	j := &job.Job{ID: "42"}
	all.Emit(event.Event{Type: event.Attempted, Job: j, Kind: job.KindTrap})
	all.Emit(event.Event{Type: event.Dead, Job: j, Kind: job.KindTrap})
	fmt.Println("dead:", dead)
	// Output:
	// attempted 42 trap
	// dead 42 trap
	// dead: 1
}
