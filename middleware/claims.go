package middleware

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/deadline"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// errFenced says that a claim was lost: its lease ran out and another owner took the job. What the stale owner did is not
// recorded; what the other records counts.
var errFenced = errors.New("the claim was lost to another owner")

// errRecorded says that another has recorded the outcome of a job that ran unclaimed here: that one counts. The claim then holds
// the other's record.
var errRecorded = errors.New("another has recorded the outcome already")

// ClaimsConfig is what Claims needs.
type ClaimsConfig struct {
	Route string
	// Partition is the store's partition for the route's records: the subject that jobs come from, so that where transport and
	// store are one sharded Redis both lie on one shard.
	Partition string
	// Scope tells apart those who share a store without sharing their work: the transport and the consumer group. The same
	// message means one job to all sidecars of one scope.
	Scope string
	// Lease is how long a claim lives without a heartbeat, by the store's clock; 0 means 30 s. It has nothing to do with how
	// long a job may take.
	Lease time.Duration
	// TTL is how long an outcome is remembered after the job is done; 0 means 24 h.
	TTL time.Duration
	// Results is how long the outcome's body is remembered, where that is shorter than TTL. A job seen again after it is
	// acknowledged without output, so it must outlast any outage of what the result is published to.
	Results time.Duration
	// RunUnclaimed runs jobs although the store cannot be asked: they may run twice, and outcomes that could not be recorded are
	// published all the same. Without it jobs wait.
	RunUnclaimed bool
	// Owner names this process, differently in every life of it; empty makes a random one.
	Owner string
	Log   *slog.Logger
}

// Claims is the claim protocol of one route over a store.Store: one record for each job id, taken before the job runs, kept
// alive while it runs, and replaced by the outcome. Every write names the revision that it replaces, so that a stale owner's
// write is refused.
type Claims struct {
	cfg ClaimsConfig
	st  store.Store

	begun time.Time
	away  atomic.Int64 // until when the store is not asked, in nanoseconds since begun, whatever the host's clock is set to; see take
	mute  atomic.Bool  // the store did not answer when it was asked last: nothing is begun unclaimed

	// ends is the latest context of soon, and until when it is given out. Nobody cancels it: it ends by itself.
	ends struct {
		sync.Mutex
		ctx    context.Context
		cancel context.CancelFunc
		until  time.Time
	}
	keys, bodies string // what keys of records and of outcomes' bodies begin with

	mu     sync.Mutex
	active map[string]*claim // by key; at most one flight of a job in this process
	stop   context.CancelFunc
	done   context.Context
	wg     sync.WaitGroup
}

// maxGeneration is how long a job's generation is in a key, at most.
const maxGeneration = 20

// claimRounds is how often a claim is written again because somebody else wrote the record meanwhile.
const claimRounds = 16

// unreadableWait is how long a job waits whose record this build cannot read, as one that a later build has written: until it expires, or
// somebody comes who can.
const unreadableWait = time.Minute

// NewClaims makes the claims of a route and starts their heartbeat. Close them after the router has ended.
func NewClaims(st store.Store, cfg ClaimsConfig) (*Claims, error) {
	if st == nil || cfg.Route == "" || cfg.Partition == "" || cfg.Log == nil {
		return nil, errors.New("claims: store, route, partition and log are required")
	}
	if cfg.Lease <= 0 {
		cfg.Lease = 30 * time.Second
	}
	if cfg.TTL <= 0 {
		cfg.TTL = 24 * time.Hour
	}
	if cfg.Owner == "" {
		cfg.Owner = rand.Text()[:16]
	}
	c := &Claims{cfg: cfg, st: st, begun: time.Now(), active: map[string]*claim{}}
	c.keys = store.Key(cfg.Partition, "claim", cfg.Scope, cfg.Route, "")
	c.bodies = store.Key(cfg.Partition, "result", cfg.Scope, cfg.Route, "")
	if n, most := len(c.bodies), store.MaxKeyLen-maxGeneration-1-job.MaxIDLen; n > most {
		return nil, fmt.Errorf("claims of route %q: the names of its subject, its group and itself come to %d bytes in the store's keys, and %d is the most: shorten them", cfg.Route, n, most)
	}
	c.done, c.stop = context.WithCancel(context.Background())
	c.wg.Go(c.heartbeat)
	return c, nil
}

