package storetest

import (
	"context"
	"errors"
	"sync"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// ErrLost is what a transaction returns whose reply was lost: it was done, and its caller cannot know.
var ErrLost = errors.New("reply lost")

// Faulty passes everything on to a Store and makes chosen transactions fail: for the tests of those who use a store. It may be
// used by many goroutines at once.
type Faulty struct {
	store.Store

	mu     sync.Mutex
	calls  int
	faults []*fault
}

type fault struct {
	match func(store.Txn) bool
	skip  int   // how many more that match pass first
	err   error // fails before the store sees it, unless lose
	lose  bool
	hook  func(ctx context.Context, t store.Txn) error
}

// NewFaulty wraps s. Without faults it behaves as s does.
func NewFaulty(s store.Store) *Faulty { return &Faulty{Store: s} }

// FailNext makes the nth transaction from now, counted from 1, fail with err; the store never sees it.
func (f *Faulty) FailNext(n int, err error) { f.FailWhen(anyTxn, n, err) }

// LoseReply makes the nth transaction from now, counted from 1, take place and return ErrLost.
func (f *Faulty) LoseReply(n int) { f.LoseReplyWhen(anyTxn, n) }

// FailWhen is FailNext for the nth transaction that matches.
func (f *Faulty) FailWhen(match func(store.Txn) bool, n int, err error) {
	f.add(&fault{match: match, skip: n - 1, err: err})
}

// LoseReplyWhen is LoseReply for the nth transaction that matches.
func (f *Faulty) LoseReplyWhen(match func(store.Txn) bool, n int) {
	f.add(&fault{match: match, skip: n - 1, lose: true})
}

// Before calls hook ahead of the nth transaction that matches, outside of all locks: to change the store under its caller, to wait, to
// end the process. An error of the hook fails the transaction.
func (f *Faulty) Before(match func(store.Txn) bool, n int, hook func(ctx context.Context, t store.Txn) error) {
	f.add(&fault{match: match, skip: n - 1, hook: hook})
}

// Calls returns how many transactions have been begun.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Writes matches transactions that write.
func Writes(t store.Txn) bool { return len(t.Then) > 0 }

// Puts matches transactions that put a key for which is true.
func Puts(is func(key string, value []byte) bool) func(store.Txn) bool {
	return func(t store.Txn) bool {
		for _, o := range t.Then {
			if o.Kind == store.OpPut && is(o.Key, o.Value) {
				return true
			}
		}
		return false
	}
}

// Txn implements store.Store.
func (f *Faulty) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	lose := false
	for _, x := range f.due(t) {
		switch {
		case x.hook != nil:
			if err := x.hook(ctx, t); err != nil {
				return store.Reply{}, err
			}
		case x.lose:
			lose = true
		default:
			return store.Reply{}, x.err
		}
	}
	r, err := f.Store.Txn(ctx, t)
	if err == nil && lose {
		return store.Reply{}, ErrLost
	}
	return r, err
}

// due counts t and takes out the faults whose turn it is.
func (f *Faulty) due(t store.Txn) []*fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	var due, rest []*fault
	for _, x := range f.faults {
		switch {
		case !x.match(t):
			rest = append(rest, x)
		case x.skip > 0:
			x.skip--
			rest = append(rest, x)
		default:
			due = append(due, x)
		}
	}
	f.faults = rest
	return due
}

func (f *Faulty) add(x *fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, x)
}

func anyTxn(store.Txn) bool { return true }
