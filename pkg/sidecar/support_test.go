package sidecar_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
)

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func natsURL(t *testing.T) string {
	t.Helper()
	addr := services.NATS(t)
	if strings.Contains(addr, "://") {
		return addr
	}
	return "nats://" + addr
}

// forgetKafka removes the topics of a test when it ends, the delay topics of its group included: the broker of the tests keeps
// some memory for each.
func forgetKafka(t *testing.T, cfg *config.Config) {
	t.Helper()
	if cfg.Transport != config.Kafka {
		return
	}
	var ours []string
	for _, r := range cfg.Routes {
		ours = append(ours, r.From, r.To, r.DeadLetter)
	}
	addr := services.Kafka(t)
	t.Cleanup(func() {
		client, err := kgo.NewClient(kgo.SeedBrokers(addr))
		if err != nil {
			t.Error(err)
			return
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		adm := kadm.NewClient(client)
		topics, err := adm.ListTopics(ctx)
		if err != nil {
			t.Logf("list topics to remove: %v", err)
			return
		}
		var names []string
		for _, name := range topics.Names() {
			if slices.Contains(ours, name) || strings.HasPrefix(name, cfg.Kafka.Group+".") {
				names = append(names, name)
			}
		}
		if _, err := adm.DeleteTopics(ctx, names...); err != nil {
			t.Logf("remove topics: %v", err)
		}
	})
}
