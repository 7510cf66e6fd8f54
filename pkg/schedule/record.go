package schedule

import (
	"context"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// record is what the store holds of a schedule. Its field numbers are the format: they are never reused, and a field that an old
// sidecar does not know is one that it can do without. Times are Unix seconds.
type record struct {
	Done  int64  `cbor:"1,keyasint"`           // nothing due until then, inclusive, is still to be published
	Due   int64  `cbor:"2,keyasint,omitempty"` // what is claimed and perhaps published
	Nonce string `cbor:"3,keyasint,omitempty"` // by whom
	Spec  string `cbor:"4,keyasint"`           // the expression that Done is of
}

// recordVersion is the first byte of every record. A sidecar refuses versions that it does not know.
const recordVersion = 1

func (r record) encode() ([]byte, error) {
	b, err := cbor.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return append([]byte{recordVersion}, b...), nil
}

func decode(b []byte) (r record, err error) {
	if len(b) == 0 || b[0] != recordVersion {
		return r, fmt.Errorf("record has a format that this sidecar does not know, it knows %d: upgrade it", recordVersion)
	}
	if err := cbor.Unmarshal(b[1:], &r); err != nil {
		return r, fmt.Errorf("decode record: %w", err)
	}
	return r, nil
}

// look reads the record, and makes it where there is none: the schedule begins now, or where this sidecar knows that it stands.
func (s *Schedule) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := s.cfg.Store.Txn(ctx, store.Txn{Read: []string{s.cfg.Key}})
	if err != nil {
		return err
	}
	s.saw(r.Now)
	return s.take(ctx, r.Read[0])
}

// take takes note of the record as it stands in the store.
func (s *Schedule) take(ctx context.Context, kv store.KV) error {
	if !kv.Exists() {
		next := record{Done: max(s.rec.Done, 0), Spec: s.cfg.Spec}
		if next.Done == 0 {
			next.Done = s.now().Unix()
		}
		s.rev, s.begun = 0, true
		_, err := s.write(ctx, next)
		return err
	}
	rec, err := decode(kv.Value)
	if err != nil {
		return err
	}
	s.rec, s.rev, s.modified, s.known = rec, kv.Revision, kv.Modified, true
	if s.begun || rec.Due != 0 {
		return nil
	}
	s.begun = true // once: beside a sidecar that has another Spec, each fires its own
	if rec.Spec != s.cfg.Spec {
		_, err = s.write(ctx, record{Done: max(rec.Done, s.now().Add(-Punctual).Unix()), Spec: s.cfg.Spec})
	}
	return err
}

// write replaces the record if nobody else has since it was seen, and says whether it did. Otherwise it is seen anew.
func (s *Schedule) write(ctx context.Context, next record) (bool, error) {
	value, err := next.encode()
	if err != nil {
		return false, err
	}
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	r, err := s.cfg.Store.Txn(call, store.Txn{
		If:   []store.Cond{{Key: s.cfg.Key, Revision: s.rev}},
		Then: []store.Op{store.Put(s.cfg.Key, value, keep)},
		Read: []string{s.cfg.Key},
	})
	if err != nil {
		s.known = false // it may have been written
		return false, err
	}
	s.saw(r.Now)
	if r.Done {
		s.rec, s.rev, s.modified, s.known = next, r.Revision, r.Now, true
		return true, nil
	}
	if kv := r.Read[0]; kv.Exists() {
		return false, s.take(ctx, kv)
	}
	s.known = false // it is gone, and made again at the next look
	return false, nil
}

// plan is what is to be done at one moment.
type plan struct {
	due  time.Time // publish the job of this time; zero: none
	next time.Time // the next time that is not ripe yet, if nothing is to be published

	missed      int       // times that will have no job
	first, last time.Time // of them
}

// plan decides what is to be done now.
func (s *Schedule) plan(now time.Time) plan {
	policy := s.cfg.CatchUp
	if s.rec.Spec != s.cfg.Spec {
		policy = CatchUpNone
	}
	from := time.Unix(s.rec.Done, 0)
	if oldest := now.Add(-max(s.cfg.Window, 2*Punctual) - s.cfg.Jitter); from.Before(oldest) {
		from = oldest
	}
	var missed []time.Time // the last of them
	var p plan
	d := s.cfg.Expr.Next(from)
	for ; now.Sub(s.ripe(d)) > Punctual; d = s.cfg.Expr.Next(d) {
		if p.missed++; p.missed == 1 {
			p.first = d
		}
		p.last = d
		if missed = append(missed, d); len(missed) > 2*MaxCatchUp {
			missed = append(missed[:0], missed[MaxCatchUp+1:]...)
		}
	}
	switch {
	case policy == CatchUpAll && p.missed > 0:
		missed = missed[max(0, len(missed)-MaxCatchUp):]
		p.due = missed[0]
		p.missed -= len(missed)
	case policy == CatchUpLast && p.missed > 0:
		p.due = p.last
		p.missed--
	case s.ripe(d).After(now):
		p.next = s.ripe(d)
	default:
		p.due = d
	}
	return p
}
