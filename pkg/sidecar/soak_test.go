//go:build soak

package sidecar_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
)

// kafkaHead is a configuration over brokers.
func kafkaHead(t *testing.T, replication int, brokers ...string) string {
	t.Helper()
	return fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%s], group: %q, partitions: 3, replication: %d}\n",
		services.Redis(t), strings.Join(brokers, ", "), services.UniqueName(t), replication)
}

// A Kafka broker that ends, in good order or not, takes no job with it.
func TestSoakKafka(t *testing.T) {
	s := services.StartKafka(t)
	p := admit(t, kafkaHead(t, 1, s.Addr), "", "")
	for _, end := range []func(){s.Stop, s.Kill} {
		p.send(50)
		end()
		p.ails("broker kafka")
		s.Start()
		p.send(50)
		p.healthy()
	}
}

// Of three Kafka nodes the one dies that leads the jobs' partitions, then another once it is back: jobs go on meanwhile.
func TestSoakLeaderChange(t *testing.T) {
	nodes := services.StartKafkaCluster(t, 3)
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.Addr)
	}
	p := admit(t, kafkaHead(t, 3, addrs...), "", "")
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for range 3 {
		topics, err := kadm.NewClient(cl).ListTopics(t.Context(), p.cfg.Routes[0].From)
		if err != nil {
			t.Fatal(err)
		}
		leader := nodes[topics[p.cfg.Routes[0].From].Partitions[0].Leader-1]
		p.send(50)
		leader.Kill()
		p.send(100)
		p.healthy()
		leader.Start()
		p.send(50)
		p.healthy()
	}
}

// A minute without network, and a minute of silence, between the sidecar and each broker.
func TestSoakCut(t *testing.T) {
	for name, start := range map[string]func(*testing.T) (*services.Proxy, string, string){
		"redis": func(t *testing.T) (*services.Proxy, string, string) {
			proxy := services.NewProxy(t, services.Redis(t))
			head := "transport: redis\nredis: {addr: %q}\n"
			return proxy, fmt.Sprintf(head, proxy.Addr()), fmt.Sprintf(head, services.Redis(t))
		},
		"nats": func(t *testing.T) (*services.Proxy, string, string) {
			addr := strings.TrimPrefix(services.NATS(t), "nats://")
			proxy := services.NewProxy(t, addr)
			head := "transport: nats\nnats: {url: \"nats://%s\", group: soak" + fmt.Sprint(freePort(t)) + "}\n"
			return proxy, fmt.Sprintf(head, proxy.Addr()), fmt.Sprintf(head, addr)
		},
		"kafka": func(t *testing.T) (*services.Proxy, string, string) {
			var proxy *services.Proxy
			s := services.StartKafka(t, func(addr string) string {
				proxy = services.NewProxy(t, addr)
				return proxy.Addr()
			})
			return proxy, kafkaHead(t, 1, proxy.Addr()), kafkaHead(t, 1, s.Addr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, head, client := start(t)
			p := admit(t, head, ", lease: 5s", client)
			for _, harm := range []func(){proxy.Cut, proxy.Silence} {
				p.send(50)
				harm()
				p.send(50)
				time.Sleep(time.Minute)
				p.ails(`"broker `)
				proxy.Restore()
				p.healthy()
			}
		})
	}
}
