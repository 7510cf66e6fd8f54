//go:build unix

package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// book is what was submitted and what came back.
type book struct {
	t       testing.TB
	client  transport.Transport
	subject string // without the kind
	jobs    int
	stop    context.CancelFunc
	ctx     context.Context
	wg      sync.WaitGroup

	mu       sync.Mutex
	entries  map[string]*entry
	answered int
	sent     bool // all are submitted
}

// entry is one job. What is to be delayed counts as sent when it is due at the latest, and is due when it may come at the earliest.
type entry struct{ sent, due, answered time.Time }

// silence is how long nothing may come before all that was written is believed to have been read.
const silence = 3 * time.Second

func newBook(t testing.TB, client transport.Transport, name string, jobs int) *book {
	b := &book{t: t, client: client, subject: name, jobs: jobs, entries: make(map[string]*entry, jobs)}
	b.ctx, b.stop = context.WithCancel(context.Background())
	t.Cleanup(b.close)
	b.wg.Go(b.watch)
	return b
}

func (b *book) close() {
	b.stop()
	b.wg.Wait()
}

// kindOf is the route of the nth job: they take turns.
func kindOf(n int) string {
	if n%2 == 0 {
		return "dice"
	}
	return "roll"
}

// delayOf is for how long the nth job is to wait: one of ten for 1 to 9 seconds, so that kills strike what waits, too.
func delayOf(n int) time.Duration {
	if n%10 != 7 {
		return 0
	}
	return time.Duration(n/10%9+1) * time.Second
}

// submit publishes the jobs over a while, each until the broker has taken it. Keys spread them over partitions.
func (b *book) submit(over time.Duration) {
	const batch = 20
	began := time.Now()
	for n := 0; n < b.jobs && b.ctx.Err() == nil; n += batch {
		var ms []*transport.Message
		for i := n; i < min(n+batch, b.jobs); i++ {
			id := fmt.Sprintf("%s-%d", kindOf(i), i)
			m := &transport.Message{
				Subject: b.subject + "-" + kindOf(i), Key: []byte(id), Body: []byte(id), Header: job.Header{{Name: transport.HeaderJobID, Value: id}},
			}
			if d := delayOf(i); d > 0 {
				m.Header.Set(transport.HeaderDelay, d.String())
			}
			ms = append(ms, m)
		}
		var first, last time.Time // attempts; any of them may be the one that was heard
		for b.ctx.Err() == nil {
			ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
			if last = time.Now(); first.IsZero() {
				first = last
			}
			err := b.client.Publisher().Publish(ctx, ms...)
			cancel()
			if err == nil {
				break
			}
			pause(b.ctx, 50*time.Millisecond)
		}
		b.mu.Lock()
		for i, m := range ms {
			id := string(m.Body)
			if b.entries[id] == nil { // its result may have been faster
				b.entries[id] = &entry{}
			}
			e := b.entries[id]
			e.sent = time.Now()
			if d := delayOf(n + i); d > 0 {
				e.due, e.sent = first.Add(d), last.Add(d)
			}
		}
		b.mu.Unlock()
		pause(b.ctx, time.Until(began.Add(time.Duration(float64(over)*float64(n)/float64(b.jobs)))))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent = true
}

// done says that nothing is left to be worked on.
func (b *book) done() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sent && b.answered == b.jobs
}

// watch notes when results come, from the beginning again whenever the connection breaks.
func (b *book) watch() {
	for b.ctx.Err() == nil {
		_ = b.read(b.ctx, 20*time.Second, func(id string, _ *transport.Message) {
			b.mu.Lock()
			defer b.mu.Unlock()
			e := b.entries[id]
			if e == nil {
				e = &entry{}
				b.entries[id] = e
			}
			if e.answered.IsZero() {
				e.answered = time.Now()
				b.answered++
			}
		})
		pause(b.ctx, 100*time.Millisecond)
	}
}

