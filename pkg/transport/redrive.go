package transport

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// Letter is what a dead letter says of itself.
type Letter struct {
	ID, Route, Kind, Error string
	At, Source             string
	Attempts, Generation   int
	Truncated              bool // the body was cut to fit, or headers were
	// Subject is where the job came from, as far as the letter says.
	Subject string
}

// ErrNotLetter: the message was not written as a dead letter by a sidecar.
var ErrNotLetter = errors.New("not a dead letter of a sidecar")

// ReadLetter reads a dead letter's headers. Its error is ErrNotLetter, wrapped.
func ReadLetter(m *Message) (*Letter, error) {
	l := &Letter{
		ID: m.Header.Get(HeaderJobID), Route: m.Header.Get(HeaderDeadRoute), Kind: m.Header.Get(HeaderDeadKind),
		Error: m.Header.Get(HeaderDeadError), At: m.Header.Get(HeaderDeadAt), Source: m.Header.Get(HeaderDeadSource),
		Subject: m.Header.Get(headerPoisonTopic),
	}
	_, l.Truncated = m.Header.Lookup(HeaderDeadTruncated)
	if l.ID == "" || l.Route == "" || l.Kind == "" {
		return l, fmt.Errorf("%w: it lacks %s, %s or %s", ErrNotLetter, HeaderJobID, HeaderDeadRoute, HeaderDeadKind)
	}
	for name, to := range map[string]*int{HeaderDeadAttempts: &l.Attempts, HeaderDeadGeneration: &l.Generation} {
		v, ok := m.Header.Lookup(name)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return l, fmt.Errorf("%w: header %s is %q", ErrNotLetter, name, v)
		}
		*to = n
	}
	return l, nil
}

// Redriven makes the message that sends the job of a dead letter on its way again, to subject: the same job in its next generation,
// which is claimed and counted anew. The same letter always gives the same message. A letter that was cut is refused.
func Redriven(m *Message, subject string) (*Message, error) {
	l, err := ReadLetter(m)
	if err != nil {
		return nil, err
	}
	if l.Truncated {
		return nil, fmt.Errorf("the dead letter of job %q was cut to what the broker takes: submit the job from its source instead", l.ID)
	}
	orig := *m
	orig.Subject = subject
	j := &job.Job{ID: l.ID, Route: l.Route, Generation: l.Generation + 1, Source: l.Source}
	return Moved(&orig, j, MoveRedrive), nil
}
