// Package store is the contract for the state that outlives a process: revisioned keys with expiry, transactions over several
// of them, ordered sets and watch, after etcd. Claims, results, timers, listings, steps and locks are built on it.
//
// Implementations live below this package, one database each; storetest holds the suite that all of them pass. Records carry
// a format version of their own: the store treats values as bytes.
package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Errors that a Store returns, wrapped; test with errors.Is. Anything else is transient: the database is away or busy, and
// whether the transaction took place is unknown.
var (
	ErrClosed = errors.New("store closed")
	// ErrPartition: a transaction names keys of more than one partition. A mistake of the program.
	ErrPartition = errors.New("transaction spans partitions")
	// ErrTooLarge: a value is larger than the database takes.
	ErrTooLarge = errors.New("value too large")
	// ErrFull: the database refuses writes because it is full. Transient, but it needs the operator.
	ErrFull = errors.New("store full")
	// ErrUnsupported: the database is too old for, or is set up so that it cannot do, what the store needs. Permanent.
	ErrUnsupported = errors.New("not supported by the database")
	// ErrInvalid: an empty key, a negative TTL, a nameless set, a transaction too long. A mistake of the program.
	ErrInvalid = errors.New("invalid request")
)

// What every implementation takes.
const (
	MaxKeyLen = 1024  // bytes of a key, of a set's name and of a member
	MaxTxnLen = 500   // conditions, operations and keys to read of one transaction, together
	MaxRange  = 10000 // members of one answer to Range
)

// Key joins a partition and the parts of a name: partition, slash, parts joined by slashes. Slashes and percent signs inside
// the partition and all parts but the last are escaped, so that different names of the same number of parts never meet. All keys
// and sets of one transaction must be of one partition; where the database is sharded a partition lies on one shard.
func Key(partition string, parts ...string) string {
	n := len(partition)
	for _, p := range parts {
		n += 1 + len(p)
	}
	var b strings.Builder
	b.Grow(n + 4)
	b.WriteString(escape(partition))
	for i, p := range parts {
		b.WriteByte('/')
		if i < len(parts)-1 {
			p = escape(p)
		}
		b.WriteString(p)
	}
	return b.String()
}

func escape(s string) string {
	if !strings.ContainsAny(s, "/%") {
		return s
	}
	return strings.NewReplacer("%", "%25", "/", "%2F").Replace(s)
}

// Partition returns what stands before the first slash of a key.
func Partition(key string) string {
	p, _, _ := strings.Cut(key, "/")
	return p
}

// KV is a key as it stands in the store. A key that does not exist has Revision 0 and no Value.
type KV struct {
	Key   string
	Value []byte
	// Revision changes with every write of the key and is never used again for it, even after deletion or expiry.
	Revision int64
	// Modified is when the key was last written, by the database's clock. Compare it with Reply.Now only, never with local time.
	Modified time.Time
}

// Exists says whether the key is there.
func (kv KV) Exists() bool { return kv.Revision != 0 }

// Cond is a condition of a transaction: the key's revision is Revision; 0 means that the key does not exist.
type Cond struct {
	Key      string
	Revision int64
}

// OpKind is what an Op does.
type OpKind uint8

// The operations.
const (
	OpPut    OpKind = iota // write Value to Key, to expire after TTL (0: never); the TTL of an earlier write is forgotten
	OpDelete               // remove Key; no error if it is not there
	OpAdd                  // add Member to the ordered set Key with Score, or change its score
	OpRemove               // remove Member from the ordered set Key
)

// Op is one write of a transaction. Make it with Put, Delete, Add or Remove.
type Op struct {
	Kind   OpKind
	Key    string // the key, or the set's name
	Value  []byte
	TTL    time.Duration // rounded up to a second where the database knows no less
	Member string
	Score  int64
}

// Put writes value to key, to expire after ttl; 0 keeps it for good.
func Put(key string, value []byte, ttl time.Duration) Op {
	return Op{Kind: OpPut, Key: key, Value: value, TTL: ttl}
}

// Delete removes key.
func Delete(key string) Op { return Op{Kind: OpDelete, Key: key} }

// Add puts member into the ordered set, or moves it to score.
func Add(set, member string, score int64) Op {
	return Op{Kind: OpAdd, Key: set, Member: member, Score: score}
}

// Remove takes member out of the ordered set.
func Remove(set, member string) Op { return Op{Kind: OpRemove, Key: set, Member: member} }

// Txn is a transaction: if every condition holds, all of Then is done, else nothing is and the keys in Read are read, all at
// one moment. Read is also answered when the conditions hold, as the keys stood before Then. A key occurs at most once in Then.
type Txn struct {
	If   []Cond
	Then []Op
	Read []string
	// Along is what a transport in the same database has done at the same stroke, behind Then; see Joiner. Any other store leaves
	// it undone.
	Along any
}

// Reply is the answer to a transaction.
type Reply struct {
	Done bool // the conditions held and Then was done
	// Along says that Txn.Along was done too. Where it is false it was not, or nobody knows: whoever wants it done does it by other means.
	Along bool
	// Revision is that of every key that Then put; greater than any revision the partition's keys had before.
	Revision int64
	Read     []KV      // one for each key in Txn.Read, in order
	Now      time.Time // the database's clock at the transaction
}

// Member is an element of an ordered set.
type Member struct {
	Name  string
	Score int64
}

// Range asks for members of an ordered set by score, then by name, both ascending.
type Range struct {
	Set      string
	Min, Max int64  // inclusive
	After    string // with the Score in Min: begin behind this member, to page
	Limit    int    // at most so many; 0 means 1000, and never more than MaxRange
	Reverse  bool   // descending by score and name; After then pages downwards from Max
}

