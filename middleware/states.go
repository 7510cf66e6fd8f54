package middleware

import (
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// The life of a job:
//
//	              ┌──────── wake, due ───────┐
//	scheduled     ▼                          │
//	pending ──► running ──► retrying, waiting
//	              │   └───► done: completed, failed, dead, cancelled
//	              └ lease ran out: claimed again, a crash counted
//
// A job without a record is pending, or scheduled where its message says so. What a done job came to is said by its outcome. take
// is the whole of it: every write of a record is a step that it allowed, on the condition that the record is still the one
// that it was shown.

// state is where a job stands, as it is recorded. The numbers are the format.
type state uint8

const (
	running  state = 1 // claimed; the lease runs from the record's last write
	retrying state = 2 // failed, to be tried again once Wait has passed since the record's last write
	done     state = 3 // finished; Outcome is what is emitted, now and whenever the job is seen again
	waiting  state = 4 // parked, until Wait has passed or it is woken; what it did so far is no attempt
)

// verb is what is to happen to a job.
type verb uint8

const (
	claimIt  verb = iota // a delivery asks for it
	beatIt               // its owner says that it lives
	againIt              // its owner begins another attempt in place
	retryIt              // its owner has it tried again later
	returnIt             // its owner gives it back; the attempt does not count
	parkIt               // its owner lets it wait for something
	wakeIt               // what it waited for has come
	finishIt             // its owner records the outcome, or a better one
	recordIt             // somebody who has run it unclaimed records the outcome
	cancelIt             // an operator ends it
)

// step is a verb with what it needs.
type step struct {
	verb
	nonce   string        // who, and for which message: claimIt, recordIt
	token   uint64        // of the owner, for what only owners may do
	lease   time.Duration // claimIt
	age     time.Duration // how long ago the record was written, by the store's clock: claimIt
	wait    time.Duration // retryIt, parkIt
	err     string        // of the failed attempt
	outcome *job.Outcome  // finishIt, recordIt, cancelIt
	apart   bool          // the outcome's body lies under a key of its own
}

// answer is what becomes of a step.
type answer uint8

const (
	write   answer = iota // it may be taken: write the record that comes back
	mine                  // it was taken before, and only its answer was lost
	over                  // the job is done
	held                  // another owner has the job, for a while at least
	early                 // the job is not due for a while
	refused               // whoever asks is not the owner, or no longer
)

// take says what becomes of a step in the life of the job that r is the record of; nil where there is none. With write it returns
// the record that is to take r's place, with held and early how long to stay away.
func (r *record) take(s step) (next record, a answer, rest time.Duration) {
	if r != nil {
		next = *r
	}
	switch s.verb {
	case claimIt:
		return r.claim(s)
	case recordIt, cancelIt:
		switch {
		case r == nil:
			next = first(s.nonce, 0)
		case r.State == done:
			return next, over, 0
		default: // whoever has it loses it
			next.Token, next.Nonce = r.Token+1, s.nonce
		}
		next.end(s)
		return next, write, 0
	case wakeIt:
		if r == nil || r.State != waiting {
			return next, refused, 0
		}
		next.Wait = 0
		return next, write, 0
	}
	// The rest is for the owner.
	switch {
	case r == nil || r.Token != s.token:
		return next, refused, 0
	case s.verb == finishIt && (r.State == running || r.State == done):
		next.end(s)
		return next, write, 0
	case r.State != running:
		return next, refused, 0
	}
	switch s.verb {
	case beatIt:
	case againIt:
		next.Attempts++
	case retryIt:
		next.State, next.Wait, next.Err = retrying, s.wait, s.err
	case returnIt:
		next.State, next.Wait, next.Err = retrying, 0, s.err
		next.Attempts--
	case parkIt:
		next.State, next.Wait = waiting, s.wait
		next.Attempts--
	default:
		return next, refused, 0
	}
	return next, write, 0
}

// claim is take for a delivery that asks for the job.
func (r *record) claim(s step) (next record, a answer, rest time.Duration) {
	if r == nil {
		return first(s.nonce, s.lease), write, 0
	}
	next = *r
	next.State, next.Token, next.Nonce, next.Lease, next.Wait = running, r.Token+1, s.nonce, s.lease, 0
	next.Attempts++
	switch {
	case r.State == done:
		return *r, over, 0
	case r.State != running && s.age < r.Wait:
		return *r, early, r.Wait - s.age
	case r.State != running:
		return next, write, 0
	case r.Nonce == s.nonce:
		return *r, mine, 0
	case s.age < r.Lease:
		return *r, held, r.Lease - s.age
	}
	next.Crashes++ // its owner went without a word
	return next, write, 0
}

// end makes r the record of a job that is done.
func (r *record) end(s step) {
	r.State, r.Outcome, r.Lease, r.Wait, r.Err, r.Apart = done, s.outcome, 0, 0, "", s.apart
}
