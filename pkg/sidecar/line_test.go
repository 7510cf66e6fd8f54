package sidecar_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// broker is one way to run the straight line: what the configuration says of transport and store.
type broker struct {
	name string
	yaml func(t *testing.T) string
}

// brokers are all of them, embedded and real (D-23).
var brokers = []broker{
	{"embedded", func(t *testing.T) string {
		return fmt.Sprintf("transport: embedded\nembedded: {dir: %q, listen: \"127.0.0.1:%d\"}\n", t.TempDir(), freePort(t))
	}},
	{"nats", func(t *testing.T) string {
		return fmt.Sprintf("transport: nats\nnats: {url: %q, group: %q}\n", natsURL(t), services.UniqueName(t))
	}},
	{"redis", func(t *testing.T) string {
		return fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", services.Redis(t))
	}},
	{"kafka", func(t *testing.T) string {
		return fmt.Sprintf("transport: kafka\nstore: redis\nredis: {addr: %q}\nkafka: {brokers: [%q], group: %q, partitions: 1}\n", services.Redis(t), services.Kafka(t), services.UniqueName(t))
	}},
}

// line is a running sidecar with one route, and a client beside it.
type line struct {
	t       *testing.T
	cfg     *config.Config
	client  transport.Transport
	results transport.Tail
	dead    transport.Tail
	stop    func()
	log     *syncBuffer
	level   slog.Level // of the log
	admin   string     // address of health and metrics
	runners map[string]job.Runner
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const patience = 60 * time.Second

// each runs a case over every broker. route holds further keys of the route, as YAML flow.
func each(t *testing.T, route string, runners func() map[string]job.Runner, test func(l *line)) {
	for _, b := range brokers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			test(open(t, b.yaml(t), route, runners()))
		})
	}
}

func parse(t *testing.T, head, route string) *config.Config {
	t.Helper()
	cfg := parseModules(t, head, "  m: {source: none.wasm}", "m"+route)
	cfg.Modules = nil // the test brings runners of its own
	return cfg
}

// parseModules reads a configuration with modules, as lines of YAML, and one route, whose text begins with its module.
func parseModules(t *testing.T, head, modules, route string) *config.Config {
	t.Helper()
	name := services.UniqueName(t)
	if strings.Contains(head, "redis") {
		name = "jobs:" + name // the keys that the restricted user may touch
	}
	if strings.Contains(head, "transport: kafka") {
		name = strings.ReplaceAll(name, ":", "-")
	}
	text := head + fmt.Sprintf("admin: {listen: \"127.0.0.1:0\"}\nmodules:\n%s\nroutes:\n  - {name: jobs, from: %s, to: %s_results, dead_letter: %s_dead, module: %s}\n", modules, name, name, name, route)
	cfg, err := config.Parse("test.yaml", []byte(text), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return cfg
}

func open(t *testing.T, head, route string, runners map[string]job.Runner) *line {
	t.Helper()
	return openAt(t, slog.LevelDebug, head, route, runners)
}

// openAt is open with a log from a level on.
func openAt(t *testing.T, level slog.Level, head, route string, runners map[string]job.Runner) *line {
	t.Helper()
	return openConfig(t, level, parse(t, head, route), runners)
}

func openConfig(t *testing.T, level slog.Level, cfg *config.Config, runners map[string]job.Runner) *line {
	t.Helper()
	l := &line{t: t, cfg: cfg, log: &syncBuffer{}, level: level}
	forgetKafka(t, l.cfg)
	l.runners = runners
	l.stop = l.start(runners)
	t.Cleanup(func() {
		l.stop()
		if t.Failed() {
			t.Logf("log of the sidecar:\n%s", l.log)
		}
	})
	l.connect(l.cfg)
	return l
}

// connect makes the line's client anew, beside the broker of cfg.
func (l *line) connect(cfg *config.Config) {
	l.t.Helper()
	client, closeClient, err := sidecar.Dial(l.t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(closeClient)
	l.client = client
	l.results = l.tail(l.cfg.Routes[0].To)
	l.dead = l.tail(l.cfg.Routes[0].DeadLetter)
}

// dial makes the line's client anew, beside the broker that head names.
func (l *line) dial(head string) {
	l.t.Helper()
	cfg, err := config.Parse("client.yaml", []byte(head), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	l.connect(cfg)
}

// start runs a sidecar of the line's configuration; the returned function drains it.
func (l *line) start(runners map[string]job.Runner) func() {
	l.t.Helper()
	return l.startAs(l.cfg, runners)
}

// startAs runs a sidecar of another configuration with the line's route.
func (l *line) startAs(cfg *config.Config, runners map[string]job.Runner) func() {
	l.t.Helper()
	log := slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: l.level}))
	s, err := sidecar.New(l.t.Context(), cfg, sidecar.Options{Log: log, Runners: runners})
	if err != nil {
		l.t.Fatal(err)
	}
	l.admin = s.AdminAddr()
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Running():
	case err := <-done:
		cancel()
		l.t.Fatalf("the sidecar ended: %v\n%s", err, l.log)
	case <-time.After(patience):
		cancel()
		l.t.Fatalf("the sidecar did not start\n%s", l.log)
	}
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("the sidecar ended: %v", err)
		}
	})
}

