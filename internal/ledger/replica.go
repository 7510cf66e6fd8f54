//go:build unix

package ledger

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/crash"
)

// replica is one sidecar, which lives many times.
type replica struct {
	r      *run
	n      int
	binary string
	dir    string
	admin  string
	log    *os.File
	now    *life
}

// life is one process.
type life struct {
	id, replica int
	point       crash.Point // where it is to die; "" for anywhere
	cmd         *exec.Cmd
	done        chan struct{}

	mu  sync.Mutex
	end time.Time
}

// ended is when the process was seen to be gone; zero while it is there.
func (l *life) ended() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// Build builds the command with the points at which it can be told to die.
func Build(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "wasmsidecar")
	if out, err := exec.Command("go", "build", "-tags", "crash", "-o", bin, "github.com/wasmsidecar/wasmsidecar/cmd/wasmsidecar").CombinedOutput(); err != nil {
		t.Fatalf("ledger: go build: %v\n%s", err, out)
	}
	return bin
}

func newReplicas(r *run, binary string) []*replica {
	out := make([]*replica, r.cfg.Replicas)
	for n := range out {
		x := &replica{r: r, n: n, binary: binary, dir: r.t.TempDir(), admin: freeAddr(r.t)}
		var err error
		if x.log, err = os.Create(filepath.Join(x.dir, "log")); err != nil {
			r.t.Fatalf("ledger: %v", err)
		}
		r.t.Cleanup(func() {
			x.kill()
			x.log.Close()
			if b, err := os.ReadFile(x.log.Name()); r.t.Failed() && err == nil {
				r.t.Logf("last of the log of replica %d:\n%s", n, b[max(0, len(b)-8<<10):])
			}
		})
		out[n] = x
	}
	return out
}

// start begins another life and waits until it is ready.
func (x *replica) start(point crash.Point) {
	r := x.r
	r.t.Helper()
	r.mu.Lock()
	r.lifeSeq++
	l := &life{id: r.lifeSeq, replica: x.n, point: point, done: make(chan struct{})}
	r.lives[l.id] = l
	r.mu.Unlock()
	file := filepath.Join(x.dir, "ledger.yaml")
	r.rig.write(r.t, x.n, file, x.admin, r.counter.addr(), r.counter.url(l.id))
	l.cmd = exec.Command(x.binary, "--config", file)
	l.cmd.Stdout, l.cmd.Stderr = x.log, x.log
	if point != "" {
		before := r.dice.IntN(20)
		if point == crash.DuringDrain {
			before = r.dice.IntN(2) // each route comes there once
		}
		l.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d", crash.Env, point, before))
	}
	if err := l.cmd.Start(); err != nil {
		r.t.Fatalf("ledger: start the sidecar: %v", err)
	}
	go func() {
		_ = l.cmd.Wait() // says that it was killed
		l.mu.Lock()
		l.end = time.Now()
		l.mu.Unlock()
		close(l.done)
	}()
	x.now = l
	for end := time.Now().Add(patience); !x.ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) || !l.ended().IsZero() {
			r.t.Fatalf("ledger: replica %d is not ready (ended: %v)", x.n, !l.ended().IsZero())
		}
	}
}

func (x *replica) ready() bool {
	res, err := (&http.Client{Timeout: time.Second}).Get("http://" + x.admin + "/readyz")
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// kill ends the life by SIGKILL, if it lives.
func (x *replica) kill() {
	if x.now == nil {
		return
	}
	_ = x.now.cmd.Process.Kill() // an error says that it has ended
	<-x.now.done
}

// fallPatience is how long a replica may take to come to its point; it may have to wait for partitions.
const fallPatience = 10 * time.Second

// fall lets the replica die where its life is to end, and says where that was: "" where it had to be killed, because it never came
// there.
func (x *replica) fall() crash.Point {
	l := x.now
	if l.point == "" {
		x.kill()
		return ""
	}
	_ = l.cmd.Process.Signal(syscall.SIGUSR1) // an error says that it has ended
	if l.point == crash.DuringDrain {
		_ = l.cmd.Process.Signal(syscall.SIGTERM)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(fallPatience); ; {
		select {
		case <-l.done:
			if l.cmd.ProcessState.ExitCode() == 0 {
				return "" // it drained without coming there
			}
			return l.point
		case <-tick.C:
		}
		if time.Now().After(end) || x.r.book.done() {
			x.kill()
			return ""
		}
	}
}
