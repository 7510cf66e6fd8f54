package runtime

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tetratelabs/wazero/experimental"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// with returns a module whose instances are reset by m, and what its engine logs.
func with(t *testing.T, m means, guest string) (*Module, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	e, err := New(Config{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	e.means = func() means { return m }
	t.Cleanup(func() {
		if err := e.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	mod, err := e.Load(t.Context(), ModuleConfig{Name: guest, Wasm: guests.Bytes(guest)})
	if err != nil {
		t.Fatal(err)
	}
	return mod, &log
}

func stains(t *testing.T, m *Module, mode byte, s *seat) {
	t.Helper()
	r, err := m.Run(context.WithValue(t.Context(), seatKey{}, s), &job.Job{ID: "1", Body: []byte{mode}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Body[0]|r.Body[4]|r.Body[8]|r.Body[16] != 0 || r.Body[12] != 4 || r.Body[20] != 1 {
		t.Fatalf("the guest finds % x", r.Body)
	}
}

// Where memories cannot be made smaller, an instance that has grown is given up; the others are used again.
func TestNoShrink(t *testing.T) {
	t.Parallel()
	m, _ := with(t, means{memories: portable{}}, "stains")
	for range 3 {
		stains(t, m, 0, nil)
	}
	if idle := Idle(m); len(idle) != 1 || idle[0] != 3 {
		t.Errorf("instances %v, want one that had three jobs", idle)
	}
	stains(t, m, 7, nil)
	if idle := Idle(m); len(idle) != 0 {
		t.Errorf("instances %v after one has grown, want none", idle)
	}
	stains(t, m, 0, nil)
}

// tight memories can put back images of one page only.
type tight struct{ portable }

func (tight) most() int { return pageSize }

// A module whose image is too large to be put back runs fresh, and the log says so once.
func TestImageTooLarge(t *testing.T) {
	t.Parallel()
	m, log := with(t, means{memories: tight{}, shrinks: true}, "stains")
	for range 3 {
		stains(t, m, 0, nil)
	}
	if idle := Idle(m); len(idle) != 0 {
		t.Errorf("instances %v are kept", idle)
	}
	if n := strings.Count(log.String(), "cannot be reset"); n != 1 || !strings.Contains(log.String(), "256 KiB of memory") {
		t.Errorf("told %d times, want once: %s", n, log)
	}
}

// The same of a module that would be refused for its files too.
func TestImageTooLargeWithFiles(t *testing.T) {
	t.Parallel()
	// Has 40 pages, opens the file a in _initialize, and does nothing in handle.
	const guest = "\x00asm\x01\x00\x00\x00\x01\x11\x02`\x09\x7f\x7f\x7f\x7f\x7f~~\x7f\x7f\x01\x7f`\x00\x00\x02$\x01\x16" +
		"wasi_snapshot_preview1\x09path_open\x00\x00\x03\x03\x02\x01\x01\x05\x03\x01\x00(\x07!\x03\x06memory\x02\x00\x0b" +
		"_initialize\x00\x01\x06handle\x00\x02\x0a \x02\x1b\x00A\x03A\x00A\xe4\x00A\x01A\x00B\x02B\x00A\x00A\x00\x10\x00\x04@\x00\x0b" +
		"\x0b\x02\x00\x0b\x0b\x08\x01\x00A\xe4\x00\x0b\x01a"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, by := range []memories{tight{}, portable{}} {
		m, log := with(t, means{memories: by, shrinks: true}, "stains")
		m, err := m.engine.Load(t.Context(), ModuleConfig{Name: "large", Wasm: []byte(guest), Allow: Allow{Files: []Dir{{Dir: dir, As: "/"}}}})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := m.Run(t.Context(), &job.Job{ID: "1"}); err != nil {
				t.Error(err)
			}
		}
		if n := strings.Count(log.String(), "cannot be reset"); n != 1 || len(Idle(m)) != 0 {
			t.Errorf("told %d times, want once; instances %v: %s", n, Idle(m), log)
		}
	}
}

// Where programs cannot be frozen they run from their beginning, at the level that asks for it too.
func TestNoFreezing(t *testing.T) {
	t.Parallel()
	m, log := with(t, means{memories: portable{}, shrinks: true}, "frost")
	frozen, err := m.engine.Load(t.Context(), ModuleConfig{Name: "wanted", Wasm: guests.Bytes("frost"), Isolation: IsolationFrozen})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Module{m, frozen} {
		for range 3 {
			if r, err := m.Run(t.Context(), &job.Job{ID: "1", Body: []byte("x")}); err != nil || string(r.Body) != "1 x" {
				t.Errorf("%v, %v", r, err)
			}
		}
		if Frozen(m) != 0 || len(Idle(m)) != 1 {
			t.Errorf("instances %v, of them %d frozen; want one that is not", Idle(m), Frozen(m))
		}
	}
	if n := strings.Count(log.String(), "this system cannot stop a call and go on in another"); n != 2 || strings.Count(log.String(), "level=INFO") != 1 {
		t.Errorf("the log says it %d times, want once of each, and louder where it was asked for: %s", n, log)
	}
}

// Snapshots that are not as those of the wazero that this was written for are not used.
func TestStrangeSnapshots(t *testing.T) {
	t.Parallel()
	type other struct {
		experimental.Snapshot
		stack []uint64
	}
	type none struct{ experimental.Snapshot }
	type number struct {
		experimental.Snapshot
		stack int
	}
	for _, s := range []experimental.Snapshot{other{}, &other{}, none{}, number{}, restorer(nil)} {
		if _, err := stackOf(s); err == nil {
			t.Errorf("a %T has a stack", s)
		}
	}
}

// restorer is a snapshot that is a function.
type restorer func([]uint64)

func (r restorer) Restore(result []uint64) { r(result) }

// A job for which there is no memory fails, and says that it is not the guest's fault.
func TestNoMemory(t *testing.T) {
	t.Parallel()
	m, _ := with(t, means{memories: broken{}, shrinks: true}, "stains")
	_, err := m.Run(t.Context(), &job.Job{ID: "1"})
	if job.KindOf(err) != job.KindInternal || !strings.Contains(err.Error(), "no memory today") {
		t.Errorf("kind %q: %v", job.KindOf(err), err)
	}
}

// An instance that was not needed for a while goes when another comes back.
func TestIdleInstancesGo(t *testing.T) {
	t.Parallel()
	m, _ := with(t, means{memories: portable{}, shrinks: true}, "stains")
	p := m.instances.(*pool)
	seats := make([]*seat, 3)
	for i := range seats { // in use at once
		var err error
		if seats[i], _, err = m.admit(t.Context(), nil, m.own); err != nil {
			t.Fatal(err)
		}
		stains(t, m, 0, seats[i])
	}
	for i, s := range seats {
		s.used.Store(time.Now().Add(time.Duration(i-3) * idleFor).UnixNano())
		s.release()
	}
	p.mu.Lock()
	for i := range p.idle {
		p.idle[i].since = time.Now().Add(-2 * idleFor)
	}
	p.mu.Unlock()
	old := p.waiting()
	if len(old) != len(seats) {
		t.Fatalf("%d instances wait", len(old))
	}
	p.seats.swept.Store(0)
	stains(t, m, 0, nil)
	if idle := Idle(m); len(idle) != 1 || idle[0] != 2 {
		t.Errorf("instances %v, want the busy one only", idle)
	}
	closed := 0
	for _, in := range old {
		if in.module.IsClosed() {
			closed++
		}
	}
	if closed != len(old)-1 {
		t.Errorf("%d of %d instances are closed", closed, len(old))
	}
}

// However many instances there were at once, only some wait for further jobs.
func TestIdleInstancesAreBounded(t *testing.T) {
	t.Parallel()
	m, _ := with(t, means{memories: portable{}, shrinks: true}, "stains")
	p := m.instances.(*pool)
	var used []*instance
	for range maxIdle + 5 {
		r := m.newRun(t.Context(), &job.Job{ID: "1"}, m.own, time.Now().Add(time.Minute), nil)
		defer r.close()
		in, err := p.get(r.context(), r)
		if err != nil {
			t.Fatal(err)
		}
		used = append(used, in)
	}
	for _, in := range used {
		p.put(nil, in, nil)
	}
	if idle := Idle(m); len(idle) != maxIdle {
		t.Errorf("%d instances wait, want %d", len(idle), maxIdle)
	}
	for i, in := range used {
		if in.module.IsClosed() != (i < 5) {
			t.Errorf("instance %d is closed: %t", i, i >= 5)
		}
	}
}

// A hundred thousand jobs, some of which crash or grow, leave the process as large as a tenth of them did. WASMSIDECAR_SOAK is
// another number of jobs; ten million take some minutes.
func TestSoak(t *testing.T) {
	jobs := 100_000
	if raceEnabled {
		jobs /= 20
	}
	if s := os.Getenv("WASMSIDECAR_SOAK"); s != "" {
		var err error
		if jobs, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close(t.Context()) }()
	var modules []*Module
	for _, guest := range []string{"echo", "upper", "upper-c", "stains"} {
		limits := DefaultLimits()
		limits.Memory, limits.Depth = 8<<20, 1000
		m, err := e.Load(t.Context(), ModuleConfig{Name: guest, Wasm: guests.Bytes(guest), Limits: limits})
		if err != nil {
			t.Fatal(err)
		}
		modules = append(modules, m)
	}
	body := bytes.Repeat([]byte("x"), 1024)
	run := func(from, to int) {
		for i := from; i < to; i++ {
			j := &job.Job{ID: "1", Body: body}
			if i%64 > 0 {
				if r, err := modules[i%3].Run(t.Context(), j); err != nil || len(r.Body) != len(body) {
					t.Fatalf("job %d: %v", i, err)
				}
				continue
			}
			j.Body = []byte{[...]byte{0, 1, 3, 5, 6, 7, 8}[i/64%7]}
			_, _ = modules[3].Run(t.Context(), j)
		}
	}
	run(0, jobs/10)
	before := resident(t)
	run(jobs/10, jobs/2)
	middle := resident(t)
	run(jobs/2, jobs)
	after := resident(t)
	t.Logf("%d MiB resident after a tenth of %d jobs, %d MiB after half of them, %d MiB after all", before>>20, jobs, middle>>20, after>>20)
	if after > before+16<<20 {
		t.Errorf("resident memory has grown from %d to %d MiB", before>>20, after>>20)
	}
}

// An instance through which very much has gone is not used again; what goes through it is counted.
func TestBytesWearOut(t *testing.T) {
	t.Parallel()
	m, _ := with(t, means{memories: portable{}, shrinks: true}, "echo")
	echo := func() {
		if _, err := m.Run(t.Context(), &job.Job{ID: "1", Body: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	echo()
	p := m.instances.(*pool)
	in := p.waiting()[0]
	if in.bytes != 2000 {
		t.Errorf("%d bytes are counted of a job that read and wrote 1000", in.bytes)
	}
	in.bytes = maxBytes - 2001
	echo()
	if idle := Idle(m); len(idle) != 1 || idle[0] != 2 {
		t.Errorf("instances %v, want one that had two jobs", idle)
	}
	echo()
	if idle := Idle(m); len(idle) != 0 || !in.module.IsClosed() {
		t.Errorf("instances %v are kept", idle)
	}
}

// The environment variable has the portable path taken, on systems that have another.
func TestPortableByEnvironment(t *testing.T) {
	t.Setenv("WASMSIDECAR_PORTABLE", "1")
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close(t.Context()) }()
	if _, ok := e.means().memories.(portable); !ok {
		t.Fatalf("memories are %T", e.means().memories)
	}
	m, err := e.Load(t.Context(), ModuleConfig{Name: "stains", Wasm: guests.Bytes("stains")})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if r, err := m.Run(t.Context(), &job.Job{Body: []byte{0}}); err != nil || r.Body[0] != 0 {
			t.Fatalf("%v, %v", r, err)
		}
	}
}

// A job that ends after its module was closed keeps no seat, for which closing would wait.
func TestNoSeatAfterEnd(t *testing.T) {
	t.Parallel()
	m, _ := with(t, means{memories: portable{}, shrinks: true}, "stains")
	s, _, err := m.admit(t.Context(), nil, m.own)
	if err != nil {
		t.Fatal(err)
	}
	stains(t, m, 0, s)
	p := m.instances.(*pool)
	p.end()
	s.release()
	if reserved, _ := p.seats.kept(); reserved != 0 || len(p.seats.row) != 0 {
		t.Errorf("%d bytes are reserved by %d seats", reserved, len(p.seats.row))
	}
}

// Seats of a module that nobody uses any more are given back when memory becomes scarce, so that others keep theirs.
func TestOldSeatsGo(t *testing.T) {
	t.Parallel()
	e, err := New(Config{MemoryBudget: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close(context.WithoutCancel(t.Context())) })
	seat := func(name string) (*seat, *seats) {
		limits := DefaultLimits()
		limits.Memory = 3 << 20
		m, err := e.Load(t.Context(), ModuleConfig{Name: name, Wasm: guests.Bytes("stains"), Limits: limits})
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := m.admit(t.Context(), nil, m.own)
		if err != nil {
			t.Fatal(err)
		}
		stains(t, m, 0, s)
		return s, &m.instances.(*pool).seats
	}
	a, unused := seat("unused")
	b, busy := seat("busy")
	a.used.Store(time.Now().Add(-2 * idleFor).UnixNano())
	e.budget.running.Add(-3 << 20) // as if b were not there yet
	a.release()
	e.budget.running.Add(3 << 20)
	if reserved, _ := unused.kept(); reserved != 3<<20 {
		t.Fatalf("%d bytes are reserved by seats", reserved)
	}
	b.release()
	if reserved, _ := unused.kept(); reserved != 0 {
		t.Errorf("%d bytes are reserved for nobody", reserved)
	}
	if reserved, _ := busy.kept(); reserved != 0 {
		t.Errorf("%d bytes are reserved while memory is scarce", reserved)
	}
}

// Seats that only jobs with other limits could use do not keep those out that are in use.
func TestSeatsOfOtherLimitsGo(t *testing.T) {
	t.Parallel()
	m, _ := with(t, means{memories: portable{}, shrinks: true}, "stains")
	p := m.instances.(*pool)
	stains(t, m, 0, nil) // from here on jobs need what they may have
	l := m.Limits()
	l.Memory /= 2
	tighter := m.Within(l)
	var all []*seat
	for range goruntime.GOMAXPROCS(0) + 1 {
		s, _, err := m.admit(t.Context(), nil, m.own)
		if err != nil {
			t.Fatal(err)
		}
		stains(t, m, 0, s)
		s.used.Store(time.Now().Add(-2 * idleFor).UnixNano())
		all = append(all, s)
	}
	for _, s := range all {
		s.release()
	}
	p.seats.swept.Store(0)
	if _, err := tighter.Run(t.Context(), &job.Job{ID: "1", Body: []byte{0}}); err != nil {
		t.Fatal(err)
	}
	if reserved, _ := p.seats.kept(); reserved != l.Memory {
		t.Errorf("%d bytes are reserved, want %d for the next job like the last", reserved, l.Memory)
	}
}

// A seat that is wanted back is given back, also when somebody looks for old ones at that moment.
func TestSeatsAreGivenBackWhileOldOnesAreLookedFor(t *testing.T) {
	t.Parallel()
	m, _ := with(t, means{memories: portable{}, shrinks: true}, "stains")
	p := m.instances.(*pool)
	p.budget.wanted.Add(1) // by a job that has looked for free seats already
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			p.seats.clear(p, time.Now().Add(-idleFor))
		}
	})
	for i := range 20_000 {
		s, _, err := m.admit(t.Context(), nil, m.own)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			stains(t, m, 0, s)
		} else if !s.take(p.take()) {
			t.Fatal("no instance")
		}
		s.used.Store(time.Now().UnixNano())
		s.release()
		if reserved, _ := p.seats.kept(); reserved != 0 {
			t.Fatalf("after %d jobs %d bytes are reserved, which somebody waits for", i+1, reserved)
		}
	}
}