// read takes results from the beginning until none comes for a while or the connection breaks.
func (b *book) read(ctx context.Context, quiet time.Duration, note func(id string, m *transport.Message)) error {
	tail, err := b.client.Tail(ctx, b.subject+"-results", true)
	if err != nil {
		return err
	}
	defer tail.Close()
	for {
		rctx, cancel := context.WithTimeout(ctx, quiet)
		m, err := tail.Next(rctx)
		silent := rctx.Err() != nil
		cancel()
		if err != nil {
			if silent {
				return nil
			}
			return err
		}
		if id := m.Header.Get(transport.HeaderResultOf); id != "" {
			note(id, m)
		}
	}
}

// open counts jobs without a result.
func (b *book) open() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.jobs - b.answered
}

// await waits until every job has its result.
func (b *book) await(limit time.Duration) bool {
	for end := time.Now().Add(limit); b.open() > 0; pause(b.ctx, 20*time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// examples names some jobs without a result.
func (b *book) examples(what string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for id, e := range b.entries {
		if e.answered.IsZero() && len(out) < 5 {
			out = append(out, fmt.Sprintf("%s: %s, submitted at %s", what, id, e.sent.Format(time.TimeOnly)))
		}
	}
	return out
}

// after is how long it took, from a moment on, until all that was submitted before it had its result.
func (b *book) after(at time.Time) time.Duration {
	longest, _, _ := b.since([]time.Time{at})
	return longest[0]
}

// since says of each moment how long jobs took that were open then and at no later one. Of those that were open at several it
// says how many they are, and how long the longest took from its first one.
func (b *book) since(moments []time.Time) (longest []time.Duration, several int, first time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	moments = slices.SortedFunc(slices.Values(moments), time.Time.Compare)
	longest = make([]time.Duration, len(moments))
	for _, e := range b.entries {
		if e.sent.IsZero() || e.answered.IsZero() {
			continue
		}
		from, _ := slices.BinarySearchFunc(moments, e.sent, time.Time.Compare)
		to, _ := slices.BinarySearchFunc(moments, e.answered, time.Time.Compare)
		if to <= from {
			continue
		}
		longest[to-1] = max(longest[to-1], e.answered.Sub(moments[to-1]))
		if to-from > 1 {
			several++
			first = max(first, e.answered.Sub(moments[from]))
		}
	}
	return longest, several, first
}

// delayed says how late the jobs were answered that were to wait, and how many were too early.
func (b *book) delayed() (late []time.Duration, early int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		switch {
		case e.due.IsZero() || e.answered.IsZero():
		case e.answered.Before(e.due):
			early++
		default:
			late = append(late, max(0, e.answered.Sub(e.sent)))
		}
	}
	return late, early
}

// audit reads all results once more and holds them against one another.
func (b *book) audit(rep *Report) {
	b.t.Helper()
	type seen struct {
		sum   [32]byte
		times int
		twice bool
	}
	var all map[string]*seen
	for try := 0; ; try++ {
		all = map[string]*seen{}
		rep.Failed = 0
		err := b.read(b.t.Context(), silence, func(id string, m *transport.Message) {
			sum := sha256.Sum256(append([]byte(m.Header.Get(transport.HeaderMsgID)+"\n"), m.Body...))
			s := all[id]
			if s == nil {
				s = &seen{sum: sum}
				all[id] = s
			}
			s.times++
			s.twice = s.twice || s.sum != sum
			if m.Header.Get(transport.HeaderOK) != "true" {
				rep.Failed++
				if rep.Failed <= 5 {
					rep.Examples = append(rep.Examples, fmt.Sprintf("failed: %s: %s", id, m.Body))
				}
			}
		})
		if err == nil && len(all) >= b.jobs-rep.Lost {
			break
		}
		if try == 5 {
			b.t.Errorf("ledger: read the results again: %d of %d, %v", len(all), b.jobs, err)
			break
		}
	}
	for id, s := range all {
		rep.Repeats += s.times - 1
		if s.twice {
			rep.Different++
			if rep.Different <= 5 {
				rep.Examples = append(rep.Examples, "two different results: "+id)
			}
		}
	}
}

// pause waits for a while, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
