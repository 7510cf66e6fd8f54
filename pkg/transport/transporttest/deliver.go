package transporttest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A record that any client wrote is a job, and one that was written before the first source came is not missed.
func (s *suite) foreignRecord(t *testing.T) {
	tr, subject := s.jobs(t)
	s.RawPublish(t, subject, []byte("plain"))
	src := s.source(t, tr, subject)
	d := fetch(t, src, 1)[0]
	if got := d.Message(); string(got.Body) != "plain" || got.Subject != subject {
		t.Errorf("got body %q on %q, want %q on %q", got.Body, got.Subject, "plain", subject)
	}
	pos := d.Position()
	if pos == "" {
		t.Error("the message has no position")
	}
	if at := d.Published(); !at.IsZero() && (time.Since(at) > time.Hour || time.Until(at) > time.Hour) {
		t.Errorf("published at %v", at)
	}
	d.Release()
	again := fetch(t, src, 1)[0]
	if again.Position() != pos {
		t.Errorf("delivered again it is at %q, before at %q", again.Position(), pos)
	}
	if !again.Redelivered() {
		t.Error("delivered again it does not say so")
	}
	again.Ack()
	quiet(t, src, s.settled(), "acknowledged")
}

// Records that make no sense to anyone do not stop those behind them.
func (s *suite) poison(t *testing.T) {
	tr, subject := s.jobs(t)
	src := s.source(t, tr, subject)
	want := []string{"good 1", "", "\x00\xff\xfe", `{"unfinished`, "good 2"}
	for _, b := range want {
		s.RawPublish(t, subject, []byte(b))
	}
	ds := fetch(t, src, len(want))
	got, seen := bodies(ds), map[string]bool{}
	for _, b := range want {
		if got[b] != 1 {
			t.Errorf("body %q came %d times", b, got[b])
		}
	}
	for _, d := range ds {
		if seen[d.Position()] {
			t.Errorf("two messages are at %q", d.Position())
		}
		seen[d.Position()] = true
	}
	ackAll(ds)
}

// What is published arrives as it was: every value of every header, any bytes, the key.
func (s *suite) headersAndBodies(t *testing.T) {
	tr, subject := s.jobs(t)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	ms := map[string]*transport.Message{
		"plain": {Body: []byte("x")},
		"empty": {Body: []byte{}},
		"bytes": {Body: all, Key: []byte("key-1")},
		"large": {Body: bytes.Repeat([]byte("0123456789abcdef"), 1000<<10/16)}, // as much as NATS takes by default
	}
	headers := [][2]string{
		{"X-Multi", "one"}, {"X-Multi", "two"}, {"X-Multi", "one"}, {"X-Text", "grüße: a, b; c=\"d\""}, {"traceparent", "00-1-2-01"},
		{"body", "not the body"}, {"payload", "nor this"}, {"data", "nor that"}, {"subject", "nor another's"}, {"X-Empty", ""},
	}
	for name, m := range ms {
		m.Subject = subject
		m.Header.Add("X-Name", name)
		for _, h := range headers {
			m.Header.Add(h[0], h[1])
		}
		publish(t, tr, m)
	}
	ds := fetch(t, s.source(t, tr, subject), len(ms))
	for _, d := range ds {
		got := d.Message()
		name := got.Header.Get("x-name") // without regard to case
		want := ms[name]
		if want == nil {
			t.Fatalf("a message without its name came: %v", got.Header)
		}
		delete(ms, name)
		if !bytes.Equal(got.Body, want.Body) {
			t.Errorf("%s: body of %d bytes came as %d: %q", name, len(want.Body), len(got.Body), clip(got.Body))
		}
		for _, h := range headers {
			if g, w := got.Header.Values(h[0]), want.Header.Values(h[0]); !slices.Equal(g, w) {
				t.Errorf("%s: header %s is %q, want %q", name, h[0], g, w)
			}
		}
		if key := string(got.Key); key != string(want.Key) && got.Header.Get(transport.HeaderKey) != string(want.Key) {
			t.Errorf("%s: key is %q, want %q", name, key, want.Key)
		}
		if got.Subject != subject {
			t.Errorf("%s: subject is %q, want %q", name, got.Subject, subject)
		}
	}
	ackAll(ds)
}

