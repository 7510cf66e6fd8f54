package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	killJobs  = 10_000
	killKills = 10
)

// TestKill runs the real binary over every broker, kills it with SIGKILL again and again while jobs of a guest that rolls dice
// go through it, and counts: no job is lost, none has two different results, none is stuck (D-09, D-14, D-23).
func TestKill(t *testing.T) {
	t.Parallel()
	bin := buildBinary(t)
	for name, head := range map[string]func(t *testing.T) string{
		"embedded": func(t *testing.T) string {
			return fmt.Sprintf("transport: embedded\nembedded: {dir: %q, listen: %q}\n", t.TempDir(), freeAddr(t))
		},
		"nats": func(t *testing.T) string {
			return fmt.Sprintf("transport: nats\nnats: {url: %q, group: %q}\n", "nats://"+strings.TrimPrefix(services.NATS(t), "nats://"), services.UniqueName(t))
		},
		"redis": func(t *testing.T) string {
			return fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", services.Redis(t))
		},
		"kafka": func(t *testing.T) string {
			return fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%q], group: %q}\n", services.Redis(t), services.Kafka(t), services.UniqueName(t))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKillTest(t, bin, head(t))
			k.run()
		})
	}
}

type killTest struct {
	t      *testing.T
	bin    string
	file   string
	admin  string
	cfg    *config.Config
	client transport.Transport
	log    *os.File

	mu        sync.Mutex
	results   map[string][32]byte // by job id: what its first result was
	repeats   int
	different []string
	failed    int
}

func newKillTest(t *testing.T, bin, head string) *killTest {
	t.Helper()
	name := services.UniqueName(t)
	k := &killTest{t: t, bin: bin, admin: freeAddr(t), results: map[string][32]byte{}}
	guest, err := filepath.Abs("../../examples/guests/dice.wasm")
	if err != nil {
		t.Fatal(err)
	}
	text := head + fmt.Sprintf(`admin: {listen: %q}
log: {level: warn}
modules: {dice: {source: %q}}
routes: [{name: dice, from: %s, to: %s_results, dead_letter: %s_dead, module: dice, lease: 2s, retry: {max_crashes: 100}}]
`, k.admin, guest, name, name, name)
	dir := t.TempDir()
	k.file = filepath.Join(dir, "kill.yaml")
	if err := os.WriteFile(k.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if k.cfg, err = config.Load(k.file); err != nil {
		t.Fatal(err)
	}
	if k.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.log.Close()
		if b, err := os.ReadFile(k.log.Name()); t.Failed() && err == nil {
			t.Logf("last of the sidecar's log:\n%s", b[max(0, len(b)-8<<10):])
		}
	})
	return k
}

// start starts the binary and waits until it is ready.
func (k *killTest) start() *exec.Cmd {
	k.t.Helper()
	cmd := exec.Command(k.bin, "--config", k.file)
	cmd.Stderr = k.log
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	until(k.t, 2*time.Minute, "the sidecar is ready", func() bool {
		res, err := http.Get("http://" + k.admin + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return cmd
}

func (k *killTest) run() {
	t := k.t
	cmd := k.start()
	client, closeClient, err := sidecar.Dial(t.Context(), k.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer closeClient()
	k.client = client
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { k.collect(ctx) })
	sent := make(chan struct{})
	wg.Go(func() {
		defer close(sent)
		k.submit(ctx)
	})

	seed := uint64(time.Now().UnixNano())
	dice := rand.New(rand.NewPCG(seed, 0))
	for range killKills {
		time.Sleep(time.Duration(dice.Int64N(int64(time.Second)))) // the moment of the kill is what is random
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // says that it was killed
		cmd = k.start()
	}
	<-sent
	begun := time.Now()
	until(t, 4*time.Minute, "every job has a result", func() bool { return k.count() == killJobs })
	recovery := time.Since(begun)
	time.Sleep(500 * time.Millisecond) // for a second result that differs, if there is one
	cancel()
	wg.Wait()
	t.Logf("%d jobs, %d kills (seed %d): %d lost, %d with two different results, %d failed, %d results repeated, last result %s after the last submission",
		killJobs, killKills, seed, killJobs-len(k.results), len(k.different), k.failed, k.repeats, recovery.Round(time.Millisecond))
	if len(k.different) > 0 || k.failed > 0 || len(k.results) != killJobs {
		t.Errorf("jobs with two different results: %v", k.different)
	}
}

func (k *killTest) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.results)
}

// submit publishes the jobs over some ten seconds, each until the broker has taken it.
func (k *killTest) submit(ctx context.Context) {
	const batch = 20
	for i := 0; i < killJobs && ctx.Err() == nil; i += batch {
		ms := make([]*transport.Message, batch)
		for n := range ms {
			ms[n] = &transport.Message{Subject: k.cfg.Routes[0].From, Body: []byte("roll"), Header: job.Header{{Name: transport.HeaderJobID, Value: fmt.Sprint("job-", i+n)}}}
		}
		for ctx.Err() == nil {
			pctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := k.client.Publisher().Publish(pctx, ms...)
			cancel()
			if err == nil {
				break
			}
			wait(ctx, 50*time.Millisecond) // the embedded server dies with the sidecar
		}
		wait(ctx, 20*time.Millisecond)
	}
}

// collect reads results until ctx ends, from the beginning again whenever the connection breaks.
func (k *killTest) collect(ctx context.Context) {
	for ctx.Err() == nil {
		tail, err := k.client.Tail(ctx, k.cfg.Routes[0].To, true)
		if err != nil {
			wait(ctx, 100*time.Millisecond)
			continue
		}
		seen := map[string]int{}
		for {
			rctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			m, err := tail.Next(rctx)
			cancel()
			if err != nil {
				break
			}
			k.note(m, seen)
		}
		tail.Close()
	}
}

func (k *killTest) note(m *transport.Message, seen map[string]int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id, sum := m.Header.Get(transport.HeaderResultOf), sha256.Sum256(m.Body)
	if seen[id]++; seen[id] > 1 {
		k.repeats++
	}
	if m.Header.Get(transport.HeaderOK) != "true" {
		k.failed++
	}
	if was, again := k.results[id]; again && !bytes.Equal(was[:], sum[:]) {
		k.different = append(k.different, id)
	}
	k.results[id] = sum
}

// buildBinary builds the command as it is released.
func buildBinary(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "wasmsidecar")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
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

// until waits for a condition.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); ; {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s it is still not so that %s", limit, what)
		}
		wait(t.Context(), 20*time.Millisecond)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
