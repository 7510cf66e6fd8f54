package jetstream

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// later has messages wait, each for as long as after says.
func later(t testing.TB, tr *Transport, subject string, n int, after func(i int) time.Duration) {
	t.Helper()
	for i := range n {
		m := moved(subject, fmt.Sprint(subject, i))
		m.Subject = subject
		if err := tr.schedule(t.Context(), after(i), m, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func always(d time.Duration) func(int) time.Duration { return func(int) time.Duration { return d } }

// once takes n messages of a source, each of which must come once.
func once(t testing.TB, s transport.Source, n int) {
	t.Helper()
	seen := make(map[string]bool)
	for len(seen) < n {
		for _, d := range fetch(t, s, 1, 256) {
			body := string(d.Message().Body)
			if seen[body] {
				t.Errorf("%q came again", body)
			}
			seen[body] = true
			d.Ack()
		}
	}
}

// moves says whether a transport's mover has the lease.
func moves(t testing.TB, tr *Transport) bool {
	t.Helper()
	s, err := tr.js.Stream(t.Context(), tr.waitStream().Name)
	if err != nil {
		return false
	}
	m, err := s.GetLastMsgForSubject(t.Context(), tr.waitSubject(leaseToken))
	return err == nil && string(m.Data) == tr.mover.lease.id
}

// What waits costs the server nothing for each message but its place in the file: it writes down all schedules and subjects of a stream every
// two minutes, and nothing else comes of that stream meanwhile.
func TestWaitingIsCheap(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	const n = 200
	later(t, tr, "jobs", n, always(time.Hour))
	var waiting uint64
	for info := range tr.js.ListStreams(t.Context()).Info() {
		waiting += info.State.Msgs
		if info.Config.AllowMsgSchedules || info.State.NumSubjects > n/4 {
			t.Errorf("stream %q has %d subjects for %d messages; schedules by the server: %v", info.Config.Name, info.State.NumSubjects, info.State.Msgs,
				info.Config.AllowMsgSchedules)
		}
	}
	if waiting != n {
		t.Errorf("%d of %d messages wait", waiting, n)
	}
}

// One of a group moves. When it ends or is gone, another takes over, and nothing is lost or comes twice.
func TestMoverIsReplaced(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed %v", killed), func(t *testing.T) {
			t.Parallel()
			srv := embed(t, EmbedConfig{})
			nc := dial(t, srv.ConnectConfig())
			first := open(t, nc)
			consume(t, first, transport.SourceConfig{Route: "a", Subject: "a"})
			await(t, "the first moves", func() bool { return moves(t, first) })
			second := open(t, dial(t, srv.ConnectConfig()))
			s := consume(t, second, transport.SourceConfig{})
			const n = 300
			later(t, second, "jobs", n, func(i int) time.Duration { return time.Duration(1+i*10) * time.Millisecond })
			if killed {
				nc.Close()
			} else if err := first.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			await(t, "the second moves", func() bool { return moves(t, second) })
			if took := time.Since(begun); !killed && took > moverLease+within/2 {
				t.Errorf("took over after %v", took)
			}
			once(t, s, n)
			none(t, s, 300*time.Millisecond)
			await(t, "what was brought home is cleared", func() bool {
				info, err := second.streamInfo(t.Context(), second.waitStream().Name)
				return err == nil && info.State.Msgs == 1 // the lease
			})
		})
	}
}

// Messages for a queue that is full wait once more, and hold up no others.
func TestMoverAndAFullQueue(t *testing.T) {
	t.Parallel()
	tr := local(t)
	if _, err := tr.js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "FULL", Subjects: []string{"full"}, MaxMsgs: 1, Discard: jetstream.DiscardNew, Retention: jetstream.WorkQueuePolicy,
	}); err != nil {
		t.Fatal(err)
	}
	publish(t, tr, "full", "here already")
	s := consume(t, tr, transport.SourceConfig{})
	later(t, tr, "full", 3, always(100*time.Millisecond))
	later(t, tr, "jobs", 50, always(200*time.Millisecond))
	once(t, s, 50)
	await(t, "the others wait again", func() bool {
		s, err := tr.js.Stream(t.Context(), tr.waitStream().Name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(tr.waitSubject(atToken+".>")))
		if err != nil {
			t.Fatal(err)
		}
		again := uint64(0)
		for subject, n := range info.State.Subjects {
			if subject > tr.secondSubject(time.Now().Add(2*time.Second)) {
				again += n
			}
		}
		return again > 0
	})
	await(t, "that the queue is full is remembered", func() bool { return tr.mover.refused.wait("full") > 0 })
	if tr.mover.refused.wait("jobs") != 0 {
		t.Error("and so it is of another")
	}
	once(t, consume(t, tr, transport.SourceConfig{Route: "full", Subject: "full", Limit: 1}), 4)
}