// A prefetched message ages in a buffer until the broker gives it to another: nothing is fetched that was not asked for.
func (s *suite) fetchLimit(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 50
	publish(t, tr, numbered(subject, n)...)
	src := s.source(t, tr, subject)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out []transport.Delivery
	for len(out) < n {
		ds, err := src.Fetch(ctx, 7)
		if ctx.Err() != nil {
			t.Fatalf("%d of %d came: %v", len(out), n, err)
		}
		if len(ds) > 7 {
			t.Fatalf("fetch returned %d deliveries and was asked for 7", len(ds))
		}
		out = append(out, ds...)
	}
	if got := bodies(out); len(got) != n {
		t.Errorf("%d different messages came, want %d", len(got), n)
	}
	ackAll(out)
}

// Messages may be settled in any order, from any goroutine, and none is then forgotten or comes back.
func (s *suite) settleOutOfOrder(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 200
	publish(t, tr, numbered(subject, n)...)
	src := s.source(t, tr, subject)
	ds := fetch(t, src, n)
	rand.Shuffle(n, func(i, j int) { ds[i], ds[j] = ds[j], ds[i] })
	var wg sync.WaitGroup
	for part := range slices.Chunk(ds, n/8) {
		wg.Go(func() { ackAll(part) })
	}
	wg.Wait()
	closeAll(t, src)
	quiet(t, s.source(t, tr, subject), s.settled(), "acknowledged, in another order")
}

// One message that is worked on for long does not hold up those behind it.
func (s *suite) headOfLine(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 101
	ms := numbered(subject, n)
	for _, m := range ms {
		m.Key = []byte("one partition")
	}
	publish(t, tr, ms...)
	src := s.source(t, tr, subject)
	first := fetch(t, src, 1)[0]
	start := time.Now()
	ackAll(fetch(t, src, n-1))
	t.Logf("%d messages passed an unsettled one in %v", n-1, time.Since(start))
	if first.Lost() {
		t.Error("the first message was taken away")
	}
	first.Ack()
}

// What was not settled when a source closed comes back, and what was settled does not.
func (s *suite) unsettledAfterClose(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 20
	publish(t, tr, numbered(subject, n)...)
	cfg := s.config(subject)
	cfg.Lease = 30 * time.Second // so that it is Close that hands back
	src := s.sourceWith(t, tr, cfg)
	ds := fetch(t, src, n)
	want := map[string]bool{}
	for i, d := range ds {
		if i%2 == 0 {
			d.Ack()
		} else {
			want[string(d.Message().Body)] = true
		}
	}
	closeAll(t, src)
	start := time.Now()
	s.comesBack(t, s.sourceWith(t, tr, cfg), want)
	if took := time.Since(start); took > cfg.Lease-5*time.Second {
		t.Errorf("it took %v: the source did not hand back what was out", took)
	}
}

// comesBack fails the test unless what comes is want; what else comes is forgiven only on a broker with a watermark.
func (s *suite) comesBack(t *testing.T, src transport.Source, want map[string]bool) {
	t.Helper()
	got := map[string]bool{}
	for len(got) < len(want) {
		d := fetch(t, src, 1)[0]
		b := string(d.Message().Body)
		switch {
		case want[b]:
			got[b] = true
		case !s.Watermark:
			t.Errorf("%q came, which was settled", b)
		}
		d.Ack()
	}
	for _, d := range during(t, src, s.settled()) {
		if !s.Watermark {
			t.Errorf("%q came once more", d.Message().Body)
		}
	}
}

// What a silent owner has not settled comes to another when its lease has run out.
func (s *suite) unsettledAfterAbandonment(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 10
	publish(t, tr, numbered(subject, n)...)
	silent := s.source(t, tr, subject)
	if silent.Lease() == 0 {
		return // the broker knows by the connection that an owner is gone: UnsettledComesBackAfterClose
	}
	want := map[string]bool{}
	for _, d := range fetch(t, silent, n) {
		want[string(d.Message().Body)] = true
	}
	s.comesBack(t, s.source(t, s.open(t), subject), want)
}

// A job that takes longer than the lease is not run by another meanwhile.
func (s *suite) extendOutlivesLease(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 3)...)
	a := s.source(t, tr, subject)
	ds := fetch(t, a, 3)
	b := s.source(t, s.open(t), subject)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := a.Extend(t.Context(), ds); err != nil {
				t.Errorf("extend: %v", err)
			}
			pause(ctx, s.Lease/5)
		}
	})
	if s.Watermark {
		// The group takes its partitions from a when b comes, which a must be told.
		for _, d := range during(t, b, 3*s.Lease) {
			for _, mine := range ds {
				if mine.Position() == d.Position() && !mine.Lost() {
					t.Errorf("%q is at two sources and the first was not told", d.Position())
				}
			}
		}
	} else {
		quiet(t, b, 3*s.Lease, "extended")
	}
	cancel()
	wg.Wait()
	for _, d := range ds {
		if d.Lost() && !s.Watermark {
			t.Errorf("%s is lost although it was extended", d.Position())
		}
	}
	ackAll(ds)
	if !s.Watermark {
		quiet(t, b, s.settled(), "acknowledged after three leases")
	}
}

