package jetstream

import (
	"sync"
	"time"
)

const (
	// refusedMost is how many subjects are remembered, and refusedPace what lies between two messages that come back to one of them.
	refusedMost = 1024
	refusedPace = time.Millisecond
)

// refusals are the subjects that took nothing a moment ago, as a queue that is full. What falls due there meanwhile waits once more
// without a try, and comes back bit by bit: tries of very many would hold up what is due elsewhere.
type refusals struct {
	mu       sync.Mutex
	subjects map[string]*refusal
}

type refusal struct {
	until time.Time
	next  time.Time // when the next message may come
}

// note remembers that a subject takes nothing for a while.
func (r *refusals) note(subject string, d time.Duration) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.subjects == nil {
		r.subjects = make(map[string]*refusal)
	}
	x := r.subjects[subject]
	if x == nil {
		if len(r.subjects) >= refusedMost {
			for s, old := range r.subjects {
				if !now.Before(old.until) {
					delete(r.subjects, s)
				}
			}
		}
		if len(r.subjects) >= refusedMost {
			return // it is tried each time
		}
		x = new(refusal)
		r.subjects[subject] = x
	}
	x.until = now.Add(d)
}

// wait returns how long a message for the subject has to wait without a try; 0 where it may be tried.
func (r *refusals) wait(subject string) time.Duration {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.subjects[subject]
	if x == nil || !now.Before(x.until) {
		return 0
	}
	if x.next.Before(x.until) {
		x.next = x.until
	}
	x.next = x.next.Add(refusedPace)
	return x.next.Sub(now)
}
