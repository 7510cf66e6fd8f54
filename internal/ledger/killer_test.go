//go:build unix

package ledger

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// a job that kills the real process whenever it runs, the first time with 63 others in flight beside it, ends as failed for good,
// and each of the others has its result.
func TestKillerAmongNeighbours(t *testing.T) {
	t.Parallel()
	const neighbours = 63
	binary := Build(t)
	t.Run("broker", func(t *testing.T) {
		for _, broker := range []string{redis, nats, kafka} {
			t.Run(broker, func(t *testing.T) {
				t.Parallel()
				k := newKiller(t, neighbours+1)
				g := newRig(t, Config{Broker: broker, Replicas: 1, Lease: time.Second})
				file, admin := k.write(t, g, `{name: roll, from: "%[1]s-roll", to: "%[1]s-results", dead_letter: "%[1]s-dead", module: roll, lease: 2s}`)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				lives := k.live(ctx, t, binary, file)
				await(ctx, admin)
				var ms []*transport.Message
				for i := range neighbours + 1 {
					id := fmt.Sprint("neighbour", i)
					if i == neighbours/2 {
						id = "killer"
					}
					ms = append(ms, message(g.name+"-roll", id))
				}
				if err := g.client.Publisher().Publish(ctx, ms...); err != nil {
					t.Fatal(err)
				}
				results := collect(ctx, t, g, neighbours+1)
				for id, r := range results {
					if want := id != "killer"; strings.HasPrefix(r, "true") != want {
						t.Errorf("%s ended with %s", id, r)
					}
				}
				if n := k.most.Load(); n != neighbours+1 {
					t.Errorf("%d jobs were in flight when it struck first, want %d", n, neighbours+1)
				}
				if n := lives.Load(); n < 4 || n > 5 { // two crashes of all, a third of the killer alone; a life after each
					t.Errorf("the process lived %d times", n)
				}
			})
		}
	})
}

// killers keep coming on one route of the real process, which dies with each of them and lives again. Each ends as failed for
// good after three crashes of its own, at most, and no job of the other route does.
func TestKillersKeepComing(t *testing.T) {
	t.Parallel()
	const killers, innocents = 4, 16
	binary := Build(t)
	for _, broker := range []string{redis, nats} {
		t.Run(broker, func(t *testing.T) {
			t.Parallel()
			k := newKiller(t, 1)
			k.lurks = 1200 * time.Millisecond // longer than the lease of those who died before
			g := newRig(t, Config{Broker: broker, Replicas: 1, Lease: time.Second})
			const route = `{name: %[2]s, from: "%[1]s-%[2]s", to: "%[1]s-results", dead_letter: "%[1]s-dead", module: roll, lease: 1s}`
			file, admin := k.write(t, g, fmt.Sprintf(route, "%[1]s", "dice"), fmt.Sprintf(route, "%[1]s", "roll"))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			lives := k.live(ctx, t, binary, file)
			await(ctx, admin)

			begun := time.Now()
			send := func(ms ...*transport.Message) {
				t.Helper()
				if err := g.client.Publisher().Publish(ctx, ms...); err != nil {
					t.Fatal(err)
				}
			}
			for i := range killers { // the next comes when the one before has killed: some innocents are new then, and others are not
				var ms []*transport.Message
				for n := range innocents / killers {
					ms = append(ms, message(g.name+"-roll", fmt.Sprint("innocent", i*innocents/killers+n)))
				}
				send(append(ms, message(g.name+"-dice", fmt.Sprint("killer", i)))...)
				for died := lives.Load(); lives.Load() == died && ctx.Err() == nil; {
					pause(ctx, 20*time.Millisecond)
				}
			}
			for id, r := range collect(ctx, t, g, killers+innocents) {
				if want := strings.HasPrefix(id, "innocent"); strings.HasPrefix(r, "true") != want {
					t.Errorf("%s ended with %s", id, r)
				}
			}
			if n := lives.Load(); n > 3*killers+1 {
				t.Errorf("the process lived %d times, want at most %d", n, 3*killers+1)
			}
			t.Logf("%d lives, %s", lives.Load(), time.Since(begun).Round(100*time.Millisecond))
		})
	}
}

