package middleware_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/wasmsidecar/wasmsidecar/middleware"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// What the model grants and how long things last in it. Its clock goes by whole hours, so that none of these ends near one.
const (
	modelLease    = 10*time.Hour + 30*time.Minute
	modelBackoff  = time.Hour + 30*time.Minute
	modelSoon     = time.Millisecond // doubles with each attempt
	modelPark     = 20*time.Hour + 30*time.Minute
	modelAttempts = 3
	modelCrashes  = 3
)

// promise says what is promised of one job id and generation, in the words of the design and not of the code: it knows neither
// records nor revisions nor tokens. Every method says what has to be seen, and changes what is true from then on.
type promise struct {
	limit   int    // attempts that the job grants; 0 leaves it to the route
	outcome string // what was recorded, once and for good; empty until then
	bare    bool   // its body is no longer kept

	attempts int // executions begun, those apart that were parked or given up
	crashes  int // of them, those that ended without a word

	held   bool          // it was granted to somebody who has not ended it
	owner  owner         // that one
	until  time.Duration // when the lease ends
	due    time.Duration // it does not begin before
	parked bool
	begun  bool // something of it is written down
}

// owner is who holds a job: for which message of it, in which life of which process, on which of its trips through the chain. Trip 0
// means that the process does not know of its luck: it was granted the job and the answer was lost.
type owner struct{ life, message, trip int }

// asker is who delivers a message, and what stands in its way in its own process.
type asker struct {
	owner
	busy    bool // the process has the job in hand already
	others  bool // it runs other jobs
	suspect bool // one of them is suspected of killing processes
	unseen  bool // running the job twice could not be seen, and this message was never delivered before
	mute    bool // the store did not answer this process when it was last asked
	cut     bool // the process does not reach the store
}

// sight is what has to be seen of a trip: the guest is entered, or the trip ends with a settlement and what it emits.
type sight struct {
	enters  bool
	open    bool // without a claim
	attempt int
	blocks  bool // it waits for the store
	gated   bool // it waits to run alone, or for one that does
	left    bool // the trip ends with an error: the message is left for later
	verb    job.Verb
	most    time.Duration // the longest wait that the settlement may ask for; it asks for one if this is not 0
	emits   string        // the outcome that is emitted; empty for nothing
}

func (s sight) String() string {
	switch {
	case s.enters:
		return fmt.Sprintf("attempt %d begins (open: %t)", s.attempt, s.open)
	case s.blocks:
		return "waits for the store"
	case s.left:
		return "left with an error"
	}
	return fmt.Sprintf("%s within %s, emits %q", s.verb, s.most, s.emits)
}

// over is the sight of a job whose outcome is recorded: it is emitted, now and whenever its message comes again.
func (p *promise) over() sight {
	switch {
	case p.bare:
		return sight{verb: job.Ack}
	case kindOf(p.outcome).Fate().DeadLetter:
		return sight{verb: job.Dead, emits: p.outcome}
	}
	return sight{verb: job.Ack, emits: p.outcome}
}

// deliver is a message that comes at now.
func (p *promise) deliver(now time.Duration, a asker) sight {
	gated := sight{gated: true, verb: job.Leave, most: modelLease}
	switch {
	case a.suspect:
		return gated // a suspect runs alone
	case a.busy:
		return sight{verb: job.Leave, most: modelLease} // one trip of a job in a process
	case a.unseen && p.limit != 1 && !a.mute:
		return sight{enters: true, open: true, attempt: 1}
	case a.cut:
		return sight{left: true} // nothing begins while the store is away
	case p.outcome != "":
		return p.over()
	case p.held && p.owner == (owner{a.life, a.message, 0}):
		if p.suspect(p.crashes) && a.others {
			return gated
		}
		p.owner.trip = a.trip // it was granted to this process before
	case p.held && now < p.until:
		return sight{verb: job.Leave, most: p.until - now} // never two holders while the lease lives
	case !p.held && now < p.due:
		return sight{verb: job.Retry, most: p.due - now}
	default:
		crashes := p.crashes
		if p.held { // a lease that ran out without a word
			crashes++
		}
		if p.suspect(crashes) && a.others {
			return gated
		}
		p.grant(now, a.owner, crashes)
	}
	if p.crashes >= modelCrashes || p.limit == 1 && p.crashes >= 1 {
		return p.record(fmt.Sprintf("trap the process that ran it ended without a word %d times", p.crashes))
	}
	return sight{enters: true, attempt: p.attempts}
}

// suspect says whether a job with so many crashes is to run alone: the next one ends it.
func (p *promise) suspect(crashes int) bool { return crashes == modelCrashes-1 && p.limit != 1 }

// grant gives the job to o.
func (p *promise) grant(now time.Duration, o owner, crashes int) {
	p.attempts, p.crashes = p.attempts+1, crashes
	p.begun, p.held, p.owner, p.until, p.parked = true, true, o, now+modelLease, false
}

