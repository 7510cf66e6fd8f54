package redisstream

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// FLUSHALL takes stream, group and all: what comes after it is consumed as if nothing had been.
func TestFlushAll(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t)
	c := client(t, srv.Addr)
	tr := open(t, c)
	w := work(t, openSource(t, tr, "jobs", 2*time.Second), 16, 10*time.Millisecond)
	for round := range 3 {
		numbered(t, tr, "jobs", 200)
		if err := c.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		// Redis counts entries within a millisecond from zero: in the same one an id would come twice.
		flushed := c.Time(t.Context()).Val().UnixMilli()
		eventually(t, "the clock went on", func() bool { return c.Time(t.Context()).Val().UnixMilli() > flushed })
		after := fmt.Sprintf("after %d", round)
		publish(t, tr, msg("jobs", after))
		eventually(t, "the job after it ran", func() bool { return w.count(after) == 1 })
	}
	empty(t, c, "jobs")
}

// A restart of the server loses nothing that it has on disk, and is got over without help.
func TestRestart(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	c := client(t, srv.Addr)
	tr := open(t, c)
	const n = 500
	numbered(t, tr, "jobs", n)
	w := work(t, openSource(t, tr, "jobs", 2*time.Second), 16, 5*time.Millisecond)
	for round := range 2 {
		eventually(t, "some jobs ran", func() bool { return w.distinct() > 50*(round+1) })
		srv.Kill()
		srv.Start()
	}
	eventually(t, "all jobs ran", func() bool { return w.distinct() == n })
	empty(t, c, "jobs")
}

// A cut network loses nothing: not the entries of a reply that was cut off, not the settlements that could not be written.
func TestCut(t *testing.T) {
	t.Parallel()
	stream := services.UniqueName(t)
	direct := client(t, services.Redis(t))
	p := services.NewProxy(t, services.Redis(t))
	c := newClient(t, ClientConfig{Addrs: []string{p.Addr()}, ReadTimeout: 2 * time.Second})
	tr := open(t, c)
	const n = 3000
	numbered(t, open(t, direct), stream, n)
	const lease = 3 * time.Second
	w := work(t, openSource(t, tr, stream, lease), 32, 2*time.Millisecond)
	for round := range 5 {
		eventually(t, "some jobs ran", func() bool { return w.distinct() > 300*(round+1) })
		if round%2 == 0 {
			p.Cut()
		} else {
			p.Silence()
		}
		pause(t.Context(), 300*time.Millisecond)
		p.Restore()
	}
	eventually(t, "all jobs ran", func() bool { return w.distinct() == n })
	empty(t, direct, stream)
}

// Entries whose reply was cut off are found again at once, not after the lease.
func TestReplyCutOff(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t)
	const stream = "jobs"
	direct := client(t, srv.Addr)
	p := services.NewProxy(t, srv.Addr)
	tr := open(t, client(t, p.Addr()), func(cfg *Config) { cfg.Block = 2 * time.Second })
	src := openSource(t, tr, stream, time.Hour)
	src.nextScan = time.Now().Add(time.Hour) // so that the read waits for long
	eventually(t, "a read waits at the server", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, _ = src.Fetch(ctx, 10) // gives up and leaves its read behind
		return strings.Contains(direct.Info(t.Context(), "clients").Val(), "blocked_clients:1")
	})
	p.Silence()
	xadd(t, direct, stream, "body", "a")
	eventually(t, "the entry was given out", func() bool { return direct.XPending(t.Context(), stream, "workers").Val().Count == 1 })
	p.Cut()
	pause(t.Context(), 50*time.Millisecond)
	p.Restore()
	d := fetch(t, src, 1)[0]
	if !d.Redelivered() {
		t.Error("it may have been delivered before and does not say so")
	}
	d.Ack()
	empty(t, direct, stream)
}