// Close ends the heartbeat. Claims still held lapse with their lease.
func (c *Claims) Close() error {
	c.stop()
	c.wg.Wait()
	return nil
}

// claim is one job in this process's hands.
type claim struct {
	c   *Claims
	id  string // the job's
	key string // of the record

	mu      sync.Mutex // serialises writes, so that a heartbeat and a completion do not refuse one another
	rec     record
	rev     int64
	written time.Time // local time of the last successful write
	lost    bool
	open    bool // nothing is written yet: the job runs unclaimed, and the first to record its outcome is right
	crashed bool // the claim before this one ended without a word
	running bool
	run     deadline.Cancellable // of the job, once it runs
}

// taken is the answer to a claim that was not granted.
type taken struct {
	outcome *job.Outcome  // recorded earlier, by
	claim   *claim        // this one
	silent  bool          // done, and its outcome's body is no longer kept
	leave   time.Duration // another owner has it, for so long at least
	retry   time.Duration // it is to be tried again after so long
	suspect int           // it has crashed so often that it runs only alone
}

// request is how a job is claimed.
type request struct {
	open  bool // without a claim, where the store was there a moment ago; see take
	alone bool // no other job runs in the process
	limit int  // the crashes that end it; 0: none does
}

// suspect says whether a job with so many crashes is not to be claimed now.
func (q request) suspect(crashes int) bool { return !q.alone && suspect(crashes, q.limit) }

// key is that of a job's record.
func (c *Claims) key(id string, generation int) string {
	return c.keys + strconv.Itoa(generation) + "/" + id
}

// bodyKey is that of the outcome's body, where it is kept apart.
func (cl *claim) bodyKey() string { return cl.c.bodies + cl.key[len(cl.c.keys):] }

// take claims a job. It returns the claim, or why there is none. An error means that the store could not say.
//
// With open nothing is written: the claim is only this process's flight of the job, and its first write, whatever it says, is
// made on the condition that there is no record yet. That is for jobs whose running twice nobody would see, in messages that
// nobody can have had before: it saves the first of two round trips.
func (c *Claims) take(ctx context.Context, j *job.Job, q request) (*claim, *taken, error) {
	cl := &claim{c: c, id: j.ID, key: c.key(j.ID, j.Generation)}
	c.mu.Lock()
	if _, busy := c.active[cl.key]; busy {
		c.mu.Unlock()
		return nil, &taken{leave: c.busy()}, nil
	}
	nonce := c.cfg.Owner + "/" + j.Source
	open := q.open && !c.mute.Load()
	cl.rec, cl.open = first(nonce, c.cfg.Lease), open
	c.active[cl.key] = cl
	c.mu.Unlock()
	if open {
		return cl, nil, nil
	}
	t, err := cl.acquire(ctx, nonce, q)
	if err != nil || t != nil {
		cl.forget()
		return nil, t, err
	}
	return cl, nil, nil
}