// restart starts the line's sidecar again, after stop.
func (l *line) restart() {
	l.t.Helper()
	l.stop = l.start(l.runners)
}

func (l *line) tail(subject string) transport.Tail {
	l.t.Helper()
	tail, err := l.client.Tail(l.t.Context(), subject, true)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { tail.Close() })
	return tail
}

// submit publishes jobs; each begins with its id and has further headers.
func (l *line) submit(id, body string, h ...job.Field) {
	l.t.Helper()
	m := &transport.Message{Subject: l.cfg.Routes[0].From, Body: []byte(body), Header: h}
	if id != "" {
		m.Header = append(m.Header, job.Field{Name: transport.HeaderJobID, Value: id})
	}
	if err := l.client.Publisher().Publish(l.t.Context(), m); err != nil {
		l.t.Fatal(err)
	}
}

// next waits for the next message of a tail.
func (l *line) next(tail transport.Tail, what string) *transport.Message {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	m, err := tail.Next(ctx)
	if err != nil {
		l.t.Fatalf("waiting for %s: %v\n%s", what, err, l.log)
	}
	return m
}

// none checks that nothing more arrives while a marker job goes through.
func (l *line) noMore(tail transport.Tail, what string, wait time.Duration) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), wait)
	defer cancel()
	if m, err := tail.Next(ctx); err == nil {
		l.t.Errorf("one %s too many: %q, headers %v", what, m.Body, m.Header)
	}
}

func runner(f job.RunnerFunc) func() map[string]job.Runner {
	return func() map[string]job.Runner { return map[string]job.Runner{"m": f} }
}

func upper(_ context.Context, j *job.Job) (*job.Result, error) {
	return &job.Result{Body: bytes.ToUpper(j.Body), Module: "m"}, nil
}