// write writes the configuration of a process whose jobs ask k. %[1]s in its routes is the name of g.
func (k *killer) write(t *testing.T, g *rig, routes ...string) (file, admin string) {
	t.Helper()
	file, admin = filepath.Join(t.TempDir(), "killer.yaml"), freeAddr(t)
	text := g.heads[0] + fmt.Sprintf(`admin: {listen: %[4]q}
log: {level: warn}
modules: {roll: {source: %[1]q, config: {url: %[2]q}, allow: {http: [%[3]q]}}}
routes:
`, filepath.Join(root(t), "examples", "guests", "roll.wasm"), k.server.URL, strings.TrimPrefix(k.server.URL, "http://"), admin)
	for _, r := range routes {
		text += "  - " + fmt.Sprintf(r, g.name) + "\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, admin
}

// await waits until the process is ready.
func await(ctx context.Context, admin string) {
	for x := (&replica{admin: admin}); !x.ready() && ctx.Err() == nil; {
		pause(ctx, 20*time.Millisecond)
	}
}

// message is the message of a job.
func message(subject, id string) *transport.Message {
	return &transport.Message{Subject: subject, Key: []byte(id), Body: []byte(id), Header: job.Header{{Name: transport.HeaderJobID, Value: id}}}
}

// collect waits for the results of n jobs, and returns of each whether it went well, and its body.
func collect(ctx context.Context, t *testing.T, g *rig, n int) map[string]string {
	t.Helper()
	results := make(map[string]string)
	tail, err := g.client.Tail(ctx, g.name+"-results", true)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	for len(results) < n {
		m, err := tail.Next(ctx)
		if err != nil {
			t.Fatalf("%d results: %v", len(results), err)
		}
		results[m.Header.Get(transport.HeaderResultOf)] = m.Header.Get(transport.HeaderOK) + " " + string(m.Body)
	}
	return results
}

// killer is a server that jobs ask, and that kills the process of those that are called killers.
type killer struct {
	server   *httptest.Server
	process  atomic.Pointer[os.Process]
	together chan struct{} // closed once all jobs ask at once

	lurks time.Duration // how long a killer waits for somebody to take with it

	all  int64
	once sync.Once
	now  atomic.Int64
	most atomic.Int64 // asking when it struck first
}

func newKiller(t *testing.T, all int) *killer {
	k := &killer{together: make(chan struct{}), all: int64(all)}
	k.server = httptest.NewServer(k)
	t.Cleanup(k.server.Close)
	return k
}

// ServeHTTP answers neighbours a while after the killer has struck.
func (k *killer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	id, err := io.ReadAll(io.LimitReader(req.Body, 1024))
	if err != nil {
		return // its process is gone
	}
	if k.now.Add(1) == k.all {
		k.once.Do(func() { close(k.together) })
	}
	defer k.now.Add(-1)
	select {
	case <-k.together:
	case <-req.Context().Done():
		return
	}
	if strings.HasPrefix(string(id), "killer") {
		for end := time.Now().Add(k.lurks); k.now.Load() < 2 && time.Now().Before(end); {
			pause(req.Context(), 10*time.Millisecond)
		}
		k.most.CompareAndSwap(0, k.now.Load())
		_ = k.process.Load().Kill() // an error says that it has ended
	}
	select {
	case <-time.After(100 * time.Millisecond):
	case <-req.Context().Done():
	}
	fmt.Fprint(w, "ok")
}

// live starts the process again and again until the test ends, and counts.
func (k *killer) live(ctx context.Context, t *testing.T, binary, file string) *atomic.Int64 {
	lives := new(atomic.Int64)
	ctx, stop := context.WithCancel(ctx)
	over := make(chan struct{})
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			cmd := exec.CommandContext(ctx, binary, "--config", file)
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				return // the test waits in vain
			}
			k.process.Store(cmd.Process)
			lives.Add(1)
			_ = cmd.Wait() // says that it was killed
		}
	}()
	t.Cleanup(func() {
		stop()
		<-over
		log.Close()
		if b, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("last of the log:\n%s", b[max(0, len(b)-8<<10):])
		}
	})
	return lives
}