// Close is bounded by its context while the server is away.
func TestCloseWhileAway(t *testing.T) {
	t.Parallel()
	p := services.NewProxy(t, services.Redis(t))
	tr := open(t, newClient(t, ClientConfig{Addrs: []string{p.Addr()}, ReadTimeout: time.Second, DialTimeout: time.Second}))
	stream := services.UniqueName(t)
	src, err := tr.Source(t.Context(), transport.SourceConfig{Subject: stream, Limit: 8})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, tr, msg(stream, "a"), msg(stream, "b"))
	ds := fetch(t, src, 2)
	p.Cut()
	ds[0].Ack()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	began := time.Now()
	err = src.Close(ctx)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("close lasted %v", took)
	}
	if err == nil || !strings.Contains(err.Error(), "2 settlements were not written") {
		t.Errorf("got %v", err)
	}
	p.Restore()
}

// TestDyingConsumer is the process that TestKill kills: it takes jobs and settles none.
func TestDyingConsumer(t *testing.T) {
	addr, stream, ok := strings.Cut(os.Getenv("REDISSTREAM_TEST_DIE"), "/")
	if !ok {
		return // only TestKill gives it work
	}
	src := openSource(t, open(t, client(t, addr)), stream, 2*time.Second)
	ds := fetch(t, src, 10)
	fmt.Printf("took %d\n", len(ds))
	select {} // until it is killed
}

// A consumer that is killed leaves its jobs to the others.
func TestKill(t *testing.T) {
	t.Parallel()
	c, stream := shared(t)
	tr := open(t, c)
	numbered(t, tr, stream, 10)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDyingConsumer$")
	cmd.Env = append(os.Environ(), "REDISSTREAM_TEST_DIE="+services.Redis(t)+"/"+stream)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other process has all jobs", func() bool {
		p, err := c.XPending(t.Context(), stream, "workers").Result()
		return err == nil && p.Count == 10
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	killed := time.Now()
	for _, d := range fetch(t, openSource(t, tr, stream, 2*time.Second), 10) {
		if !d.Redelivered() {
			t.Error("a job that was taken over does not say so")
		}
		d.Ack()
	}
	t.Logf("taken over %v after the kill", time.Since(killed))
	empty(t, c, stream)
}

// A large backlog stays at the server.
func TestBacklogMemory(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t)
	c := client(t, srv.Addr)
	tr := open(t, c)
	const n, size = 100, 1 << 20
	body := strings.Repeat("x", size)
	for range n {
		publish(t, tr, msg("jobs", body))
	}
	src := openSource(t, tr, "jobs", time.Minute)
	ds := fetch(t, src, 5) // it now knows how large they are
	for len(ds) < 30 {
		before := len(ds)
		got, err := src.Fetch(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		if ds = append(ds, got...); len(ds)-before > readBudget/size+2 {
			t.Fatalf("one read brought %d megabytes", len(ds)-before)
		}
	}
	for _, d := range ds {
		d.Ack()
	}
	ds = nil //nolint:ineffassign,wastedassign // lets the collector have them
	runtime.GC()
	eventually(t, "what was read is settled", func() bool { return src.holding() == 0 })
	if got := cap(src.scratch); got > 200 {
		t.Errorf("room for %d entries is kept", got)
	}
}

// Connections that a server closes under way are replaced.
func TestClientKill(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t)
	c, admin := client(t, srv.Addr), client(t, srv.Addr)
	tr := open(t, c)
	const n = 2000
	numbered(t, tr, "jobs", n)
	w := work(t, openSource(t, tr, "jobs", 2*time.Second), 16, time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			_ = admin.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err()
			pause(ctx, 50*time.Millisecond)
		}
	}()
	eventually(t, "half of the jobs ran", func() bool { return w.distinct() > n/2 })
	cancel()
	eventually(t, "all jobs ran", func() bool { return w.distinct() == n })
	empty(t, client(t, srv.Addr), "jobs")
}
