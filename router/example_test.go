package router_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/inmem"
	"github.com/wasmsidecar/wasmsidecar/router"
)

func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	broker, err := inmem.Open(inmem.Config{})
	if err != nil {
		panic(err)
	}
	log := slog.New(slog.DiscardHandler)
	decoder := &transport.Decoder{Route: "greet", Module: "greeter"}
	r, err := router.New(log, []router.Route{{
		Open: func(ctx context.Context) (transport.Source, error) {
			return broker.Source(ctx, transport.SourceConfig{Route: "greet", Subject: "greet", Limit: router.MaxOut(8)})
		},
		Window: router.WindowConfig{
			Route: "greet", Limit: 8, Decode: decoder.Decode, Log: log,
			Handle: func(_ context.Context, x *job.Exchange) error {
				fmt.Printf("hello, %s\n", x.Job.Body)
				stop() // which drains: this job is settled before Run returns
				return nil
			},
		},
	}})
	if err != nil {
		panic(err)
	}
	if err := broker.Publisher().Publish(ctx, &transport.Message{Subject: "greet", Body: []byte("world")}); err != nil {
		panic(err)
	}
	fmt.Println("ended:", r.Run(ctx))
	// Output:
	// hello, world
	// ended: <nil>
}