func TestJobToResult(t *testing.T) {
	t.Parallel()
	each(t, "", runner(upper), func(l *line) {
		l.submit("job-1", "hello", job.Field{Name: "Correlation-Id", Value: "c-1"}, job.Field{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
		m := l.next(l.results, "the result")
		if string(m.Body) != "HELLO" {
			l.t.Errorf("result %q", m.Body)
		}
		for name, want := range map[string]string{
			transport.HeaderResultOf: "job-1", transport.HeaderOK: "true", transport.HeaderAttempt: "1", transport.HeaderModule: "m",
			transport.HeaderMsgID: "job-1/jobs", transport.HeaderCorrelation: "c-1", transport.HeaderHops: "1",
			transport.HeaderTraceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		} {
			if got := m.Header.Get(name); got != want {
				l.t.Errorf("header %s is %q, want %q", name, got, want)
			}
		}
		l.submit("", "no id") // a plain message by any client
		if m := l.next(l.results, "the second result"); string(m.Body) != "NO ID" || m.Header.Get(transport.HeaderResultOf) != m.Header.Get(transport.HeaderSource) {
			l.t.Errorf("result %q of %q, source %q", m.Body, m.Header.Get(transport.HeaderResultOf), m.Header.Get(transport.HeaderSource))
		}
	})
}

// D-06: three attempts in one live process, one dead letter; later jobs are neither blocked nor lost.
func TestFailingJobBlocksNobody(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	runs := map[string]int{}
	f := func(_ context.Context, j *job.Job) (*job.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		runs[j.Subject+" "+string(j.Body)]++
		if string(j.Body) == "bad" {
			return nil, errors.New("always fails")
		}
		return &job.Result{Body: j.Body}, nil
	}
	each(t, ", retry: {max_attempts: 3, backoff: 20ms}", runner(f), func(l *line) {
		l.submit("bad", "bad", job.Field{Name: "X-Kept", Value: "yes"})
		for i := range 20 {
			l.submit(fmt.Sprint("good", i), fmt.Sprint("good", i))
		}
		good := 0
		for range 21 {
			if m := l.next(l.results, "a result"); m.Header.Get(transport.HeaderOK) == "true" {
				good++
			}
		}
		dead := l.next(l.dead, "the dead letter")
		if good != 20 || string(dead.Body) != "bad" || dead.Header.Get("X-Kept") != "yes" || dead.Header.Get(transport.HeaderDeadAttempts) != "3" ||
			!strings.Contains(dead.Header.Get(transport.HeaderDeadError), "always fails") {
			l.t.Errorf("%d good results; dead letter %q with %v", good, dead.Body, dead.Header)
		}
		mu.Lock()
		defer mu.Unlock()
		if n := runs[l.cfg.Routes[0].From+" bad"]; n != 3 {
			l.t.Errorf("%d executions, want 3", n)
		}
		l.noMore(l.dead, "dead letter", 100*time.Millisecond)
	})
}

// D-15: a slow job does not delay fast ones behind it on the same partition, stream or consumer.
func TestSlowJobDoesNotDelayFastOnes(t *testing.T) {
	t.Parallel()
	var gates sync.Map // by subject: closed when the fast ones are done
	gate := func(subject string) chan struct{} {
		c, _ := gates.LoadOrStore(subject, make(chan struct{}))
		return c.(chan struct{})
	}
	f := func(ctx context.Context, j *job.Job) (*job.Result, error) {
		if string(j.Body) == "slow" {
			select {
			case <-ctx.Done():
			case <-gate(j.Subject):
			case <-time.After(patience / 2):
			}
		}
		return &job.Result{Body: j.Body}, nil
	}
	each(t, "", runner(f), func(l *line) {
		l.submit("slow", "slow")
		for i := range 100 {
			l.submit(fmt.Sprint(i), "fast")
		}
		for i := range 100 {
			if m := l.next(l.results, "a fast result"); string(m.Body) != "fast" {
				l.t.Fatalf("the slow job was done before %d fast ones", 100-i)
			}
		}
		close(gate(l.cfg.Routes[0].From))
		if m := l.next(l.results, "the slow result"); string(m.Body) != "slow" {
			l.t.Errorf("result %q", m.Body)
		}
	})
}

// D-10: what cannot be decoded goes to the dead letters with its bytes and the reason, and is acknowledged.
func TestUndecodableMessage(t *testing.T) {
	t.Parallel()
	each(t, ", envelope: drasm", runner(upper), func(l *line) {
		l.submit("", "{not json")
		dead := l.next(l.dead, "the dead letter")
		if string(dead.Body) != "{not json" || dead.Header.Get(transport.HeaderDeadKind) != "invalid" || !strings.Contains(dead.Header.Get(transport.HeaderDeadError), "decode") {
			l.t.Errorf("dead letter %q with %v", dead.Body, dead.Header)
		}
		l.submit("", `{"job_id":"d1","module_id":"m","message":{"type_name":"T","payload":[104,105]}}`)
		l.next(l.results, "the failure result")
		if m := l.next(l.results, "the result"); !strings.Contains(string(m.Body), `"ok":true`) || !strings.Contains(string(m.Body), `"job_id":"d1"`) {
			l.t.Errorf("result %s", m.Body)
		}
		l.noMore(l.dead, "dead letter", 300*time.Millisecond)
	})
}

// a drain lets fifty running jobs finish within its time; nothing is executed twice, nothing is dead-lettered, nothing is lost.
func TestDrainOfTheLine(t *testing.T) {
	t.Parallel()
	for _, b := range brokers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			runs, started := map[string]int{}, make(chan struct{}, 1000)
			f := job.RunnerFunc(func(ctx context.Context, j *job.Job) (*job.Result, error) {
				mu.Lock()
				runs[j.ID]++
				mu.Unlock()
				started <- struct{}{}
				select {
				case <-ctx.Done():
					return nil, ctx.Err()
				case <-time.After(700 * time.Millisecond):
				}
				return &job.Result{Body: j.Body}, nil
			})
			runners := map[string]job.Runner{"m": f}
			head := b.yaml(t)
			l := open(t, head, ", concurrency: 50", runners)
			for i := range 80 {
				l.submit(fmt.Sprint("job", i), "x")
			}
			for range 50 {
				<-started
			}
			// The client of an embedded server goes with the sidecar; what it saw is asked for again afterwards.
			l.stop()
			l.stop = l.start(runners)
			l.connect(l.cfg)
			seen := map[string]bool{}
			for len(seen) < 80 {
				m := l.next(l.results, "a result")
				if m.Header.Get(transport.HeaderOK) != "true" {
					t.Fatalf("a drained job failed: %s", m.Body)
				}
				seen[m.Header.Get(transport.HeaderResultOf)] = true
			}
			l.noMore(l.dead, "dead letter", 200*time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			for id, n := range runs {
				if n != 1 {
					t.Errorf("%s was executed %d times", id, n)
				}
			}
		})
	}
}

