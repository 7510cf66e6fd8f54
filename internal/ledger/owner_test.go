//go:build unix

package ledger

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// asked is an execution that waits for an answer until its process is killed.
type asked struct {
	id      string
	life, n int
	at      time.Time
}

// What becomes of jobs whose process is killed by SIGKILL while it runs them, over every broker, with a lease of 2 s and a time of 300 s:
// they run again when the lease is over (R-07, S-11; on Kafka when the dead member's session is), their attempts are counted on
// (D-07), and one that is always at it when its process ends has a dead letter, a result and an event in the end.
func TestOwnerIsKilled(t *testing.T) {
	t.Parallel()
	binary := Build(t)
	t.Run("broker", func(t *testing.T) {
		for _, broker := range Brokers() {
			t.Run(broker, func(t *testing.T) {
				t.Parallel()
				testOwnerIsKilled(t, binary, broker)
			})
		}
	})
}

func testOwnerIsKilled(t *testing.T, binary, broker string) {
	const lease = 2 * time.Second
	cfg := Config{Broker: broker, Replicas: 2, Lease: lease}
	within := lease
	switch broker {
	case embedded:
		cfg.Replicas = 1
	case kafka:
		within = 6 * time.Second // of the session
	}
	held := make(chan asked, 100)
	r := &run{t: t, cfg: cfg, dice: rand.New(rand.NewPCG(0, 0)), lives: map[int]*life{}}
	r.counter = newCounter(t)
	r.counter.answer = func(ctx context.Context, id string, life, n int) int {
		switch {
		case id == "second" && n == 1:
			return http.StatusServiceUnavailable // its first attempt fails
		case id == "first" && n > 1, id == "second" && n > 2:
			return http.StatusOK
		}
		held <- asked{id, life, n, time.Now()}
		<-ctx.Done()
		return http.StatusServiceUnavailable // to nobody
	}
	r.rig = newRig(t, cfg)
	r.rig.limits = "time: 300s, http_time: 300s"
	r.rig.routes = fmt.Sprintf("routes: [{name: roll, from: %[1]q, to: %[2]q, dead_letter: %[3]q, module: roll, lease: %[4]s, retry: {backoff: 10ms}}]\n",
		r.rig.name+"-roll", r.rig.name+"-results", r.rig.name+"-dead", lease)
	r.replicas = newReplicas(r, binary)
	for _, x := range r.replicas {
		x.start("")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	submit := func(id string) {
		m := &transport.Message{Subject: r.rig.name + "-roll", Key: []byte(id), Body: []byte(id), Header: job.Header{{Name: transport.HeaderJobID, Value: id}}}
		if err := r.rig.client.Publisher().Publish(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	// await waits until a job is run for the nth time, and skips what others do.
	await := func(id string, n int) asked {
		t.Helper()
		for {
			select {
			case a := <-held:
				if a.id == id && a.n == n {
					return a
				}
			case <-ctx.Done():
				t.Fatalf("%s was not run for the %d. time", id, n)
			}
		}
	}
	// strike kills the process of an execution, if it lives, and starts another. It returns when it was gone.
	strike := func(a asked) time.Time {
		x := r.replicas[r.lives[a.life].replica]
		if x.now.id == a.life {
			x.kill()
			x.start("")
		}
		return r.lives[a.life].ended()
	}
	result := func(id string) *transport.Message {
		return find(ctx, t, r.rig.client, r.rig.name+"-results", transport.HeaderResultOf, id)
	}

	submit("first")
	killed := strike(await("first", 1))
	if got := result("first").Header.Get(transport.HeaderAttempt); got != "2" {
		t.Errorf("first ended in attempt %s, want 2", got)
	}
	took := r.counter.at("first", 2).Sub(killed)
	t.Logf("run again %s after the kill", took.Round(time.Millisecond))
	if took < lease/2 || took > within+4*time.Second {
		t.Errorf("run again %s after the kill; want it when the lease is over, and within %s", took, within)
	}

	submit("second")
	second := await("second", 2)
	submit("killer")
	killer := await("killer", 1)
	strike(second)
	strike(killer)
	if got := result("second").Header.Get(transport.HeaderAttempt); got != "3" {
		t.Errorf("second ended in attempt %s, want 3", got)
	}
	strike(await("killer", 2))
	strike(await("killer", 3))
	if m := result("killer"); m.Header.Get(transport.HeaderOK) != "false" || m.Header.Get(transport.HeaderAttempt) != "3" {
		t.Errorf("killer's result is %q with %v", m.Body, m.Header)
	}
	if m := find(ctx, t, r.rig.client, r.rig.name+"-dead", transport.HeaderJobID, "killer"); string(m.Body) != "killer" || m.Header.Get(transport.HeaderDeadAttempts) != "3" {
		t.Errorf("killer's dead letter is %q with %v", m.Body, m.Header)
	}
	told := func() (n int) {
		for _, x := range r.replicas {
			b, err := os.ReadFile(x.log.Name())
			if err != nil {
				t.Fatal(err)
			}
			n += bytes.Count(b, []byte("msg=\"job dead-lettered\" job_id=killer"))
		}
		return n
	}
	for told() == 0 && ctx.Err() == nil { // it is told last
		pause(ctx, 20*time.Millisecond)
	}
	if n := told(); n != 1 {
		t.Errorf("the event of killer's end was told %d times", n)
	}
}

// find reads a subject from the beginning until it comes to the message with a header.
func find(ctx context.Context, t *testing.T, client transport.Transport, subject, header, value string) *transport.Message {
	t.Helper()
	for ctx.Err() == nil { // the embedded server goes with its process
		tail, err := client.Tail(ctx, subject, true)
		for err == nil {
			var m *transport.Message
			if m, err = tail.Next(ctx); err == nil && m.Header.Get(header) == value {
				tail.Close()
				return m
			}
		}
		if tail != nil {
			tail.Close()
		}
		pause(ctx, 50*time.Millisecond)
	}
	t.Fatalf("no message with %s: %s on %s", header, value, subject)
	return nil
}
