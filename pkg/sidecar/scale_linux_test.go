package sidecar_test

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/event"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// plant is a configuration and the servers that it needs, of its own where that is cheap, so that their memory and their processor
// time can be told.
type plant struct {
	tb     testing.TB
	head   string // of the configuration: transport and store
	name   string
	pids   []string // of the servers; none where they are in this process
	data   string   // where the servers keep files; "" for nowhere
	guests string
	done   atomic.Int64 // jobs finished by now
	failed atomic.Int64 // attempts that failed
}

// newPlant starts servers for a broker: redis, nats, embedded or kafka. Kafka's broker is the one of all tests unless own is given.
func newPlant(tb testing.TB, broker string, own bool) *plant {
	tb.Helper()
	pace(tb)
	p := &plant{tb: tb, name: services.UniqueName(tb), guests: filepath.Join("..", "..", "examples", "guests")}
	redis := func() string {
		s := services.StartRedis(tb)
		p.pids = append(p.pids, strconv.Itoa(s.PID()))
		return s.Addr
	}
	switch broker {
	case config.Redis:
		p.head = fmt.Sprintf("transport: redis\nredis: {addr: %q, max_len: 10000}\n", redis())
	case config.NATS:
		s := services.StartNATS(tb, "")
		p.pids, p.data = append(p.pids, strconv.Itoa(s.PID())), s.Dir
		p.head = fmt.Sprintf("transport: nats\nnats: {url: %q, group: %q}\n", "nats://"+s.Addr, p.name)
	case config.Embedded:
		p.data = tb.TempDir()
		p.head = fmt.Sprintf("transport: embedded\nembedded: {dir: %q, listen: %q}\n", p.data, freeListener(tb))
	case config.Kafka:
		var addr string
		if own {
			s := services.StartKafka(tb)
			addr, p.data = s.Addr, s.Dir
			p.pids = append(p.pids, strconv.Itoa(s.PID()))
		} else {
			addr = services.Kafka(tb)
		}
		p.head = fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%q], group: %q, partitions: 4}\n", redis(), addr, p.name)
	default:
		tb.Fatalf("no broker %q", broker)
	}
	return p
}

// pace has a benchmark collect garbage as the command does, unless GOGC says otherwise.
func pace(tb testing.TB) {
	if _, ok := tb.(*testing.B); ok && os.Getenv("GOGC") == "" {
		tb.Cleanup(sidecar.PaceCollector())
	}
}

// config is a configuration with n routes, which take the jobs of the subjects name0, name1 … to a module.
func (p *plant) config(module, route string, n int) *config.Config {
	p.tb.Helper()
	text := p.head + fmt.Sprintf("admin: {listen: off}\nmodules:\n  m: {source: %q}\nroutes:\n", filepath.Join(p.guests, module))
	for i := range n {
		text += fmt.Sprintf("  - {from: %s, module: m%s}\n", p.subject(i), route)
	}
	cfg, err := config.Parse("scale.yaml", []byte(text), nil)
	if err != nil {
		p.tb.Fatal(err)
	}
	return cfg
}

func (p *plant) subject(i int) string { return p.name + "-" + strconv.Itoa(i) }

// shift is a sidecar of a plant that runs.
type shift struct {
	p       *plant
	cfg     *config.Config
	client  transport.Transport
	release func() // lets the routes take jobs
	stop    func() // drains, and ends the client
}

