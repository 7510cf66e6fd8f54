package jetstream_test

import (
	"context"
	"fmt"
	"os"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/jetstream"
)

// A job goes through a server in this process, on which any NATS client could have put it too, had it been told to listen.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	server, err := jetstream.Embed(jetstream.EmbedConfig{Dir: dir})
	if err != nil {
		panic(err)
	}
	defer server.Shutdown(ctx)
	nc, err := jetstream.Connect(ctx, server.ConnectConfig())
	if err != nil {
		panic(err)
	}
	defer nc.Close()
	t, err := jetstream.Open(ctx, jetstream.Config{Conn: nc, Name: "embedded", Group: "workers", CreateStreams: true})
	if err != nil {
		panic(err)
	}
	defer t.Close(ctx)

	if err := t.Prepare(ctx, transport.Subjects{Sources: []string{"jobs.echo"}}); err != nil {
		panic(err)
	}
	if err := t.Publisher().Publish(ctx, &transport.Message{Subject: "jobs.echo", Body: []byte("hello")}); err != nil {
		panic(err)
	}
	s, err := t.Source(ctx, transport.SourceConfig{Route: "echo", Subject: "jobs.echo", Limit: 8})
	if err != nil {
		panic(err)
	}
	defer s.Close(ctx)
	ds, err := s.Fetch(ctx, 8)
	if err != nil {
		panic(err)
	}
	for _, d := range ds {
		fmt.Printf("%s: %s\n", d.Message().Subject, d.Message().Body)
		d.Ack()
	}
	// Output: jobs.echo: hello
}
