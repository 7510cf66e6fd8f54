package redisstream_test

import (
	"context"
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/redisstream"
)

// One job is taken from a stream, answered and acknowledged.
func Example() {
	ctx := context.Background()
	client, err := redisstream.NewClient(redisstream.ClientConfig{Addrs: []string{"localhost:6379"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = client.Close() }()
	tr, err := redisstream.Open(ctx, redisstream.Config{Client: client, Group: "workers", CreateStreams: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = tr.Close(ctx) }()
	src, err := tr.Source(ctx, transport.SourceConfig{Route: "jobs", Subject: "jobs", Limit: 64})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = src.Close(ctx) }()
	ds, err := src.Fetch(ctx, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, d := range ds {
		if err := tr.Publisher().Publish(ctx, &transport.Message{Subject: "results", Body: d.Message().Body}); err != nil {
			d.Release()
			continue
		}
		d.Ack()
	}
}