// acquire writes the claim's record, or finds out who has it.
func (cl *claim) acquire(ctx context.Context, nonce string, q request) (*taken, error) {
	c := cl.c
	cl.mu.Lock() // the heartbeat passes over a claim that is being written
	defer cl.mu.Unlock()
	s := step{verb: claimIt, nonce: nonce, lease: c.cfg.Lease}
	rec, _, _ := (*record)(nil).take(s)
	var rev int64
	crashed := false
	for range claimRounds {
		b := rec.encode(cl.id)
		sent := time.Now()
		r, err := c.st.Txn(ctx, store.Txn{
			If:   []store.Cond{{Key: cl.key, Revision: rev}},
			Then: []store.Op{store.Put(cl.key, b, c.keep())},
			Read: []string{cl.key},
		})
		if c.mute.Store(err != nil); err != nil {
			return nil, fmt.Errorf("claim: %w", err)
		}
		if r.Done {
			cl.rec, cl.rev, cl.written, cl.crashed = rec, r.Revision, sent, crashed
			return nil, nil
		}
		kv := r.Read[0]
		var old *record // nil: it expired between two rounds
		if kv.Exists() {
			if old, err = decodeRecord(kv.Value, cl.id); err != nil { // which is no fault of the store, nor of other jobs
				c.cfg.Log.Error("a job waits, since its record cannot be read", "route", c.cfg.Route, "job_id", cl.id, "key", cl.key, "for", unreadableWait, "err", err)
				return &taken{retry: unreadableWait}, nil
			}
		}
		s.age = max(r.Now.Sub(kv.Modified), 0) // a clock that stepped back lengthens no wait,
		if old != nil && old.State != done && kv.Modified.Sub(r.Now) > c.cfg.Lease {
			// but nothing would run out until it is where it was. Written anew, a record counts from now; where that fails, the next to ask
			// does it. An owner who lives finds his own record under another revision.
			_, _ = c.st.Txn(ctx, store.Txn{
				If:   []store.Cond{{Key: cl.key, Revision: kv.Revision}},
				Then: []store.Op{store.Put(cl.key, kv.Value, c.keep()+old.Wait)},
			})
		}
		next, answer, rest := old.take(s)
		switch answer {
		case over:
			cl.rec, cl.rev = *old, kv.Revision
			return cl.recorded(ctx, old)
		case early:
			return &taken{retry: rest}, nil
		case held:
			return &taken{leave: rest}, nil
		case mine:
			if q.suspect(old.Crashes) {
				return &taken{suspect: old.Crashes}, nil
			}
			cl.rec, cl.rev, cl.written = *old, kv.Revision, sent.Add(-s.age)
			return nil, nil
		}
		if q.suspect(next.Crashes) { // before it is claimed: waiting, it must not share the blame for the one that runs
			return &taken{suspect: next.Crashes}, nil
		}
		rec, rev = next, kv.Revision
		crashed = old != nil && next.Crashes > old.Crashes
	}
	return &taken{leave: 100 * time.Millisecond}, nil
}

// recorded answers for a job that is done.
func (cl *claim) recorded(ctx context.Context, rec *record) (*taken, error) {
	if rec.Apart {
		kv, err := store.Get(ctx, cl.c.st, cl.bodyKey())
		if err != nil {
			return nil, fmt.Errorf("read the recorded result: %w", err)
		}
		if !kv.Exists() {
			return &taken{silent: true}, nil
		}
		rec.Outcome.Body = kv.Value
	}
	return &taken{outcome: rec.Outcome, claim: cl}, nil
}

// finish makes an outcome the last word on the job. It says whether end, which may be nil, was taken along.
func (cl *claim) finish(ctx context.Context, o *job.Outcome, end transport.Ending) (ended bool, err error) {
	ttl, apart, with := cl.c.cfg.TTL, false, extras{}
	if end != nil {
		with.along = end
	}
	if results := cl.c.cfg.Results; len(o.Body) > 0 && results > 0 && results < ttl {
		bare := *o
		bare.Body = nil
		with.ops = []store.Op{store.Put(cl.bodyKey(), o.Body, results)}
		o, apart = &bare, true
	}
	verb := finishIt
	if cl.unclaimed() {
		verb = recordIt
	}
	return cl.put(ctx, step{verb: verb, outcome: o, apart: apart}, ttl, with)
}

// unclaimed says whether nothing is written of the job yet.
func (cl *claim) unclaimed() bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.open
}

// next counts another attempt.
func (cl *claim) next(ctx context.Context) error {
	_, err := cl.put(ctx, step{verb: againIt}, cl.c.keep(), extras{})
	return err
}

// keep is how long a record of an unfinished job is kept: no shorter than an outcome, and well beyond a lease.
func (c *Claims) keep() time.Duration { return max(c.cfg.TTL, 10*c.cfg.Lease) }

// extras are written with a record.
type extras struct {
	ops   []store.Op
	along any // see store.Txn
}

