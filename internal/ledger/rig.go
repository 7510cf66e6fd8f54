//go:build unix

package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// The brokers.
const (
	embedded = "embedded"
	nats     = "nats"
	redis    = "redis"
	kafka    = "kafka"
)

// Brokers are all that a ledger is kept for.
func Brokers() []string { return []string{embedded, nats, redis, kafka} }

// rig is the servers of one ledger, and what stands between them and each replica.
type rig struct {
	name    string
	servers []*services.Server
	heads   []string            // of each replica's configuration: transport and store
	proxies [][]*services.Proxy // of each replica
	client  transport.Transport // past the proxies
	routes  string
	limits  string // of the module that asks for its dice; empty: as they are
}

// newRig starts servers that may be killed, as far as the configuration wants that: Kafka takes long to start, and one that need not
// be killed is the one that all tests share.
func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	g := &rig{name: services.UniqueName(t), heads: make([]string, cfg.Replicas), proxies: make([][]*services.Proxy, cfg.Replicas)}
	g.routes = fmt.Sprintf(`routes:
  - {name: dice, from: "%[1]s-dice", to: "%[1]s-results", dead_letter: "%[1]s-dead", module: dice, lease: %[2]s, retry: {max_crashes: 1000, max_attempts: 1000}}
  - {name: roll, from: "%[1]s-roll", to: "%[1]s-results", dead_letter: "%[1]s-dead", module: roll, lease: %[2]s, retry: {max_crashes: 1000, max_attempts: 1000}}
`, g.name, cfg.Lease)
	through := func(i int, addr string) string {
		p := services.NewProxy(t, addr)
		g.proxies[i] = append(g.proxies[i], p)
		return p.Addr()
	}
	each := func(head func(i int) string) {
		for i := range g.heads {
			g.heads[i] = head(i)
		}
	}
	var direct string
	switch cfg.Broker {
	case embedded:
		direct = fmt.Sprintf("transport: embedded\nembedded: {dir: %q, listen: %q}\n", t.TempDir(), freeAddr(t))
		each(func(int) string { return direct })
	case nats:
		s := services.StartNATS(t, "jetstream: { store_dir: "+fmt.Sprintf("%q", t.TempDir())+", sync_interval: always }")
		g.servers = append(g.servers, s)
		head := func(addr string) string {
			return fmt.Sprintf("transport: nats\nnats: {url: %q, group: %q}\n", "nats://"+addr, g.name)
		}
		direct = head(s.Addr)
		each(func(i int) string { return head(through(i, s.Addr)) })
	case redis:
		s := services.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
		g.servers = append(g.servers, s)
		head := func(addr string) string { return fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", addr) }
		direct = head(s.Addr)
		each(func(i int) string { return head(through(i, s.Addr)) })
	case kafka:
		store := services.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
		head := func(broker, store string) string {
			return fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%q], group: %q, partitions: 4}\n", store, broker, g.name)
		}
		brokers := make([]string, cfg.Replicas)
		if cfg.Restarts+cfg.Cuts == 0 {
			direct = services.Kafka(t)
			for i := range brokers {
				brokers[i] = direct
			}
		} else {
			var advertise []func(string) string
			for i := range brokers {
				advertise = append(advertise, func(addr string) string {
					brokers[i] = through(i, addr)
					return brokers[i]
				})
			}
			s := services.StartKafka(t, advertise...)
			direct = s.Addr
			g.servers = append(g.servers, s)
		}
		g.servers = append(g.servers, store)
		direct = head(direct, store.Addr)
		each(func(i int) string { return head(brokers[i], through(i, store.Addr)) })
	default:
		t.Fatalf("ledger: no broker %q", cfg.Broker)
	}
	g.client = g.dial(t, direct)
	return g
}

// dial connects the one who submits and observes.
func (g *rig) dial(t testing.TB, head string) transport.Transport {
	t.Helper()
	text := head + "modules: {dice: {source: dice.wasm}, roll: {source: roll.wasm}}\n" + g.routes
	cfg, err := config.Parse("ledger.yaml", []byte(text), nil)
	if err != nil {
		t.Fatalf("ledger: %v", err)
	}
	client, closeClient, err := sidecar.Dial(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("ledger: %v", err)
	}
	t.Cleanup(closeClient)
	if cfg.Transport == kafka && len(g.servers) == 1 { // the broker is not ours
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := client.(transport.Measured).Remove(ctx, g.name+"-dice", g.name+"-roll", g.name+"-results", g.name+"-dead"); err != nil {
				t.Logf("ledger: remove topics: %v", err) // groups go by themselves once their killed members are missed
			}
		})
	}
	return client
}

// write writes the configuration of a replica's life.
func (g *rig) write(t testing.TB, i int, file, admin, counter, url string) {
	t.Helper()
	guests := filepath.Join(root(t), "examples", "guests")
	text := g.heads[i] + fmt.Sprintf(`admin: {listen: %q}
log: {level: warn}
drain: {timeout: 5s}
modules:
  dice: {source: %q}
  roll: {source: %q, config: {url: %q}, allow: {http: [%q]}, limits: {%s}}
`, admin, filepath.Join(guests, "dice.wasm"), filepath.Join(guests, "roll.wasm"), url, counter, g.limits) + g.routes
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatalf("ledger: %v", err)
	}
}

// root is the module's directory.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; !strings.HasSuffix(dir, string(filepath.Separator)); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("ledger: no go.mod above the working directory")
	return ""
}

func freeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