// A retry beyond two seconds frees its slot and comes back in time, also when the original carried headers that a broker obeys.
func TestLongRetryIsMoved(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	first := map[string]time.Time{}
	f := func(_ context.Context, j *job.Job) (*job.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		if j.Attempt == 1 {
			first[j.Subject] = time.Now()
			return nil, &job.Error{Kind: job.KindRetry, Err: errors.New("come back"), RetryAfter: 2500 * time.Millisecond}
		}
		return &job.Result{Body: fmt.Appendf(nil, "%d %s", j.Attempt, time.Since(first[j.Subject]).Round(time.Millisecond))}, nil
	}
	each(t, ", concurrency: 1", runner(f), func(l *line) {
		l.submit("", "x", job.Field{Name: "Nats-Msg-Id", Value: "mine"})
		m := l.next(l.results, "the result of the second attempt")
		var attempt int
		var took string
		if _, err := fmt.Sscan(string(m.Body), &attempt, &took); err != nil {
			l.t.Fatal(err)
		}
		d, err := time.ParseDuration(took)
		if err != nil {
			l.t.Fatal(err)
		}
		if attempt != 2 || d < 2500*time.Millisecond || d > 5*time.Second {
			l.t.Errorf("attempt %d after %s, want the second after 2.5 s", attempt, d)
		}
		if got := m.Header.Get(transport.HeaderResultOf); got != "mine" {
			l.t.Errorf("the moved job's id is %q, want %q", got, "mine")
		}
		l.noMore(l.results, "result", 300*time.Millisecond)
		l.noMore(l.dead, "dead letter", 100*time.Millisecond)
	})
}