// put takes a step. Reading, changing and writing are one, so that a heartbeat never writes over what came after it. errFenced means
// that another owner has taken the job, or that its record is gone; errRecorded that another has finished it. along says that what
// was to be taken along was.
//
// When the answer of the store is lost, it looks at what is there; what became of the rest it cannot see.
func (cl *claim) put(ctx context.Context, s step, ttl time.Duration, with extras) (along bool, err error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.lost {
		return false, errFenced
	}
	s.token, s.nonce = cl.rec.Token, cl.rec.Nonce
	rec, answer, _ := cl.rec.take(s)
	if s.verb == recordIt { // there is no record to begin with, as far as we know
		rec, answer, _ = (*record)(nil).take(s)
	}
	if answer != write {
		return false, errFenced
	}
	b := rec.encode(cl.id)
	// What was read is forgotten with an error: the revision of another's record is not ours to keep, and least of all to renew.
	rev := cl.rev
	for range 3 {
		sent := time.Now()
		r, err := cl.c.st.Txn(ctx, store.Txn{
			If:    []store.Cond{{Key: cl.key, Revision: rev}},
			Then:  append([]store.Op{store.Put(cl.key, b, ttl)}, with.ops...),
			Along: with.along,
		})
		if cl.c.mute.Store(err != nil); err != nil {
			return false, err
		}
		if r.Done {
			cl.rec, cl.rev, cl.written, cl.open = rec, r.Revision, sent, false
			return r.Along, nil
		}
		kv, err := store.Get(ctx, cl.c.st, cl.key) // rarely needed, and not all stores read for nothing
		if err != nil {
			return false, err
		}
		var old *record
		if kv.Exists() {
			if old, err = decodeRecord(kv.Value, cl.id); err != nil {
				break
			}
		}
		ours := old != nil && old.Token == rec.Token && old.Nonce == rec.Nonce
		switch {
		case ours && (cl.open || old.State != running) && string(kv.Value) == string(b): // this write, whose answer was lost
			cl.rec, cl.rev, cl.written, cl.open = rec, kv.Revision, sent, false
			return false, nil
		case s.verb == recordIt: // whoever records first is right; another who has claimed it has its writes refused
			if rec, answer, _ = old.take(s); answer == over {
				cl.rec, cl.rev, cl.open = *old, kv.Revision, false
				return false, errRecorded
			}
			b = rec.encode(cl.id)
		case cl.open && old == nil: // another's record was there, and has expired
		case !ours:
			cl.lose()
			return false, errFenced
		}
		rev = kv.Revision // or an earlier write of ours went through unheard
	}
	cl.lose()
	return false, errFenced
}

// lose ends a claim that another owner has taken.
func (cl *claim) lose() {
	cl.lost = true
	if cl.running {
		cl.run.Cancel(errFenced)
	}
}

// forget ends the flight of the job in this process.
func (cl *claim) forget() {
	cl.c.mu.Lock()
	delete(cl.c.active, cl.key)
	cl.c.mu.Unlock()
}

// heartbeat renews every claim whose last write is a third of a lease ago.
func (c *Claims) heartbeat() {
	tick := time.NewTicker(max(c.cfg.Lease/12, 5*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.done.Done():
			return
		case <-tick.C:
		}
		var wg sync.WaitGroup
		for _, cl := range c.due(c.cfg.Lease / 3) {
			wg.Go(func() { cl.renew() })
		}
		wg.Wait()
	}
}

// due returns the claims whose last write is longer ago than age.
func (c *Claims) due(age time.Duration) (due []*claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range c.active {
		if cl.mu.TryLock() { // one that is being written needs no heartbeat
			if cl.rev != 0 && !cl.lost && cl.rec.State == running && time.Since(cl.written) > age {
				due = append(due, cl)
			}
			cl.mu.Unlock()
		}
	}
	return due
}

// renew writes the record once more, which starts its lease anew.
func (cl *claim) renew() {
	ctx, cancel := context.WithTimeout(cl.c.done, cl.c.cfg.Lease/3)
	defer cancel()
	if _, err := cl.put(ctx, step{verb: beatIt}, cl.c.keep(), extras{}); err != nil && !errors.Is(err, errFenced) && cl.c.done.Err() == nil {
		cl.c.cfg.Log.Warn("heartbeat of a claim failed", "route", cl.c.cfg.Route, "key", cl.key, "err", err)
	}
}
