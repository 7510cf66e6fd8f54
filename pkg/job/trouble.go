package job

import "errors"

// Part is what the chain works with outside the process.
type Part string

// The parts.
const (
	PartStore     Part = "store"     // where claims and outcomes are kept
	PartPublisher Part = "publisher" // where results, replies and dead letters go
)

// Trouble is an error of the chain that names the part which could not do its work.
type Trouble struct {
	Part Part
	Err  error // never nil
}

// Error returns the cause's text, which names the part in its own words.
func (t *Trouble) Error() string { return t.Err.Error() }

// Unwrap returns the cause.
func (t *Trouble) Unwrap() error { return t.Err }

// PartOf returns the part that err blames, "" where it blames none.
func PartOf(err error) Part {
	var t *Trouble
	if errors.As(err, &t) {
		return t.Part
	}
	return ""
}
