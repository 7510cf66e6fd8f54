package middleware

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

var verbs = []struct {
	name string
	verb verb
}{
	{"claim", claimIt}, {"beat", beatIt}, {"again", againIt}, {"retry", retryIt}, {"return", returnIt},
	{"park", parkIt}, {"wake", wakeIt}, {"finish", finishIt}, {"record", recordIt}, {"cancel", cancelIt},
}

var answers = [...]string{write: "write", mine: "mine", over: "over", held: "held", early: "early", refused: "-"}

var states = [...]string{running: "running", retrying: "retrying", done: "done", waiting: "waiting"}

// The whole table: what becomes of every step in every state, for the owner and for somebody else. A write is shown as the state that
// it leads to.
func TestTransitions(t *testing.T) {
	t.Parallel()
	const lease, wait = time.Minute, time.Hour
	base := record{Token: 4, Nonce: "owner", Attempts: 3, Crashes: 1}
	in := func(st state, change func(*record)) *record {
		r := base
		r.State = st
		if change != nil {
			change(&r)
		}
		return &r
	}
	rows := []struct {
		name string
		rec  *record
		age  time.Duration
		// One word for each verb, in the order of the list above: by the owner, by somebody else.
		owner, other string
	}{
		{"none", nil, 0,
			"running - - - - - - - done done",
			"running - - - - - - - done done"},
		{"running", in(running, func(r *record) { r.Lease = lease }), lease - 1,
			"mine running running retrying retrying waiting - done done done",
			"held - - - - - - - done done"},
		{"running, lease over", in(running, func(r *record) { r.Lease = lease }), lease,
			"mine running running retrying retrying waiting - done done done",
			"running - - - - - - - done done"},
		{"retrying", in(retrying, func(r *record) { r.Wait = wait }), wait - 1,
			"early - - - - - - - done done",
			"early - - - - - - - done done"},
		{"retrying, due", in(retrying, func(r *record) { r.Wait = wait }), wait,
			"running - - - - - - - done done",
			"running - - - - - - - done done"},
		{"waiting", in(waiting, func(r *record) { r.Wait = wait }), wait - 1,
			"early - - - - - waiting - done done",
			"early - - - - - waiting - done done"},
		{"waiting, due", in(waiting, func(r *record) { r.Wait = wait }), wait,
			"running - - - - - waiting - done done",
			"running - - - - - waiting - done done"},
		{"done", in(done, func(r *record) { r.Outcome = &job.Outcome{Kind: job.KindOK} }), lease,
			"over - - - - - - done over over",
			"over - - - - - - - over over"},
	}
	for _, row := range rows {
		for who, want := range map[string]string{"owner": row.owner, "other": row.other} {
			var got []string
			for _, v := range verbs {
				s := step{verb: v.verb, nonce: who, token: base.Token, lease: lease, age: row.age, wait: wait, outcome: &job.Outcome{}}
				if who == "other" {
					s.token--
				}
				next, a, rest := row.rec.take(s)
				word := answers[a]
				if a == write {
					word = states[next.State]
				}
				got = append(got, word)
				if (a == held || a == early) != (rest > 0) {
					t.Errorf("%s, %s by %s: stay away for %s with %s", row.name, v.name, who, rest, word)
				}
			}
			if g := strings.Join(got, " "); g != want {
				t.Errorf("%s, by %s:\n got %s\nwant %s", row.name, who, g, want)
			}
		}
	}
}

// What is counted, by every step that counts.
func TestCounts(t *testing.T) {
	t.Parallel()
	r := record{State: running, Token: 4, Nonce: "a", Attempts: 3, Crashes: 1, Lease: time.Minute}
	for _, tt := range []struct {
		name              string
		step              step
		token             uint64
		attempts, crashes int
	}{
		{"a claim after a crash", step{verb: claimIt, nonce: "b", age: time.Minute}, 5, 4, 2},
		{"another attempt in place", step{verb: againIt, token: 4}, 4, 4, 1},
		{"a retry", step{verb: retryIt, token: 4, wait: 1}, 4, 3, 1},
		{"given back", step{verb: returnIt, token: 4}, 4, 2, 1},
		{"parked", step{verb: parkIt, token: 4, wait: 1}, 4, 2, 1},
		{"a heartbeat", step{verb: beatIt, token: 4}, 4, 3, 1},
		{"cancelled", step{verb: cancelIt, outcome: &job.Outcome{}}, 5, 3, 1},
	} {
		next, a, _ := r.take(tt.step)
		if a != write || next.Token != tt.token || next.Attempts != tt.attempts || next.Crashes != tt.crashes {
			t.Errorf("%s: %s, token %d, attempts %d, crashes %d", tt.name, answers[a], next.Token, next.Attempts, next.Crashes)
		}
	}
}

// However a job's life goes: an owner that was replaced never writes again, what is done stays done, and every record survives being
// stored.
func TestLives(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range 300 {
		var r *record
		var told []string
		for range 50 {
			v := verbs[rnd.IntN(len(verbs))]
			s := step{
				verb: v.verb, nonce: fmt.Sprint(rnd.IntN(3)), token: rnd.Uint64N(6), lease: 10, age: time.Duration(rnd.IntN(20)),
				wait: time.Duration(rnd.IntN(20)), outcome: &job.Outcome{Kind: job.KindOK, Attempts: rnd.IntN(9)},
			}
			next, a, _ := r.take(s)
			told = append(told, fmt.Sprintf("%s %s", v.name, answers[a]))
			if a != write {
				continue
			}
			owners := []verb{beatIt, againIt, retryIt, returnIt, parkIt, finishIt}
			switch {
			case r != nil && next.Token < r.Token:
				t.Fatalf("the token went back: %v", told)
			case r != nil && slices.Contains(owners, v.verb) && s.token != r.Token:
				t.Fatalf("somebody else wrote as the owner: %v", told)
			case r != nil && r.State == done && (next.State != done || v.verb != finishIt):
				t.Fatalf("what was done did not stay so: %v", told)
			case next.Attempts < 0:
				t.Fatalf("%d attempts: %v", next.Attempts, told)
			}
			var err error
			if r, err = decodeRecord(next.encode("id"), "id"); err != nil {
				t.Fatalf("%v: %v", err, told)
			}
		}
	}
}
