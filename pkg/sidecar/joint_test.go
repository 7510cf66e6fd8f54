package sidecar_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Where transport and store are one Redis, a job's result and the settlement of its message are in the script that records its outcome;
// what is more than that goes step by step.
func TestOneScript(t *testing.T) {
	t.Parallel()
	for _, claim := range []string{"auto", "always"} {
		t.Run(claim, func(t *testing.T) {
			t.Parallel()
			s := services.StartRedis(t, "--slowlog-log-slower-than", "0", "--slowlog-max-len", "100000")
			c := redisClient(t, s.Addr)
			route := fmt.Sprintf(", reply: [replies], dedup: {claim: %s}", claim)
			l := open(t, fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", s.Addr), route, runner(upper)())
			settles := func(args []string) bool { // of the script that acknowledges, deletes and counts: its stream, the counter, the group and ids
				return args[0] == "evalsha" && args[2] == "2" && args[3] == l.cfg.Routes[0].From && strings.Contains(args[len(args)-1], "-")
			}
			steps := func() (n int) { // commands of their own: those in scripts are in capitals
				t.Helper()
				log, err := c.SlowLogGet(t.Context(), -1).Result()
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range log {
					if settles(e.Args) || e.Args[0] == "xadd" && e.Args[1] == l.cfg.Routes[0].To {
						n++
					}
				}
				return n
			}
			before := steps()
			for i := range 50 {
				l.submit(fmt.Sprint(i), "job")
			}
			for range 50 {
				if m := l.next(l.results, "a result"); string(m.Body) != "JOB" {
					t.Fatalf("result %q", m.Body)
				}
			}
			if n := steps() - before; n != 0 {
				t.Errorf("%d steps by themselves", n)
			}
			if n := c.XLen(t.Context(), l.cfg.Routes[0].From).Val(); n != 0 {
				t.Errorf("%d jobs are left", n)
			}
			l.submit("reply", "job", job.Field{Name: "Reply-To", Value: "replies"})
			l.next(l.results, "the result")
			l.next(l.tail("replies"), "the reply")
			l.stop()
			if n := steps() - before; n != 2 {
				t.Errorf("a job that wants a reply was published and settled in %d steps, want 2", n)
			}
		})
	}
}