// record makes an outcome the last word.
func (p *promise) record(outcome string) sight {
	p.outcome, p.begun, p.held, p.parked = outcome, true, false, false
	return p.over()
}

// ending is what the guest comes to.
type ending struct {
	verb endVerb
	body string
	late bool // it could not be written down for a while, or came to a suspect: what is to be tried again soon is not in place
}

type endVerb uint8

const (
	goesWell endVerb = iota
	refuses          // a verdict that is not tried again
	traps            // to be tried again later
	trapsNow         // to be tried again in place
	parks
	givesUp // the attempt was given up by the sidecar
)

func (v endVerb) String() string {
	return [...]string{"goes well", "refuses", "traps", "traps, soon again", "parks", "gives up"}[v]
}

// finish is the end of a trip at now: with what the guest came to. open says that it ran without a claim.
func (p *promise) finish(now time.Duration, o owner, open bool, e ending) sight {
	fenced := sight{verb: job.Leave, most: time.Second}
	if e.verb == givesUp {
		fenced = sight{left: true}
	}
	switch {
	case open && p.outcome != "" && (e.verb == goesWell || e.verb == refuses):
		return p.over() // whoever records first is right, and all emit that
	case open && (e.verb == goesWell || e.verb == refuses): // whoever has claimed it meanwhile is fenced
	case open && p.begun:
		return fenced
	case open:
		p.grant(now, o, 0)
	case !p.held || p.owner != o:
		return fenced
	}
	attempts := p.attempts - p.crashes
	if p.limit == 1 {
		attempts = p.attempts
	}
	switch e.verb {
	case goesWell:
		return p.record("ok " + e.body)
	case refuses:
		return p.record("failed " + e.body)
	case parks:
		p.held, p.parked, p.due = false, true, now+modelPark
		p.attempts--
		return sight{verb: job.Retry, most: modelPark}
	case givesUp:
		p.held, p.due = false, now
		p.attempts--
		return sight{left: true}
	}
	switch {
	case attempts >= modelAttempts || p.limit == 1:
		return p.record("trap " + e.body)
	case e.verb == trapsNow && e.late: // its next attempt is not begun from here
		soon := modelSoon << (attempts - 1)
		p.held, p.due = false, now+soon
		return sight{verb: job.Retry, most: soon}
	case e.verb == trapsNow:
		p.attempts++
		p.until = now + modelLease
		return sight{enters: true, attempt: p.attempts}
	}
	p.held, p.due = false, now+modelBackoff
	return sight{verb: job.Retry, most: modelBackoff}
}

// beat is a heartbeat of o; it says whether o still has the job.
func (p *promise) beat(now time.Duration, o owner) bool {
	if !p.held || p.owner != o {
		return false
	}
	p.until = now + modelLease
	return true
}

// cancel is an operator who ends the job; it says whether he was in time.
func (p *promise) cancel(reason string) bool {
	if p.outcome != "" {
		return false
	}
	p.record("cancelled " + reason)
	return true
}

// wake ends the wait of a parked job; it says whether there was one.
func (p *promise) wake(now time.Duration) bool {
	if !p.parked {
		return false
	}
	p.due = now
	return true
}

// stands says whether r is how a job stands of which p is promised. written is when it was written.
func (p *promise) stands(r middleware.Recorded, written time.Duration) bool {
	switch {
	case p.bare:
		return r.State == "done" && kindOf(p.outcome) == r.Outcome.Kind && len(r.Outcome.Body) == 0
	case p.outcome != "":
		return r.State == "done" && p.outcome == outcomeOf(r.Outcome)
	case r.Attempts != p.attempts || r.Crashes != p.crashes:
		return false
	case p.held:
		return r.State == "running" && p.until == written+modelLease
	case p.parked:
		return r.State == "waiting" && p.due == written+r.Wait
	case p.begun:
		return r.State == "retrying" && p.due == written+r.Wait
	}
	return r.State == ""
}

func outcomeOf(o *job.Outcome) string {
	if o.Kind == job.KindOK {
		return string(o.Kind) + " " + string(o.Body)
	}
	return string(o.Kind) + " " + o.Err
}

func (p *promise) String() string {
	switch {
	case p.outcome != "":
		return fmt.Sprintf("done: %q", p.outcome)
	case p.held:
		return fmt.Sprintf("attempt %d, %d crashes, held by process %d until %s", p.attempts, p.crashes, p.owner.life, p.until)
	case p.begun:
		return fmt.Sprintf("attempt %d, %d crashes, due at %s (parked: %t)", p.attempts, p.crashes, p.due, p.parked)
	}
	return "not begun"
}

func kindOf(outcome string) job.Kind {
	kind, _, _ := strings.Cut(outcome, " ")
	return job.Kind(kind)
}
