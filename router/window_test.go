package router_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/router"
)

// feed is a source that hands out what it is told to, and writes down how each delivery was settled.
type feed struct {
	ch    chan *parcel
	lease time.Duration

	mu       sync.Mutex
	settled  map[string]string // by position
	order    []string          // positions in the order of settlement
	extended int
	limits   []int
	failing  error // of Retry
	broken   error // of Fetch
	fetches  int
}

type parcel struct {
	f    *feed
	msg  transport.Message
	pos  string
	lost atomic.Bool
}

func newFeed() *feed {
	return &feed{ch: make(chan *parcel, 10000), settled: map[string]string{}}
}

func (f *feed) put(pos, key string, h ...job.Field) {
	p := &parcel{f: f, pos: pos, msg: transport.Message{Subject: "jobs", Body: []byte(pos), Header: h}}
	if key != "" {
		p.msg.Key = []byte(key)
	}
	f.ch <- p
}

func (f *feed) Fetch(ctx context.Context, limit int) ([]transport.Delivery, error) {
	f.mu.Lock()
	f.limits = append(f.limits, limit)
	f.fetches++
	broken := f.broken
	f.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	var out []transport.Delivery
	select {
	case p := <-f.ch:
		out = append(out, p)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for len(out) < limit {
		select {
		case p := <-f.ch:
			out = append(out, p)
		default:
			return out, nil
		}
	}
	return out, nil
}

func (f *feed) Extend(_ context.Context, ds []transport.Delivery) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.extended += len(ds)
	return nil
}
func (f *feed) Lease() time.Duration        { return f.lease }
func (f *feed) Close(context.Context) error { return nil }

func (f *feed) settle(p *parcel, how string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if was, twice := f.settled[p.pos]; twice {
		panic(fmt.Sprintf("%s settled twice: %s, %s", p.pos, was, how))
	}
	f.settled[p.pos] = how
	f.order = append(f.order, p.pos)
}

func (f *feed) count(how string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, s := range f.settled {
		if s == how {
			n++
		}
	}
	return n
}

// how says how a delivery was settled; "" when it is not.
func (f *feed) how(pos string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settled[pos]
}

// all returns the positions in the order of their settlement.
func (f *feed) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.order)
}

func (p *parcel) Message() *transport.Message { return &p.msg }
func (p *parcel) Position() string            { return p.pos }
func (p *parcel) Published() time.Time        { return time.Time{} }
func (p *parcel) Redelivered() bool           { return false }
func (p *parcel) Lost() bool                  { return p.lost.Load() }
func (p *parcel) Ack()                        { p.f.settle(p, "ack") }
func (p *parcel) Dead(string)                 { p.f.settle(p, "dead") }
func (p *parcel) Release()                    { p.f.settle(p, "release") }
func (p *parcel) Retry(_ context.Context, after time.Duration, m *transport.Message) error {
	p.f.mu.Lock()
	err := p.f.failing
	p.f.mu.Unlock()
	if err == nil {
		p.f.settle(p, "retry "+after.String()+" "+m.Header.Get(transport.HeaderMsgID))
	}
	return err
}

type window struct {
	*feed
	w    *router.Window
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, cfg router.WindowConfig, handle job.Handler) *window {
	t.Helper()
	src := newFeed()
	src.lease = 3 * time.Second
	return startOn(t, src, cfg, handle)
}

// startOn is start over a source of the test's own.
func startOn(t *testing.T, src *feed, cfg router.WindowConfig, handle job.Handler) *window {
	t.Helper()
	d := &transport.Decoder{Route: "jobs", Module: "m"}
	cfg.Route, cfg.Decode, cfg.Handle, cfg.Log = "jobs", d.Decode, handle, slog.New(slog.DiscardHandler)
	win := &window{feed: src, done: make(chan error, 1)}
	w, err := router.NewWindow(win.feed, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	win.w, win.stop = w, stop
	go func() { win.done <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-win.done
	})
	return win
}

// end drains and waits for the end.
func (w *window) end(t *testing.T) {
	t.Helper()
	w.stop()
	if err := <-w.done; err != nil {
		t.Error(err)
	}
	w.done <- nil
}

// S-08: what is in flight is bounded, whatever the source has.
func TestNeverMoreThanLimitInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0
		w := start(t, router.WindowConfig{Limit: 7}, func(context.Context, *job.Exchange) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		})
		for i := range 500 {
			w.put(fmt.Sprint(i), "")
		}
		time.Sleep(time.Second)
		if w.count("ack") != 500 || most != 7 {
			t.Fatalf("%d acked, %d at once: want 500 and 7", w.count("ack"), most)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if m := slices.Max(w.limits); m > 7 {
			t.Fatalf("asked for %d messages with 7 slots", m)
		}
	})
}

func TestSlowJobDoesNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, router.WindowConfig{Limit: 8}, func(_ context.Context, x *job.Exchange) error {
			if string(x.Job.Body) == "slow" {
				time.Sleep(3 * time.Second)
			}
			return nil
		})
		w.put("slow", "")
		for i := range 100 {
			w.put(fmt.Sprint(i), "")
		}
		time.Sleep(time.Millisecond)
		if n := w.count("ack"); n != 100 {
			t.Fatalf("%d fast jobs are done while the slow one runs, want 100", n)
		}
	})
}

func TestLeaveGivesTheSlotBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		trips := map[string]int{}
		var mu sync.Mutex
		w := start(t, router.WindowConfig{Limit: 1}, func(_ context.Context, x *job.Exchange) error {
			mu.Lock()
			defer mu.Unlock()
			id := string(x.Job.Body)
			if trips[id]++; id == "leased" && trips[id] < 4 {
				x.Settlement = job.Settlement{Verb: job.Leave, After: 10 * time.Second}
			}
			return nil
		})
		w.put("leased", "")
		w.put("other", "")
		time.Sleep(29 * time.Second)
		mu.Lock()
		n := trips["leased"]
		mu.Unlock()
		if w.count("ack") != 1 || n != 3 {
			t.Fatalf("%d acked, %d trips: want the other one done and three trips in 29 s", w.count("ack"), n)
		}
		w.mu.Lock()
		extended := w.extended
		w.mu.Unlock()
		if extended == 0 {
			t.Fatal("a left delivery was not kept alive")
		}
		time.Sleep(2 * time.Second)
		if w.count("ack") != 2 {
			t.Fatal("the left delivery was not presented again")
		}
	})
}

func TestOrderByKeyAcrossRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []string
		failed := false
		w := start(t, router.WindowConfig{Limit: 16, ByKey: true}, func(_ context.Context, x *job.Exchange) error {
			time.Sleep(time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, string(x.Job.Body))
			if string(x.Job.Body) == "a2" && !failed {
				failed = true
				x.Settlement = job.Settlement{Verb: job.Retry, After: time.Minute}
			}
			return nil
		})
		for i := range 5 {
			w.put(fmt.Sprint("a", i), "a")
			w.put(fmt.Sprint("b", i), "b")
			w.put(fmt.Sprint("n", i), "")
		}
		time.Sleep(time.Second)
		if w.count("ack") != 12 {
			t.Fatalf("%d acked, want 12: the failed job's key waits, the others do not", w.count("ack"))
		}
		time.Sleep(time.Minute)
		var a []string
		for _, s := range w.all() {
			if s[0] == 'a' {
				a = append(a, s)
			}
		}
		if fmt.Sprint(a) != "[a0 a1 a2 a3 a4]" || w.count("ack") != 15 {
			t.Fatalf("order of a: %v, %d acked; an ordered job is never moved", a, w.count("ack"))
		}
	})
}

// what runs finishes and is settled, what has not begun is handed back at once, nothing is classified as failed.
func TestDrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		w := start(t, router.WindowConfig{Limit: 50, MaxOut: 200, ByKey: true}, func(ctx context.Context, x *job.Exchange) error {
			if len(x.Job.Key) == 0 {
				x.Settlement = job.Settlement{Verb: job.Leave, After: time.Hour}
				return nil
			}
			<-release
			return ctx.Err()
		})
		for i := range 20 {
			w.put(fmt.Sprint("left", i), "")
		}
		for i := range 50 {
			w.put(fmt.Sprint("run", i), fmt.Sprint(i))
			w.put(fmt.Sprint("behind", i), fmt.Sprint(i))
		}
		time.Sleep(time.Second)
		w.stop()
		synctest.Wait()
		if n := w.count("release"); n < 20 || w.count("ack") != 0 {
			t.Fatalf("%d handed back at once, %d acked", n, w.count("ack"))
		}
		close(release)
		w.end(t)
		running, out := w.w.InFlight()
		if w.count("ack") != 50 || running+out != 0 {
			t.Fatalf("%d acked, want the 50 that ran; %d running, %d out", w.count("ack"), running, out)
		}
	})
}

func TestDrainTimeoutCancelsAndHandsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var cause error
		w := start(t, router.WindowConfig{Limit: 1, DrainTimeout: 5 * time.Second}, func(ctx context.Context, x *job.Exchange) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return ctx.Err()
		})
		w.put("stuck", "")
		synctest.Wait()
		begun := time.Now()
		w.end(t)
		if !errors.Is(cause, router.ErrDrainTimeout) || w.count("release") != 1 || time.Since(begun) != 5*time.Second {
			t.Fatalf("cause %v, settled %v after %s", cause, w.all(), time.Since(begun))
		}
	})
}

// S-09: while store or publisher is away nothing more is fetched; consumption resumes by itself.
func TestTroublePausesConsumption(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		var trips atomic.Int32
		away.Store(true)
		w := start(t, router.WindowConfig{Limit: 4}, func(context.Context, *job.Exchange) error {
			if trips.Add(1); away.Load() {
				return errors.New("store away")
			}
			return nil
		})
		w.put("first", "")
		time.Sleep(time.Second)
		for i := range 100 {
			w.put(fmt.Sprint(i), "")
		}
		time.Sleep(time.Minute)
		if w.w.Trouble() == nil {
			t.Fatal("no trouble is reported")
		}
		if _, out := w.w.InFlight(); out > 5 {
			t.Fatalf("%d deliveries are out while the store is away", out)
		}
		if n := trips.Load(); n > 200 {
			t.Fatalf("%d trips in a minute: a hot loop", n)
		}
		away.Store(false)
		time.Sleep(6 * time.Second)
		if w.count("ack") != 101 || w.w.Trouble() != nil {
			t.Fatalf("%d acked, trouble %v: consumption did not resume", w.count("ack"), w.w.Trouble())
		}
	})
}

func TestLostDeliveryIsNotRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, router.WindowConfig{Limit: 1}, func(context.Context, *job.Exchange) error {
			t.Error("ran")
			return nil
		})
		gone := &parcel{f: w.feed, pos: "gone"}
		gone.lost.Store(true)
		w.ch <- gone
		synctest.Wait()
		if _, out := w.w.InFlight(); out != 0 || len(w.all()) != 0 {
			t.Fatalf("%d out, settled %v", out, w.all())
		}
	})
}

// a job that is not due is moved until then, without running and without an attempt.
func TestScheduledJobIsMoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, router.WindowConfig{Limit: 1}, func(context.Context, *job.Exchange) error {
			t.Error("ran early")
			return nil
		})
		w.put("a", "", job.Field{Name: "wasm-deliver-at", Value: time.Now().Add(time.Hour).Format(time.RFC3339Nano)})
		synctest.Wait()
		if got := w.how("a"); got != "retry 1h0m0s a/jobs/0.0/schedule" {
			t.Fatalf("settled: %q", got)
		}
	})
}

func TestClosedSourceEndsTheWindow(t *testing.T) {
	t.Parallel()
	src := closedSource{newFeed()}
	d := &transport.Decoder{Route: "jobs"}
	w, err := router.NewWindow(src, router.WindowConfig{Route: "jobs", Limit: 1, Decode: d.Decode, Handle: func(context.Context, *job.Exchange) error { return nil }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context()); !errors.Is(err, transport.ErrClosed) {
		t.Fatalf("error %v", err)
	}
}

type closedSource struct{ *feed }

func (closedSource) Fetch(context.Context, int) ([]transport.Delivery, error) {
	return nil, fmt.Errorf("source: %w", transport.ErrClosed)
}

func TestRouterDrainsAllWhenOneFails(t *testing.T) {
	t.Parallel()
	good := newFeed()
	d := &transport.Decoder{Route: "x"}
	win := func(name string) router.WindowConfig {
		return router.WindowConfig{Route: name, Limit: 1, Decode: d.Decode, Log: slog.New(slog.DiscardHandler), Handle: func(context.Context, *job.Exchange) error { return nil }}
	}
	tries := 0
	r, err := router.New(slog.New(slog.DiscardHandler), []router.Route{
		{Window: win("good"), Open: func(context.Context) (transport.Source, error) { return good, nil }},
		{Window: win("bad"), Open: func(context.Context) (transport.Source, error) {
			if tries++; tries < 3 {
				return nil, errors.New("broker away")
			}
			return nil, fmt.Errorf("topic %q: %w", "bad", transport.ErrRejected)
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, transport.ErrRejected) || tries != 3 {
		t.Fatalf("error %v after %d tries", err, tries)
	}
}
