package redisstream

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// cluster starts three masters that share the slots, and a client of them.
func cluster(t *testing.T) redis.UniversalClient {
	t.Helper()
	const nodes, slots = 3, 16384
	var addrs []string
	var admins []redis.UniversalClient
	for i := range nodes {
		srv := services.StartRedis(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-port", freePort(t))
		c := client(t, srv.Addr)
		if err := c.ClusterAddSlotsRange(t.Context(), i*slots/nodes, (i+1)*slots/nodes-1).Err(); err != nil {
			t.Fatal(err)
		}
		addrs, admins = append(addrs, srv.Addr), append(admins, c)
	}
	for i, c := range admins {
		if err := c.Do(t.Context(), "cluster", "set-config-epoch", i+1).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range addrs[1:] {
		host, port, _ := net.SplitHostPort(a)
		bus := admins[i+1].ConfigGet(t.Context(), "cluster-port").Val()["cluster-port"]
		if err := admins[0].Do(t.Context(), "cluster", "meet", host, port, bus).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range admins {
		eventually(t, "the cluster is whole", func() bool {
			info := c.ClusterInfo(t.Context()).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
	return newClient(t, ClientConfig{Addrs: addrs[:1], Cluster: true})
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// core is a job's whole way, with a delay, a hand-over and a group that goes away.
func core(t *testing.T, c redis.UniversalClient, stream string) {
	t.Helper()
	tr := open(t, c)
	results := stream + "-results"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := tr.Prepare(ctx, transport.Subjects{Sources: []string{stream}, Sinks: []string{results}}); err != nil {
		t.Fatal(err)
	}
	tail, err := tr.Tail(ctx, results, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tail.Close(); err != nil {
			t.Error(err)
		}
	}()
	const lease = 2 * time.Second
	src := openSource(t, tr, stream, lease)
	publish(t, tr, msg(stream, "a", "x", "1", "x", "2"), msg(results, "r"))
	if m, err := tail.Next(ctx); err != nil || string(m.Body) != "r" {
		t.Errorf("tail: %v, %v", m, err)
	}
	d := fetch(t, src, 1)[0]
	if len(d.Message().Header.Values("x")) != 2 {
		t.Errorf("header came as %v", d.Message().Header)
	}
	if err := d.Retry(ctx, 100*time.Millisecond, d.Message()); err != nil {
		t.Fatal(err)
	}
	d = fetch(t, src, 1)[0]
	if err := src.Extend(ctx, []transport.Delivery{d}); err != nil || d.Lost() {
		t.Errorf("extend: %v, lost %v", err, d.Lost())
	}
	d.Release()
	heir := openSource(t, open(t, c), stream, lease)
	_ = fetch(t, heir, 1) // and goes silent
	d = fetch(t, src, 1)[0]
	if !d.Redelivered() {
		t.Error("taken over, it does not say so")
	}
	d.Ack()
	empty(t, c, stream)
	if err := c.XGroupDestroy(ctx, stream, "workers").Err(); err != nil {
		t.Fatal(err)
	}
	publish(t, tr, msg(stream, "after"))
	for _, d := range fetch(t, src, 1) {
		d.Ack()
	}
	empty(t, c, stream)
}

func TestCluster(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	for i := range 4 { // on whichever node they fall
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			core(t, c, fmt.Sprintf("jobs-%d", i))
		})
	}
	t.Run("tagged", func(t *testing.T) {
		t.Parallel()
		core(t, c, "{tag}:jobs")
	})
	t.Run("name without a slot of its own", func(t *testing.T) {
		_, err := open(t, c).Source(t.Context(), transport.SourceConfig{Subject: "a}b", Limit: 1})
		if !transport.Permanent(err) {
			t.Errorf("got %v", err)
		}
	})
}

// A slot that moves to another node takes its stream along, while it is consumed.
func TestSlotMoves(t *testing.T) {
	t.Parallel()
	c := cluster(t).(*redis.ClusterClient)
	tr := open(t, c)
	const stream = "jobs"
	w := work(t, openSource(t, tr, stream, 2*time.Second), 8, 0)
	numbered(t, tr, stream, 100)
	eventually(t, "the jobs before it ran", func() bool { return w.distinct() == 100 })
	from, err := c.MasterForKey(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	var to *redis.Client
	var all []*redis.Client
	for _, s := range c.ClusterSlots(t.Context()).Val() { //nolint:staticcheck // Redis 6.2 knows nothing newer
		n := client(t, s.Nodes[0].Addr).(*redis.Client)
		all = append(all, n)
		if s.Nodes[0].Addr != from.Options().Addr {
			to = n
		}
	}
	slot := c.ClusterKeySlot(t.Context(), stream).Val()
	fromID, _ := from.Do(t.Context(), "cluster", "myid").Text()
	toID, _ := to.Do(t.Context(), "cluster", "myid").Text()
	host, port, _ := net.SplitHostPort(to.Options().Addr)
	for _, step := range []struct {
		at   *redis.Client
		args []any
	}{
		{to, []any{"cluster", "setslot", slot, "importing", fromID}},
		{from, []any{"cluster", "setslot", slot, "migrating", toID}},
		{from, []any{"migrate", host, port, "", 0, 5000, "keys", stream, keysOf(stream).count}},
	} {
		if err := step.at.Do(t.Context(), step.args...).Err(); err != nil {
			t.Fatalf("%v: %v", step.args, err)
		}
	}
	for _, n := range append(all, to) {
		if err := n.Do(t.Context(), "cluster", "setslot", slot, "node", toID).Err(); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, tr, msg(stream, "after"))
	eventually(t, "the job after it ran", func() bool { return w.count("after") == 1 })
	if n := to.XLen(t.Context(), stream).Val(); n > 1 {
		t.Errorf("%d entries on the new node", n)
	}
}

// Behind Sentinel, a replica that is promoted carries on where the master stopped.
func TestSentinel(t *testing.T) {
	t.Parallel()
	master := services.StartRedis(t)
	host, port, _ := net.SplitHostPort(master.Addr)
	replica := services.StartRedis(t, "--replicaof", host+" "+port)
	sentinel := startSentinel(t, master.Addr)
	direct := client(t, replica.Addr)
	eventually(t, "the replica follows", func() bool {
		return strings.Contains(direct.Info(t.Context(), "replication").Val(), "master_link_status:up")
	})
	guard := redis.NewSentinelClient(&redis.Options{Addr: sentinel})
	defer func() { _ = guard.Close() }()
	eventually(t, "the sentinel knows the replica", func() bool {
		r, err := guard.Replicas(t.Context(), "jobs").Result()
		return err == nil && len(r) == 1 && !strings.Contains(r[0]["flags"], "down")
	})
	c := newClient(t, ClientConfig{Addrs: []string{sentinel}, MasterName: "jobs", DialTimeout: 2 * time.Second, ReadTimeout: 2 * time.Second})
	core(t, c, "jobs")
	tr := open(t, c)
	w := work(t, openSource(t, tr, "jobs", 2*time.Second), 8, 0)
	numbered(t, tr, "jobs", 100)
	eventually(t, "the jobs before it ran", func() bool { return w.distinct() == 100 })
	master.Kill()
	eventually(t, "the replica is promoted", func() bool {
		return strings.Contains(direct.Info(t.Context(), "replication").Val(), "role:master")
	})
	eventually(t, "a job is taken after it", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return tr.Publisher().Publish(ctx, msg("jobs", "after")) == nil
	})
	eventually(t, "the job after it ran", func() bool { return w.count("after") > 0 })
	empty(t, direct, "jobs")
}

// startSentinel starts one that decides alone, and quickly.
func startSentinel(t *testing.T, master string) string {
	t.Helper()
	host, port, _ := net.SplitHostPort(master)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor jobs %s %s 1\nsentinel down-after-milliseconds jobs 1000\nsentinel failover-timeout jobs 5000\n", host, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	own := freePort(t)
	cmd := exec.CommandContext(t.Context(), "redis-server", conf, "--sentinel", "--bind", "127.0.0.1", "--port", own)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	return net.JoinHostPort("127.0.0.1", own)
}