// a job's own backoff holds for all its retries, those that are moved through the broker included.
func TestBackoffOfAJob(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	runs := map[string][]time.Time{}
	f := func(_ context.Context, j *job.Job) (*job.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		if runs[j.Subject] = append(runs[j.Subject], time.Now()); j.Attempt < 3 {
			return nil, job.Errorf(job.KindRetry, "again")
		}
		all := runs[j.Subject]
		return &job.Result{Body: fmt.Appendf(nil, "%s %s", all[1].Sub(all[0]), all[2].Sub(all[1]))}, nil
	}
	each(t, ", retry: {max_attempts: 3, backoff: 1ms, jitter: none}", runner(f), func(l *line) {
		l.submit("a", "x", job.Field{Name: "Wasm-Backoff", Value: "2100ms"}, job.Field{Name: "Wasm-Max-Backoff", Value: "2500ms"})
		var waits [2]string
		if _, err := fmt.Sscan(string(l.next(l.results, "the result of the third attempt").Body), &waits[0], &waits[1]); err != nil {
			l.t.Fatal(err)
		}
		for i, want := range []time.Duration{2100 * time.Millisecond, 2500 * time.Millisecond} {
			if got, err := time.ParseDuration(waits[i]); err != nil || got < want || got > want+5*time.Second {
				l.t.Errorf("it waited %s after attempt %d, want %s", waits[i], i+1, want)
			}
		}
	})
}

// what is delayed or to be delivered at a time fires within a second of being due, and not before, also when the sidecar and, where
// it is ours, the server with all that waits in it were restarted meanwhile.
func TestDelayedJob(t *testing.T) {
	t.Parallel()
	f := func(_ context.Context, j *job.Job) (*job.Result, error) {
		return &job.Result{Body: []byte(time.Now().Format(time.RFC3339Nano))}, nil
	}
	for _, b := range brokers {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var server *services.Server
			head := ""
			switch b.name {
			case config.Redis:
				server = services.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
				head = fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", server.Addr)
			case config.NATS:
				server = services.StartNATS(t, "")
				head = fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\"}\n", server.Addr)
			default:
				head = b.yaml(t)
			}
			l := open(t, head, "", runner(f)())
			began := time.Now()
			dues := map[string]time.Time{"delay": began.Add(5 * time.Second), "at": began.Add(5200 * time.Millisecond)}
			l.submit("at", "x", job.Field{Name: transport.HeaderDeliverAt, Value: dues["at"].Format(time.RFC3339Nano)})
			l.submit("delay", "x", job.Field{Name: transport.HeaderDelay, Value: "5s"})
			sent := time.Since(began) // a delay counts from when the message was written
			l.submit("now", "x")
			l.next(l.results, "the result of a job that came after them")
			l.stop()
			if server != nil {
				server.Stop()
				server.Start()
			}
			l.restart()
			l.connect(l.cfg)
			up := time.Now()
			slow := busyness(t)
			for range 3 {
				m := l.next(l.results, "a delayed result")
				id := m.Header.Get(transport.HeaderResultOf)
				if id == "now" {
					continue // the tail begins anew
				}
				at, err := time.Parse(time.RFC3339Nano, string(m.Body))
				if err != nil {
					t.Fatal(err)
				}
				due := dues[id]
				early := due.Sub(at)
				if up.After(due) {
					due = up
				}
				t.Logf("%s fired %s after it was due", id, at.Sub(due))
				if late := at.Sub(due); early > 5*time.Millisecond || late > time.Second+sent+slow() {
					t.Errorf("%s fired %s after it was due", id, late)
				}
			}
		})
	}
}