// run starts a sidecar, which takes jobs once it is released. With a runner it needs no module.
func (p *plant) run(cfg *config.Config, run job.RunnerFunc) *shift {
	p.tb.Helper()
	hold := make(chan struct{})
	opt := sidecar.Options{Log: slog.New(slog.DiscardHandler), Hold: hold, Sink: event.SinkFunc(func(e event.Event) {
		switch {
		case e.Type == event.Finished:
			p.done.Add(1)
		case e.Type == event.Attempted && e.Kind != job.KindOK:
			p.failed.Add(1)
		}
	})}
	if run != nil {
		own := *cfg
		own.Modules, cfg = nil, &own
		opt.Runners = map[string]job.Runner{"m": run}
	}
	s, err := sidecar.New(p.tb.Context(), cfg, opt)
	if err != nil {
		p.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	select {
	case <-s.Running():
	case err := <-ended:
		cancel()
		p.tb.Fatalf("the sidecar ended: %v", err)
	}
	client, closeClient, err := sidecar.Dial(p.tb.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		cancel()
		<-ended
		p.tb.Fatal(err)
	}
	x := &shift{p: p, cfg: cfg, client: client, release: sync.OnceFunc(func() { close(hold) })}
	x.stop = sync.OnceFunc(func() {
		closeClient()
		cancel()
		if err := <-ended; err != nil {
			p.tb.Error(err)
		}
		if cfg.Transport == config.Kafka { // the broker may be everybody's
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := sidecar.Remove(ctx, cfg, slog.New(slog.DiscardHandler)); err != nil {
				p.tb.Logf("remove what was measured: %v", err)
			}
		}
	})
	p.tb.Cleanup(x.stop)
	return x
}

// fill publishes n jobs to the routes in turn, as message makes them, by several writers.
func (x *shift) fill(n int, message func(i int, m *transport.Message)) {
	x.p.tb.Helper()
	const batch, writers = 500, 4
	var next atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for {
				from := int(next.Add(batch)) - batch
				if from >= n || x.p.tb.Context().Err() != nil {
					return
				}
				ms := make([]*transport.Message, min(batch, n-from))
				for i := range ms {
					ms[i] = &transport.Message{Subject: x.cfg.Routes[(from+i)%len(x.cfg.Routes)].From}
					message(from+i, ms[i])
				}
				if err := x.client.Publisher().Publish(x.p.tb.Context(), ms...); err != nil {
					x.p.tb.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if x.p.tb.Failed() {
		x.p.tb.FailNow()
	}
}

// await waits until n jobs are finished; nothing for a minute is the end.
func (x *shift) await(n int64) {
	x.p.tb.Helper()
	last, at := x.p.done.Load(), time.Now()
	for x.p.done.Load() < n {
		time.Sleep(2 * time.Millisecond)
		if now := x.p.done.Load(); now != last {
			last, at = now, time.Now()
		} else if time.Since(at) > time.Minute {
			x.p.tb.Fatalf("%d of %d jobs, and nothing moves", last, n)
		}
	}
}

// use is what a plant has used so far.
type use struct {
	at            time.Time
	own, servers  time.Duration // processor time
	mem, memTheir int64         // resident memory in bytes
}

func (p *plant) use() use {
	p.tb.Helper()
	u := use{at: time.Now(), own: cpuOf(p.tb, "self"), mem: resident(p.tb, "self")}
	for _, pid := range p.pids {
		u.servers += cpuOf(p.tb, pid)
		u.memTheir += resident(p.tb, pid)
	}
	return u
}

// cost is what a number of jobs took between two looks.
type cost struct {
	rate         float64 // jobs a second
	own, servers float64 // µs of processor time for a job
}

func (u use) since(before use, jobs int) cost {
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(jobs) }
	return cost{float64(jobs) / u.at.Sub(before.at).Seconds(), micros(u.own - before.own), micros(u.servers - before.servers)}
}

func (c cost) String() string {
	return fmt.Sprintf("%6.0f jobs/s, %5.1f µs here, %5.1f µs in the servers", c.rate, c.own, c.servers)
}

// resident is a process's memory.
func resident(tb testing.TB, pid string) int64 {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", pid, "statm"))
	if err != nil {
		tb.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		tb.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// files is how much lies in a directory.
func files(tb testing.TB, dir string) int64 {
	tb.Helper()
	var sum int64
	if dir == "" {
		return 0
	}
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // a file that is gone meanwhile counts nothing
		}
		if info, err := d.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return sum
}

// number is what a server says in digits.
func number(tb testing.TB, text string) int64 {
	tb.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}
