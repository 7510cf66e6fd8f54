package sidecar_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// what real guests come to on every broker: what is tried again and what is not, and how long a guest may have it wait. Each job
// has a result, a reply for whoever waits for it, and a dead letter where it failed; one that is dead is not run again.
func TestVerdictsOfTheLine(t *testing.T) {
	t.Parallel()
	jobs := []struct {
		id, module, in, kind string
		attempts             string
		dead                 bool
	}{
		{id: "done", module: "upper", in: "x", attempts: "1"},
		{id: "refused", module: "fail", in: "no", kind: "failed", attempts: "1", dead: true},
		{id: "exit 65", module: "exit3", in: "65", kind: "failed", attempts: "1", dead: true},
		{id: "unknown", module: "nobody", kind: "invalid", attempts: "0", dead: true},
		{id: "trap", module: "trap", kind: "trap", attempts: "2", dead: true},
		{id: "loop", module: "loop", kind: "timeout", attempts: "2", dead: true},
		{id: "bomb", module: "grow", kind: "limit", attempts: "2", dead: true},
		{id: "never", module: "retry", kind: "retry", attempts: "2", dead: true},
		{id: "at last", module: "retry", in: "2", attempts: "2"},
	}
	guest := func(name, more string) string {
		return fmt.Sprintf("  %s: {source: %q%s}\n", name, filepath.Join("..", "..", "examples", "guests", name+".wasm"), more)
	}
	// The wait that retry asks for is too long for a slot: its jobs are moved.
	modules := guest("upper", "") + guest("fail", "") + guest("exit3", "") + guest("trap", "") + guest("loop", ", limits: {time: 200ms}") +
		guest("grow", ", limits: {memory: 1MiB}") + guest("retry", ", config: {after: \"2300\"}")
	for _, b := range brokers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			// A second route has the subject of the replies made.
			replies := services.UniqueName(t) + "-replies"
			cfg := parseModules(t, b.yaml(t)+"cache: off\n", modules, fmt.Sprintf(`"{header.Wasm-Module}", reply: [%[1]s], retry: {max_attempts: 2, backoff: 10ms}, dedup: {claim: always}}
  - {name: other, from: %[1]s-jobs, to: %[1]s, module: upper`, replies))
			l := openConfig(t, slog.LevelDebug, cfg, nil)
			waiting := l.tail(replies)
			submit := func(i int) {
				l.submit(jobs[i].id, jobs[i].in, job.Field{Name: transport.HeaderModule, Value: jobs[i].module}, job.Field{Name: transport.HeaderReplyTo, Value: replies})
			}
			began := time.Now()
			for i := range jobs {
				submit(i)
			}
			collect := func(tail transport.Tail, what, header string, n int) map[string]*transport.Message {
				t.Helper()
				out := map[string]*transport.Message{}
				for len(out) < n {
					m := l.next(tail, fmt.Sprintf("%s after %d", what, len(out)))
					id := m.Header.Get(header)
					if out[id] != nil {
						t.Errorf("a second %s of %s", what, id)
					}
					out[id] = m
					if id == "at last" && time.Since(began) < 2300*time.Millisecond {
						t.Errorf("tried again after %s, want 2.3 s", time.Since(began))
					}
				}
				return out
			}
			results := collect(l.results, "result", transport.HeaderResultOf, len(jobs))
			answers := collect(waiting, "reply", transport.HeaderResultOf, len(jobs))
			dead := collect(l.dead, "dead letter", transport.HeaderJobID, 7)
			for _, want := range jobs {
				for what, m := range map[string]*transport.Message{"result": results[want.id], "reply": answers[want.id]} {
					if m == nil {
						t.Errorf("%s has no %s", want.id, what)
						continue
					}
					h := m.Header
					if h.Get(transport.HeaderKind) != want.kind || h.Get(transport.HeaderAttempt) != want.attempts || h.Get(transport.HeaderOK) != fmt.Sprint(want.kind == "") {
						t.Errorf("%s of %s: kind %q in attempt %s, ok %s; want %q in attempt %s", what, want.id, h.Get(transport.HeaderKind), h.Get(transport.HeaderAttempt),
							h.Get(transport.HeaderOK), want.kind, want.attempts)
					}
				}
				m := dead[want.id]
				if (m != nil) != want.dead {
					t.Errorf("%s has a dead letter: %t, want %t", want.id, m != nil, want.dead)
				} else if m != nil && (m.Header.Get(transport.HeaderDeadKind) != want.kind || m.Header.Get(transport.HeaderDeadAttempts) != want.attempts) {
					t.Errorf("dead letter of %s: %v", want.id, m.Header)
				}
			}
			submit(4)
			l.await("the dead job is seen again", func() bool { return strings.Contains(l.log.String(), `msg="job seen again" job_id=trap`) })
			if n := strings.Count(l.log.String(), `msg="attempt ended" job_id=trap`); n != 2 {
				t.Errorf("the dead job was run %d times, want 2", n)
			}
		})
	}
}
