package kafka_test

import (
	"context"
	"fmt"
	"log"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/kafka"
)

// A worker that takes messages of one topic, and settles each.
func Example() {
	ctx := context.Background()
	tr, err := kafka.Open(ctx, kafka.Config{Brokers: []string{"localhost:9092"}, Group: "workers", CreateTopics: true, Delays: true})
	if err != nil {
		log.Fatal(err)
	}
	defer tr.Close(ctx)
	if err := tr.Prepare(ctx, transport.Subjects{Sources: []string{"jobs"}}); err != nil {
		log.Fatal(err)
	}
	src, err := tr.Source(ctx, transport.SourceConfig{Route: "jobs", Subject: "jobs", Limit: 64})
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close(ctx)
	for {
		deliveries, err := src.Fetch(ctx, 64)
		if err != nil {
			log.Fatal(err)
		}
		for _, d := range deliveries {
			fmt.Printf("%s: %s\n", d.Position(), d.Message().Body)
			d.Ack()
		}
	}
}
