package middleware_test

import (
	"math/rand/v2"
	"slices"
)

// act is what happens in a step of the model.
type act uint8

const (
	deliver act = iota // a message comes to a process, for the first time or again
	finish             // a running job comes to an end
	beat               // a process renews its leases
	pass               // hours go by
	kill               // a process ends without a word, and another takes its place
	lapse              // the same, and its leases run out
	cutOff             // a process no longer reaches the store
	heal               // it does again
	pause              // the store is away for all
	resume             // it is back
	cancel             // an operator ends a job
	wake               // what a parked job waited for has come
	redrive            // a finished job is begun anew
	renew              // a new job takes the place of a finished one
	drop               // the body of an outcome is no longer kept
)

// weights is how often an act is done.
var weights = map[act]int{
	deliver: 40, finish: 20, beat: 4, pass: 12, kill: 3, lapse: 5, cutOff: 1, heal: 2, pause: 1, resume: 1, cancel: 1, wake: 3, redrive: 3, renew: 4, drop: 1,
}

// move is one step of the model: an act, and numbers that say with whom and how, whatever there is to choose from when it comes to
// that. So a run is a list of moves, and what is left of it when some are taken out is a run, too.
type move struct {
	act           act
	who, what, by int
	fault         fault
	at            int
	deaf          int
}

// moves draws a run.
func moves(rnd *rand.Rand, n int) []move {
	var urn []act
	for a := deliver; a <= drop; a++ {
		urn = append(urn, slices.Repeat([]act{a}, weights[a])...)
	}
	ms := make([]move, n)
	for i := range ms {
		ms[i] = move{act: urn[rnd.IntN(len(urn))], who: rnd.IntN(1 << 20), what: rnd.IntN(1 << 20), by: rnd.IntN(1 << 20)}
		if i > 0 && rnd.IntN(2) == 0 { // what befalls one job in one process is more telling
			ms[i].who, ms[i].what = ms[i-1].who, ms[i-1].what
		}
		switch rnd.IntN(10) {
		case 0:
			ms[i].fault, ms[i].at = fault(1+rnd.IntN(int(diesAfter))), rnd.IntN(3)
		case 1:
			ms[i].deaf = 1 + rnd.IntN(2)
		}
	}
	return ms
}