// What is released comes back at once, not with the lease.
func (s *suite) releaseComesBack(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 5)...)
	cfg := s.config(subject)
	cfg.Lease = 60 * time.Second
	src := s.sourceWith(t, tr, cfg)
	ds := fetch(t, src, 5)
	ackAll(ds[1:3])
	start := time.Now()
	want := map[string]bool{}
	for _, d := range []transport.Delivery{ds[0], ds[3], ds[4]} {
		want[string(d.Message().Body)] = true
		d.Release()
	}
	back := fetch(t, src, len(want))
	if took := time.Since(start); took > s.Slack {
		t.Errorf("released messages came back after %v", took)
	}
	for _, d := range back {
		if !want[string(d.Message().Body)] {
			t.Errorf("%q came, which was not released", d.Message().Body)
		}
		if d.Lost() {
			t.Errorf("%q is lost as it comes back", d.Message().Body)
		}
	}
	ackAll(back)
	quiet(t, src, time.Second, "acknowledged after a release")
}

func (s *suite) deadIsSettled(t *testing.T) {
	tr, subject := s.jobs(t)
	publish(t, tr, numbered(subject, 3)...)
	src := s.source(t, tr, subject)
	for _, d := range fetch(t, src, 3) {
		d.Dead("a reason of two lines:\r\nthis is the second")
	}
	quiet(t, src, s.settled(), "dead")
	closeAll(t, src)
	quiet(t, s.source(t, tr, subject), s.settled(), "dead")
}

// Many messages, several sources, settled in any order, some handed back: every one is worked on.
func (s *suite) nothingLost(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 2000
	var done tally
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var wg sync.WaitGroup
	for range 3 {
		src := s.source(t, s.open(t), subject)
		wg.Go(func() { work(ctx, src, &done, n) })
	}
	for part := range slices.Chunk(numbered(subject, n), 100) {
		publish(t, tr, part...)
	}
	wg.Wait()
	if got := done.len(); got != n {
		t.Fatalf("%d of %d messages were settled", got, n)
	}
	if s.Watermark {
		return
	}
	for body, times := range done.n {
		if times > 1 {
			t.Errorf("%q was settled %d times", body, times)
		}
	}
}

// work settles what comes, in random order and after random waits, until n different messages are done. A tenth is released
// at first.
func work(ctx context.Context, src transport.Source, done *tally, n int) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, 64)
	for ctx.Err() == nil && done.len() < n {
		fctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		ds, err := src.Fetch(fctx, 1+rand.IntN(32))
		cancel()
		if errors.Is(err, transport.ErrClosed) {
			return
		}
		for _, d := range ds {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				pause(ctx, time.Duration(rand.IntN(5))*time.Millisecond)
				if rand.IntN(10) == 0 {
					d.Release()
					return
				}
				if !d.Lost() {
					done.add(d.Message().Body)
				}
				d.Ack()
			})
		}
	}
}

// Sources come and go under load and the sum is right. D-14
func (s *suite) addRemove(t *testing.T) {
	tr, subject := s.jobs(t)
	const n = 2000
	var done tally
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var wg sync.WaitGroup
	start := func() (stop func()) {
		src := s.source(t, s.open(t), subject)
		ended := make(chan struct{})
		wg.Go(func() {
			defer close(ended)
			work(ctx, src, &done, n)
		})
		return func() {
			closeAll(t, src)
			<-ended
		}
	}
	stopA := start()
	sum := 0
	for i, part := range slices.Collect(slices.Chunk(numbered(subject, n), n/10)) {
		publish(t, tr, part...)
		switch i {
		case 2:
			start()
		case 5:
			await(t, "a third of the messages", func() bool { return done.len() > n/3 })
			stopA()
		case 7:
			start()
		}
	}
	wg.Wait()
	for body := range done.n {
		x, err := strconv.Atoi(body)
		if err != nil {
			t.Errorf("message %q was not sent", body)
		}
		sum += x
	}
	if want := n * (n - 1) / 2; done.len() != n || sum != want {
		t.Errorf("%d of %d messages were settled, their sum is %d, want %d", done.len(), n, sum, want)
	}
}