// Change is one event of a Watch.
type Change struct {
	// KV is the key as written. Value is set only for a put and is shared with other watchers: do not write to it. The Revision of a
	// deletion or an expiry is its own, greater than that of what went.
	KV      KV
	Deleted bool // by Delete or by expiry
	// Resync says that changes may have been missed (the connection was cut): read again what you rely on. KV is empty.
	Resync bool
}

// Watcher yields changes in the order of their revisions within a partition. Changes is closed by Close, or when the store is.
// A watcher that is not read for long is sent a Resync in place of what it missed; it never holds up the store.
type Watcher interface {
	Changes() <-chan Change
	Close() error
}

// Store keeps state. It may be used by many goroutines at once; calls that are made concurrently share round trips, and none
// waits for others to come. Every method blocks until it is answered or ctx ends.
type Store interface {
	// Txn runs a transaction. When ctx ends first, or an error that is none of this package's comes back, it may or may not
	// have taken place: make values recognisable (a nonce) and look again.
	Txn(ctx context.Context, t Txn) (Reply, error)
	// Range reads an ordered set.
	Range(ctx context.Context, r Range) ([]Member, error)
	// Watch yields the changes of keys that begin with prefix, which names a whole partition at least, from the moment Watch
	// returns.
	Watch(ctx context.Context, prefix string) (Watcher, error)
	// MaxValue is the largest value in bytes; 0 where there is no limit.
	MaxValue() int
	// Shared says whether other processes see this store.
	Shared() bool
	// Ping tells whether the database answers and takes writes.
	Ping(ctx context.Context) error
	// Close releases the store's own resources, not the connection it was given.
	Close() error
}

// Joiner is a Store in whose transactions a transport can take part that lies in the same database.
type Joiner interface {
	Store
	// Joins says whether transactions take along what the transport over this connection makes. One that does may still leave it,
	// for reasons of its own: Reply.Along tells.
	Joins(database any) bool
}

// Get reads one key.
func Get(ctx context.Context, s Store, key string) (KV, error) {
	r, err := s.Txn(ctx, Txn{Read: []string{key}})
	if err != nil {
		return KV{}, err
	}
	return r.Read[0], nil
}

// Check reports what is wrong with t, wrapped in ErrInvalid or ErrPartition, and returns its partition. Implementations call it
// first.
func (t Txn) Check() (string, error) {
	if n := len(t.If) + len(t.Then) + len(t.Read); n > MaxTxnLen {
		return "", fmt.Errorf("%w: transaction of %d parts: want at most %d", ErrInvalid, n, MaxTxnLen)
	}
	part, seen := "", false
	see := func(key string) error {
		p, name, ok := strings.Cut(key, "/")
		if !ok || name == "" || len(key) > MaxKeyLen {
			return badKey(key)
		}
		if seen && p != part {
			return fmt.Errorf("%w: %s and %s", ErrPartition, quote(part), quote(p))
		}
		part, seen = p, true
		return nil
	}
	for _, c := range t.If {
		if err := see(c.Key); err != nil {
			return "", err
		}
		if c.Revision < 0 {
			return "", fmt.Errorf("%w: negative revision for %s", ErrInvalid, quote(c.Key))
		}
	}
	for i, o := range t.Then {
		if err := see(o.Key); err != nil {
			return "", err
		}
		if o.TTL < 0 {
			return "", fmt.Errorf("%w: negative TTL for %s", ErrInvalid, quote(o.Key))
		}
		if o.Kind > OpRemove {
			return "", fmt.Errorf("%w: unknown operation on %s", ErrInvalid, quote(o.Key))
		}
		if (o.Kind == OpAdd || o.Kind == OpRemove) && (o.Member == "" || len(o.Member) > MaxKeyLen) {
			return "", fmt.Errorf("%w: member of %s: want 1 to %d bytes", ErrInvalid, quote(o.Key), MaxKeyLen)
		}
		for _, p := range t.Then[:i] {
			if p.Key == o.Key && p.Member == o.Member {
				return "", fmt.Errorf("%w: %s occurs twice", ErrInvalid, quote(o.Key))
			}
		}
	}
	for _, k := range t.Read {
		if err := see(k); err != nil {
			return "", err
		}
	}
	if !seen {
		return "", fmt.Errorf("%w: empty transaction", ErrInvalid)
	}
	return part, nil
}

// Check reports what is wrong with r, wrapped in ErrInvalid, and returns its partition and the limit to apply.
func (r Range) Check() (partition string, limit int, err error) {
	p, name, ok := strings.Cut(r.Set, "/")
	if !ok || name == "" || len(r.Set) > MaxKeyLen {
		return "", 0, badKey(r.Set)
	}
	if r.Limit < 0 {
		return "", 0, fmt.Errorf("%w: negative limit for %s", ErrInvalid, quote(r.Set))
	}
	limit = r.Limit
	if limit == 0 {
		limit = 1000
	}
	return p, min(limit, MaxRange), nil
}

// CheckPrefix reports what is wrong with a prefix to watch, wrapped in ErrInvalid, and returns its partition.
func CheckPrefix(prefix string) (string, error) {
	p, _, ok := strings.Cut(prefix, "/")
	if !ok || len(prefix) > MaxKeyLen {
		return "", fmt.Errorf("%w: prefix %s: want partition/ at least, and at most %d bytes", ErrInvalid, quote(prefix), MaxKeyLen)
	}
	return p, nil
}

func badKey(key string) error {
	return fmt.Errorf("%w: key %s: want partition/name of at most %d bytes", ErrInvalid, quote(key), MaxKeyLen)
}

func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strconv.Quote(s)
}