// A stream that takes no more is emptied all the same.
func TestMoverAndAFullWaitingStream(t *testing.T) {
	t.Parallel()
	tr := local(t)
	const n = 5
	c := tr.waitStream()
	c.MaxMsgs, c.Discard = n, jetstream.DiscardNew
	if _, err := tr.js.CreateStream(t.Context(), *c); err != nil {
		t.Fatal(err)
	}
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	later(t, tr, "jobs", n, always(500*time.Millisecond))
	once(t, consume(t, tr, transport.SourceConfig{}), n)
	await(t, "one of the group moves", func() bool { return moves(t, tr) })
}

// What falls due for a queue that took nothing a moment ago is not tried, and holds up nothing.
func TestMoverSetsAside(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sources: []string{"full", "jobs"}})
	m := &mover{t: tr}
	m.queue.init(make(chan struct{}, 1))
	m.refused.note("full", waitLong)
	s := &second{}
	ws := make([]*waiter, 3)
	for i, to := range []string{"full", "jobs", "full"} {
		id := strconv.Itoa(i)
		ws[i] = &waiter{s: s, size: 1, msg: &nats.Msg{Subject: to, Data: []byte(id), Header: nats.Header{transport.HeaderMsgID: {id}}}}
	}
	m.queue.add(ws)
	begun := time.Now()
	m.carry(t.Context(), ws)
	if s.left != 0 {
		t.Errorf("%d are still in hand", s.left)
	}
	for subject, want := range map[string]int64{"full": 0, "jobs": 1} {
		if n, err := tr.Depth(t.Context(), subject); n != want || err != nil {
			t.Errorf("%d messages of %q, want %d, %v", n, subject, want, err)
		}
	}
	counts, err := (&mover{t: tr, lease: &lease{}}).count(t.Context(), ">")
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for subject, k := range counts {
		if n += k; subject < tr.secondSubject(begun.Add(waitLong)) {
			t.Errorf("%q is too early", subject)
		}
	}
	if n != 2 {
		t.Errorf("%d wait, want 2", n)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var r refusals
		if r.wait("a") != 0 {
			t.Error("nobody has refused")
		}
		r.note("a", time.Second)
		if a, b, other := r.wait("a"), r.wait("a"), r.wait("b"); a != time.Second+refusedPace || b != a+refusedPace || other != 0 {
			t.Errorf("wait %v, %v and %v", a, b, other)
		}
		time.Sleep(time.Second)
		if r.wait("a") != 0 {
			t.Error("it may be tried again")
		}
		for i := range 2 * refusedMost {
			r.note(strconv.Itoa(i), time.Second)
		}
		if len(r.subjects) != refusedMost || r.wait("0") == 0 {
			t.Errorf("%d subjects", len(r.subjects))
		}
		time.Sleep(time.Second)
		if r.note("b", time.Second); len(r.subjects) != 1 || r.wait("b") == 0 {
			t.Errorf("%d subjects, want the last", len(r.subjects))
		}
	})
}

