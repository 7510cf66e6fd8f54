// Command demo shows the sidecar at work: it starts the given binary on the embedded NATS server, sends jobs of three example
// modules, written in three languages, through it, and prints what became of them. It exits 0 only if every job had its one
// right result.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/cheggaaa/pb/v3"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func main() {
	binary := flag.String("sidecar", "bin/wasmsidecar", "the sidecar to start")
	jobs := flag.Int("jobs", 10_000, "how many jobs to send")
	flag.Parse()
	if err := demo(*binary, *jobs); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// kind is a module of the demo: a job's input and the output that is right for it.
type kind struct {
	module, language string
	input            func(i int) string
	output           func(i int) string
}

var kinds = []kind{
	{"echo", "C", func(i int) string { return fmt.Sprintf("job %d", i) }, func(i int) string { return fmt.Sprintf("job %d", i) }},
	{"upper", "Rust", func(i int) string { return fmt.Sprintf("job %d", i) }, func(i int) string { return fmt.Sprintf("JOB %d", i) }},
	{"adder", "AssemblyScript", func(i int) string { return drasm("AddRequest", fmt.Sprintf(`{"a":%d,"b":1}`, i)) }, func(i int) string { return fmt.Sprintf(`{"sum":%d}`, i+1) }},
}

// drasm wraps a payload in the envelope that the adder's route speaks.
func drasm(typeName, payload string) string {
	nums := make([]int, len(payload))
	for i := range nums {
		nums[i] = int(payload[i])
	}
	b, err := json.Marshal(map[string]any{"module_id": "adder", "message": map[string]any{"type_name": typeName, "payload": nums}})
	if err != nil {
		panic(err) // a map of numbers and strings cannot fail
	}
	return string(b)
}

const setup = `transport: embedded
embedded: {dir: %q, listen: %q}
admin: {listen: off}
log: {level: warn}
modules:
  echo: {source: examples/guests/echo.wasm}
  upper: {source: examples/guests/upper.wasm}
  adder: {source: examples/guests/adder.wasm}
routes:
  - {from: jobs.echo, module: echo, to: results}
  - {from: jobs.upper, module: upper, to: results}
  - {from: jobs.adder, module: adder, to: results, envelope: drasm}
`

func demo(binary string, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "wasmsidecar-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	text := fmt.Sprintf(setup, filepath.Join(dir, "data"), freeAddr())
	file := filepath.Join(dir, "demo.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	cfg, err := config.Parse(file, []byte(text), nil)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, binary, "--config", file)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w; run make build first", binary, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s, err := send(ctx, cfg, n, ended)
	if err != nil {
		cancel()
		<-ended //nolint:errcheck // err says why it was ended
		return err
	}
	s.print(n)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the sidecar: %w", err)
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("the sidecar did not drain: %w", err)
	}
	return s.verdict()
}

func freeAddr() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:4222"
	}
	defer ln.Close()
	return ln.Addr().String()
}

// score is what became of the jobs of one module.
type score struct {
	ok, failed, dead, wrong, twice int
	latency                        []time.Duration
}

type scores struct {
	mu    sync.Mutex
	of    map[string]*score
	sent  map[string]time.Time
	got   map[string]int
	begun time.Time
	took  time.Duration
}

