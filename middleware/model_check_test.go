package middleware_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// see waits for what comes of a trip and holds it against want. Where a fault came about, the job may also stand where it did, or
// halfway.
func (w *world) see(t *trip, want sight, before, half promise) error {
	l, k := t.life, t.task
	got, err := t.wait(want.blocks)
	if err != nil {
		return fmt.Errorf("%s in process %d: %w", k, l.n, err)
	}
	fired, alive := l.disarm()
	ended := got != nil && got.x != nil
	if ended {
		w.end(t)
	}
	if !alive {
		return w.reap(l, t, before, half)
	}
	wrong := func() error { return fmt.Errorf("%s in process %d: %s; want: %s", k, l.n, got, want) }
	switch {
	case got == nil && want.blocks:
		return nil
	case got == nil || want.blocks:
		return wrong()
	case want.enters && !ended:
		if got.attempt != want.attempt {
			return wrong()
		}
		t.open = want.open
		return w.verify(k, k.promise)
	case fired && ended && got.err != nil && (want.enters || !want.left): // the store could not say
		if n := len(t.emitted); n > 0 {
			return fmt.Errorf("%s in process %d: %d messages published, although the trip failed: %w", k, l.n, n, got.err)
		}
		return w.verify(k, before, half)
	case fired && ended && want.enters && got.x.Settlement.Verb == job.Retry && got.x.Settlement.After < time.Second:
		w.pass(time.Hour)
		return w.verify(k, half) // the next attempt could not be counted from here
	case !ended || want.enters:
		return wrong()
	}
	n, err := w.published(t)
	if err != nil {
		return err
	}
	deaf := l.heard > 0
	if want.emits == "" && n != [2]int{} || want.emits != "" && !deaf && n != [2]int{1, letters(want.emits)} {
		return fmt.Errorf("%s in process %d: %d results and dead letters; want %s", k, l.n, n, want)
	}
	s := got.x.Settlement
	switch {
	case want.left || deaf:
		if got.err == nil {
			return wrong()
		}
	case got.err != nil:
		return wrong()
	case want.verb == job.Retry && s.Verb != job.Retry && !(s.Verb == job.Leave && s.After < time.Second):
		return wrong()
	case want.verb != job.Retry && s.Verb != want.verb:
		return wrong()
	case s.After > want.most || want.most > 0 && s.After <= 0:
		return wrong()
	}
	return w.verify(k, k.promise)
}

func (e *tale) String() string {
	switch {
	case e == nil:
		return "waits for the store"
	case e.x == nil:
		return fmt.Sprintf("attempt %d begins", e.attempt)
	case e.err != nil:
		return fmt.Sprintf("left: %v", e.err)
	}
	return fmt.Sprintf("settled %s after %s, outcome %+v", e.x.Settlement.Verb, e.x.Settlement.After, e.x.Outcome)
}

// end takes a trip that is over off the books.
func (w *world) end(t *trip) {
	t.cancel()
	delete(t.life.trips, t)
	w.trips = slices.DeleteFunc(w.trips, func(o *trip) bool { return o == t })
	if t.task.held && t.task.owner == t.owner() {
		t.task.owner.trip = 0
	}
}

// published counts the results and dead letters of a trip, and holds them against what is recorded.
func (w *world) published(t *trip) (n [2]int, err error) {
	k := t.task
	for _, m := range t.emitted {
		text := cmp.Or(m.Header.Get(transport.HeaderKind), "ok") + " " + string(m.Body)
		switch {
		case m.Subject == "dead":
			n[1]++
			continue
		case k.result == "":
			k.result = text
		case k.result != text:
			return n, fmt.Errorf("%s has two results: %s and %s", k, k.result, text)
		}
		if n[0]++; kindOf(text) != kindOf(k.outcome) || kindOf(text) == job.KindOK && text != k.outcome {
			return n, fmt.Errorf("%s: result %s is published, %q is recorded", k, text, k.outcome)
		}
	}
	return n, nil
}

// letters is how many dead letters an outcome leaves.
func letters(outcome string) int {
	if kindOf(outcome).Fate().DeadLetter {
		return 1
	}
	return 0
}

// verify reads what the store holds of a job and holds it against how it may stand; it stands so from now on.
func (w *world) verify(k *task, may ...promise) error {
	r, err := w.operator.claims.Look(w.ctx, w.conns[0], k.id, k.generation)
	if err != nil {
		return err
	}
	w.clock.mu.Lock()
	written := w.clock.written[r.Revision]
	w.clock.mu.Unlock()
	for _, p := range may {
		if !p.stands(r, written) {
			continue
		}
		was := k.verified
		switch { // fencing tokens grow with every holder
		case r.Token < k.token:
			return fmt.Errorf("%s: token %d after %d", k, r.Token, k.token)
		case r.Token == k.token && p.held && (!was.held || was.owner.life != p.owner.life || was.owner.message != p.owner.message):
			return fmt.Errorf("%s: token %d serves two holders", k, r.Token)
		}
		k.promise, k.verified, k.token = p, p, r.Token
		return nil
	}
	return fmt.Errorf("%s: the store has %s after %d attempts and %d crashes, written at %s, outcome %+v; want %s", k, r.State, r.Attempts, r.Crashes,
		written, r.Outcome, list(may))
}

func list(ps []promise) string {
	var out []string
	for _, p := range ps {
		if s := p.String(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return strings.Join(out, " or ")
}