// What a mover keeps is bounded in bytes.
func TestMoverKeepsLittle(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	const n, size = 64, 900 << 10
	body := make([]byte, size)
	due := strconv.FormatInt(time.Now().Add(time.Hour).UnixNano(), 10) // under a second that has been
	for i := range n {
		if err := tr.pub.publish(t.Context(), messages{{Subject: tr.secondSubject(time.Now()), Data: body, Header: nats.Header{
			headerMoveID: {strconv.Itoa(i)}, headerMoveTo: {"jobs"}, headerMoveDue: {due},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	consume(t, tr, transport.SourceConfig{})
	kept := func() int {
		tr.mover.queue.mu.Lock()
		defer tr.mover.queue.mu.Unlock()
		return tr.mover.queue.bytes
	}
	await(t, "as much as fits is read", func() bool { return kept() >= moverBytes })
	renewed := func() uint64 {
		s, err := tr.js.Stream(t.Context(), tr.waitStream().Name)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().State.LastSeq
	}
	last := renewed()
	await(t, "the mover looks again", func() bool { return renewed() > last })
	if got, limit := kept(), moverBytes+pageBytes+size+64<<10; got > limit {
		t.Errorf("%d bytes are kept, limit %d", got, limit)
	}
}

// However many seconds have messages, the mover asks for the first of them only: to ask for all would take the server longer than it has.
func TestMoverAndManySeconds(t *testing.T) {
	t.Parallel()
	tr := local(t, func(c *Config) { c.Memory = true })
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	const n = 100_000 + 1 // the server tells of one less at a time
	begun := time.Now().Add(time.Hour)
	ms := make(messages, n)
	for i := range ms {
		ms[i] = &nats.Msg{Subject: tr.secondSubject(begun.Add(time.Duration(n-i) * time.Second))}
	}
	if err := tr.pub.publish(t.Context(), ms); err != nil {
		t.Fatal(err)
	}
	m := &mover{t: tr, lease: &lease{}}
	counts, err := m.count(t.Context(), ">")
	if err != nil || len(counts) >= n || counts[ms[n-1].Subject] != 1 || counts[ms[0].Subject] != 0 {
		t.Errorf("%d seconds, the first one has %d messages and the last one %d, %v", len(counts), counts[ms[n-1].Subject], counts[ms[0].Subject], err)
	}
}

// Headers by which the server speaks are those of producers as well, and hold up nothing.
func TestMoverAndForeignHeaders(t *testing.T) {
	t.Parallel()
	tr := local(t)
	s := consume(t, tr, transport.SourceConfig{})
	due := time.Now().Add(time.Second)
	const home = "jobs"
	for i, h := range []nats.Header{
		{"Status": {"404"}}, {"Status": {"204"}}, {"Status": {"503"}, "Description": {"x"}}, {"Status": {"100"}},
		{"Nats-Last-Sequence": {"7"}}, {"Nats-Sequence": {"7"}}, {"Nats-Sequence": {"x"}, "Status": {"204"}},
	} {
		h[headerMoveID], h[headerMoveTo] = []string{strconv.Itoa(i)}, []string{home}
		h[headerMoveDue] = []string{strconv.FormatInt(due.UnixNano(), 10)}
		if err := tr.pub.publish(t.Context(), messages{{Subject: tr.secondSubject(due), Data: []byte{byte(i)}, Header: h}}); err != nil {
			t.Fatal(err)
		}
	}
	once(t, s, 7)
}

// After a long standstill there are more seconds than are looked at together.
func TestMoverAfterAStandstill(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	const n = secondsMost + 500
	var ms messages
	for i := range n {
		due := time.Now().Add(-time.Duration(i) * time.Second)
		ms = append(ms, &nats.Msg{Subject: tr.secondSubject(due), Data: []byte(strconv.Itoa(i)), Header: nats.Header{
			headerMoveID: {strconv.Itoa(i)}, headerMoveTo: {"jobs"}, headerMoveDue: {strconv.FormatInt(due.UnixNano(), 10)},
		}})
	}
	if err := tr.pub.publish(t.Context(), ms); err != nil {
		t.Fatal(err)
	}
	once(t, consume(t, tr, transport.SourceConfig{Limit: 256}), n)
}

// What earlier versions had the server schedule is brought home as well.
func TestScheduledByAnEarlierVersion(t *testing.T) {
	t.Parallel()
	tr := local(t)
	c := tr.stream("")
	c.Name, c.Subjects = "WASM_SCHEDULES_test", []string{"wasm.schedules.test.at.*", "wasm.schedules.test.due.>"}
	c.Retention, c.AllowMsgSchedules, c.AllowRollup = jetstream.WorkQueuePolicy, true, true
	if _, err := tr.js.CreateStream(t.Context(), *c); err != nil {
		t.Fatal(err)
	}
	due := time.Now().Add(1500 * time.Millisecond)
	if err := tr.pub.publish(t.Context(), messages{{
		Subject: "wasm.schedules.test.at.x", Data: []byte("x"), Header: nats.Header{
			jetstream.ScheduleHeader:       {"@at " + due.Add(-500*time.Millisecond).UTC().Format(time.RFC3339Nano)},
			jetstream.ScheduleTargetHeader: {"wasm.schedules.test.due.jobs.x"},
			headerMoveID:                   {"1"}, headerMoveDue: {strconv.FormatInt(due.UnixNano(), 10)}, transport.HeaderJobID: {"j"},
		},
	}}); err != nil {
		t.Fatal(err)
	}
	d := fetch(t, consume(t, tr, transport.SourceConfig{Subject: "jobs.x"}), 1, 1)[0]
	m := d.Message()
	if time.Now().Before(due) || string(m.Body) != "x" || m.Header.Get(transport.HeaderMsgID) != "1" || len(m.Header) != 2 {
		t.Errorf("%v before it is due: %q %v", time.Until(due), m.Body, m.Header)
	}
	d.Ack()
}

// Where another mover was faster, less is there than was read.
func TestClearingWhatAnotherHasCleared(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	at := time.Now().Add(-time.Minute)
	s := &second{subject: tr.secondSubject(at), at: at, read: 5, kept: 5, total: 3}
	m := &mover{t: tr, seconds: map[string]*second{s.subject: s}}
	if err := m.clear(t.Context(), false); err != nil || s.total != 0 || s.kept != 0 {
		t.Errorf("%d of %d are left, %v", s.total, s.kept, err)
	}
}

// A stream that others have made must be able to hold what waits, until it is due.
func TestPrepareRefusesWaitingStream(t *testing.T) {
	t.Parallel()
	tr := local(t)
	good := jetstream.StreamConfig{Name: "W", Subjects: []string{"wasm.waiting.>"}, AllowRollup: true, AllowDirect: true}
	for _, c := range []struct {
		name   string
		change func(*jetstream.StreamConfig)
		taken  bool
	}{
		{"without allow_direct", func(c *jetstream.StreamConfig) { c.AllowDirect = false }, false},
		{"drops the oldest by number", func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }, false},
		{"drops the oldest by size", func(c *jetstream.StreamConfig) { c.MaxBytes = 1 << 20 }, false},
		{"refuses the newest", func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 10, jetstream.DiscardNew }, true},
		{"good", func(*jetstream.StreamConfig) {}, true},
	} {
		cfg := good
		c.change(&cfg)
		if _, err := tr.js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs"}}); c.taken && err != nil || !c.taken && !transport.Permanent(err) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := tr.js.DeleteStream(t.Context(), cfg.Name); err != nil {
			t.Fatal(err)
		}
	}
}

// What the mover keeps comes when its time has passed, also where the clock is set back meanwhile.
func TestDueGoesByTheMonotonicClock(t *testing.T) {
	t.Parallel()
	tr := &Transport{epoch: time.Now().Add(-time.Hour)}
	tr.leastSkew.Store(int64(time.Minute))
	for _, in := range []time.Duration{-time.Hour, 0, time.Millisecond, time.Second} {
		want := time.Now().Add(in)
		m := &nats.Msg{Header: nats.Header{headerMoveDue: {strconv.FormatInt(want.Add(time.Minute).UnixNano(), 10)}}}
		got := tr.dueHere(m)
		if late := got.Sub(want); late < 0 || late > moverTick+within {
			t.Errorf("in %v: %v late", in, late)
		}
		if got == got.Round(0) {
			t.Errorf("in %v: %v has no monotonic time", in, got)
		}
	}
}

// Where every answer is slow, the clocks are compared by slow ones, too.
func TestSlowAnswersTellTheClock(t *testing.T) {
	t.Parallel()
	tr := &Transport{epoch: time.Now().Add(-time.Hour)}
	slow := 100 * time.Millisecond
	answer := func(ahead time.Duration) time.Duration {
		now := time.Now()
		tr.measureClock(now.Add(-slow), &jetstream.StreamInfo{TimeStamp: now.Add(ahead)})
		return time.Duration(tr.skew.Load()).Round(time.Minute)
	}
	if got := answer(time.Minute); got != time.Minute {
		t.Errorf("the first answer: ahead by %v", got)
	}
	if got := answer(5 * time.Minute); got != time.Minute {
		t.Errorf("a slow one right after it: ahead by %v", got)
	}
	tr.skewed.Store(int64(time.Since(tr.epoch) - skewLasts - time.Second))
	if got := answer(5 * time.Minute); got != 5*time.Minute {
		t.Errorf("a slow one much later: ahead by %v", got)
	}
}

// A page of which a part was lost is not taken for a whole one.
func TestPageIsAChain(t *testing.T) {
	t.Parallel()
	nc := dial(t, embed(t, EmbedConfig{}).ConnectConfig())
	message := func(previous, sequence string) nats.Header {
		return nats.Header{"Nats-Last-Sequence": {previous}, jetstream.SequenceHeader: {sequence}}
	}
	end := func(previous string) nats.Header {
		return nats.Header{"Status": {"204"}, "Nats-Last-Sequence": {previous}}
	}
	for name, c := range map[string]struct {
		headers []nats.Header
		n       int
		fails   bool
	}{
		"end is late":    {[]nats.Header{message("0", "7"), message("7", "9")}, 2, false},
		"all is late":    {nil, 0, true},
		"whole":          {[]nats.Header{message("0", "7"), message("7", "9"), end("9")}, 2, false},
		"empty":          {[]nats.Header{{"Status": {"404"}}}, 0, false},
		"first is lost":  {[]nats.Header{message("7", "9"), end("9")}, 0, true},
		"middle is lost": {[]nats.Header{message("0", "7"), message("8", "9"), end("9")}, 0, true},
		"last is lost":   {[]nats.Header{message("0", "7"), end("9")}, 0, true},
		"refused":        {[]nats.Header{{"Status": {"408"}, "Description": {"Bad Request"}}}, 0, true},
		"nobody answers": {[]nats.Header{{"Status": {"503"}}}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inbox := nc.NewInbox()
			sub, err := nc.SubscribeSync(inbox)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range c.headers {
				if err := nc.PublishMsg(&nats.Msg{Subject: inbox, Header: h}); err != nil {
					t.Fatal(err)
				}
			}
			await(t, "all is here", func() bool { n, _, err := sub.Pending(); return n == len(c.headers) && err == nil })
			patience := within
			if strings.HasSuffix(name, "is late") {
				patience = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if ms, err := chain(ctx, sub); len(ms) != c.n || (err != nil) != c.fails {
				t.Errorf("%d messages, %v", len(ms), err)
			}
		})
	}
}

// Jobs that are due at one moment all come, also where the server refuses most of them for a while, since it has more to store than it lets
// wait.
func TestManyDueAtOnce(t *testing.T) {
	t.Parallel()
	const n, writers = 1200, 8
	srv := services.StartNATS(t, fmt.Sprintf("jetstream: { store_dir: %q, max_buffered_msgs: 32 }", filepath.Join(t.TempDir(), "js")))
	tr := open(t, dial(t, ConnectConfig{URLs: []string{"nats://" + srv.Addr}, Name: t.Name()}))
	s := consume(t, tr, transport.SourceConfig{})
	due := time.Now().Add(4 * time.Second)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := w; i < n; i += writers {
				m := moved("jobs", fmt.Sprint(i))
				m.Subject = "jobs"
				for tr.schedule(t.Context(), time.Until(due), m, nil) != nil { // the server says that it is too much
					if t.Context().Err() != nil {
						return
					}
				}
			}
		})
	}
	wg.Wait()
	seen := make(map[string]bool)
	for len(seen) < n {
		for _, d := range fetch(t, s, 1, 256) {
			seen[string(d.Message().Body)] = true
			d.Ack()
		}
	}
	t.Logf("the last came %v after they were due", time.Since(due))
}

// A process that has the server in it and is killed leaves a lease that nobody heeds who has the same data: what is due after the
// restart is not late by a lease.
func TestMoverOfAServerThatWasKilled(t *testing.T) {
	t.Parallel()
	srv := embed(t, EmbedConfig{})
	host := func(change ...func(*Config)) *mover {
		m := &mover{t: open(t, dial(t, srv.ConnectConfig()), change...)}
		m.lease = newLease(m)
		return m
	}
	within := func(c *Config) { c.Life = srv.Life }
	take := func(m *mover) bool {
		ours, err := m.lease.hold(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return ours
	}
	if !take(host(within)) {
		t.Fatal("the first has no lease")
	}
	if take(host()) {
		t.Error("who has not the server took the lease of one that may live")
	}
	if !take(host(within)) {
		t.Error("the lease of a process that has ended stands")
	}
}