// busyness says, whenever it is asked, how late this machine has been with its timers so far: ten times the most.
func busyness(t *testing.T) func() time.Duration {
	var most atomic.Int64
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for last := time.Now(); t.Context().Err() == nil; {
			<-tick.C
			now := time.Now()
			most.Store(max(most.Load(), int64(now.Sub(last)-10*time.Millisecond)))
			last = now
		}
	}()
	return func() time.Duration { return 10 * time.Duration(most.Load()) }
}

// D-08 on real stores: one id published ten times is executed once.
func TestDuplicateIDs(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	runs := map[string]int{}
	f := func(_ context.Context, j *job.Job) (*job.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		if j.ID == "last" {
			return &job.Result{Body: []byte("last")}, nil
		}
		runs[j.Subject]++
		return &job.Result{Body: fmt.Appendf(nil, "run %d", runs[j.Subject])}, nil
	}
	each(t, "", runner(f), func(l *line) {
		for range 10 {
			l.submit("same", "x")
		}
		if m := l.next(l.results, "a result"); string(m.Body) != "run 1" {
			l.t.Errorf("result %s", m.Body)
		}
		l.submit("last", "x")
		// A broker may recognise the repeated results by their message id and keep one.
		for {
			m := l.next(l.results, "a result")
			if string(m.Body) == "last" {
				break
			}
			if string(m.Body) != "run 1" {
				l.t.Errorf("another result: %s", m.Body)
			}
		}
	})
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for s, n := range runs {
			if n != 1 {
				t.Errorf("%s: %d executions", s, n)
			}
		}
	})
}

// Jobs of one key run one after another in the order in which they came, also across retries and when the sidecar that runs them
// makes way for another.
func TestOrderByKeyAcrossSidecars(t *testing.T) {
	t.Parallel()
	const keys, each = 5, 40
	for _, b := range brokers[1:] {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			running, next, failed := map[string]int{}, map[string]int{}, map[string]bool{}
			ran, all := 0, make(chan struct{})
			some := make(chan struct{})
			run := func(_ context.Context, j *job.Job) (*job.Result, error) {
				n, err := strconv.Atoi(string(j.Body))
				if err != nil {
					return nil, err
				}
				mu.Lock()
				defer mu.Unlock()
				if running[j.Key]++; running[j.Key] > 1 {
					t.Errorf("two jobs of key %s at once", j.Key)
				}
				mu.Unlock()
				time.Sleep(time.Millisecond) // as long as a job takes
				mu.Lock()
				running[j.Key]--
				if id := j.Key + "/" + string(j.Body); n%7 == 3 && !failed[id] {
					failed[id] = true
					return nil, job.Errorf(job.KindTrap, "the first time")
				}
				if n != next[j.Key] {
					t.Errorf("key %s: job %d ran, want %d", j.Key, n, next[j.Key])
				}
				next[j.Key] = n + 1
				switch ran++; ran {
				case keys * each / 4:
					close(some)
				case keys * each:
					close(all)
				}
				return &job.Result{Body: j.Body}, nil
			}
			runners := map[string]job.Runner{"m": job.RunnerFunc(run)}
			l := open(t, b.yaml(t), ", order: key, concurrency: 16, retry: {max_attempts: 3, backoff: 20ms}", runners)
			stopOther := l.start(runners)
			defer stopOther()
			for n := range each {
				for k := range keys {
					m := &transport.Message{Subject: l.cfg.Routes[0].From, Key: fmt.Append(nil, "key", k), Body: fmt.Append(nil, n)}
					m.Header = job.Header{{Name: transport.HeaderKey, Value: string(m.Key)}}
					if err := l.client.Publisher().Publish(t.Context(), m); err != nil {
						t.Fatal(err)
					}
				}
			}
			await := func(what string, c <-chan struct{}) {
				select {
				case <-c:
				case <-time.After(patience):
					mu.Lock()
					defer mu.Unlock()
					t.Fatalf("%s: %d jobs have run", what, ran)
				}
			}
			await("some jobs", some)
			l.stop()
			await("all jobs", all)
		})
	}
}