// send submits n jobs, at most 256 of them unanswered at a time, and collects what comes back.
func send(ctx context.Context, cfg *config.Config, n int, ended <-chan error) (*scores, error) {
	t, closeTransport, err := sidecar.Dial(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer closeTransport()
	var results, dead transport.Tail
	for results == nil || dead == nil {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("the sidecar ended before it was ready: %w", errors.Join(err, errors.New("its messages are above")))
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if results, err = t.Tail(ctx, "results", true); err != nil {
			continue
		}
		if dead, err = t.Tail(ctx, "jobs.adder_dlq", true); err != nil {
			results.Close()
			results = nil
		}
	}
	defer results.Close()
	defer dead.Close()

	s := &scores{of: map[string]*score{}, sent: map[string]time.Time{}, got: map[string]int{}, begun: time.Now()}
	for _, k := range kinds {
		s.of[k.module] = &score{}
	}
	slots := make(chan struct{}, 256)
	sendErr := make(chan error, 1)
	sctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { sendErr <- s.submit(sctx, t, n, slots) }()
	var bar *pb.ProgressBar // only where somebody can see it move
	if isTerminal(os.Stderr) {
		bar = pb.Full.New(n).SetWriter(os.Stderr).Set(pb.CleanOnFinish, true).Start()
	}
	for done := 0; done < n; {
		m, err := results.Next(ctx)
		if err != nil {
			return nil, fmt.Errorf("%d of %d results came: %w", done, n, err)
		}
		if s.take(m) {
			done++
			<-slots
			if bar != nil {
				bar.Increment()
			}
		}
	}
	s.took = time.Since(s.begun)
	if bar != nil {
		bar.Finish()
	}
	if err := <-sendErr; err != nil {
		return nil, err
	}
	quiet, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	for { // a result too many, or a dead letter, would be here by now
		m, err := results.Next(quiet)
		if err != nil {
			break
		}
		s.take(m)
	}
	for {
		m, err := dead.Next(quiet)
		if err != nil {
			return s, nil
		}
		s.of[moduleOf(m.Header.Get(transport.HeaderJobID))].dead++
	}
}

func (s *scores) submit(ctx context.Context, t transport.Transport, n int, slots chan struct{}) error {
	var wg sync.WaitGroup
	errs := make(chan error, 1)
	for i := range n {
		k := kinds[i%len(kinds)]
		id := fmt.Sprintf("%s-%d", k.module, i)
		m := &transport.Message{Subject: "jobs." + k.module, Body: []byte(k.input(i)), Header: job.Header{{Name: transport.HeaderJobID, Value: id}}}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		case err := <-errs:
			return err
		}
		s.mu.Lock()
		s.sent[id] = time.Now()
		s.mu.Unlock()
		wg.Go(func() {
			if err := t.Publisher().Publish(ctx, m); err != nil {
				select {
				case errs <- fmt.Errorf("submit %s: %w", id, err):
				default:
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func moduleOf(id string) string {
	module, _, _ := strings.Cut(id, "-")
	return module
}

// take judges a result and says whether it was the job's first.
func (s *scores) take(m *transport.Message) bool {
	id := m.Header.Get(transport.HeaderResultOf)
	s.mu.Lock()
	defer s.mu.Unlock()
	sc := s.of[moduleOf(id)]
	if sc == nil {
		return false
	}
	if s.got[id]++; s.got[id] > 1 {
		sc.twice++
		return false
	}
	sc.latency = append(sc.latency, time.Since(s.sent[id]))
	switch {
	case m.Header.Get(transport.HeaderOK) != "true":
		sc.failed++
	case !right(id, m.Body):
		sc.wrong++
	default:
		sc.ok++
	}
	return true
}

func right(id string, body []byte) bool {
	module, num, _ := strings.Cut(id, "-")
	var i int
	if _, err := fmt.Sscan(num, &i); err != nil {
		return false
	}
	k := kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.module == module })]
	if module != "adder" {
		return string(body) == k.output(i)
	}
	// A DRASM result: its output is the JSON of a message, whose payload is the answer, both as arrays of byte values.
	var msg struct {
		Output []int `json:"output"`
	}
	var inner struct {
		Payload []int `json:"payload"`
	}
	return json.Unmarshal(body, &msg) == nil && json.Unmarshal(bytesOf(msg.Output), &inner) == nil && string(bytesOf(inner.Payload)) == k.output(i)
}

func bytesOf(nums []int) []byte {
	b := make([]byte, len(nums))
	for i, n := range nums {
		b[i] = byte(n)
	}
	return b
}

func (s *scores) print(n int) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "module\tlanguage\tjobs\tok\tfailed\tdead-lettered\tjobs/s\tp50\tp99\t")
	row := func(name, lang string, sc *score) {
		slices.Sort(sc.latency)
		at := func(q float64) time.Duration {
			if len(sc.latency) == 0 {
				return 0
			}
			return sc.latency[int(q*float64(len(sc.latency)-1))].Round(10 * time.Microsecond)
		}
		total := sc.ok + sc.failed + sc.wrong
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%.0f\t%s\t%s\t\n", name, lang, total, sc.ok, sc.failed+sc.wrong, sc.dead, float64(total)/s.took.Seconds(), at(.5), at(.99))
	}
	all := &score{}
	for _, k := range kinds {
		sc := s.of[k.module]
		row(k.module, k.language, sc)
		all.ok, all.failed, all.dead, all.wrong = all.ok+sc.ok, all.failed+sc.failed, all.dead+sc.dead, all.wrong+sc.wrong
		all.latency = append(all.latency, sc.latency...)
	}
	row("all", "", all)
	if err := w.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "demo: print the table:", err)
	}
}

// verdict is nil only if every job had its one right result.
func (s *scores) verdict() error {
	for _, k := range kinds {
		if sc := s.of[k.module]; sc.failed+sc.wrong+sc.dead+sc.twice > 0 {
			return fmt.Errorf("%s: %d failed, %d wrong, %d dead-lettered, %d results too many", k.module, sc.failed, sc.wrong, sc.dead, sc.twice)
		}
	}
	fmt.Println("every job had its one right result")
	return nil
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
