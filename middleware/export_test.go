package middleware

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// Beat renews every claim that is held, one after another, as the heartbeat does after a third of a lease.
func (c *Claims) Beat() {
	due := c.due(-1)
	slices.SortFunc(due, func(a, b *claim) int { return cmp.Compare(a.key, b.key) })
	for _, cl := range due {
		cl.renew()
	}
}

// Recorded is what the store holds of a job.
type Recorded struct {
	State             string
	Token             uint64
	Attempts, Crashes int
	Wait              time.Duration
	Outcome           *job.Outcome
	Revision          int64
}

// Look reads what st holds of a job, with the outcome's body where it is kept; the zero Recorded when it holds nothing.
func (c *Claims) Look(ctx context.Context, st store.Store, id string, generation int) (Recorded, error) {
	cl := &claim{c: c, key: c.key(id, generation)}
	reply, err := st.Txn(ctx, store.Txn{Read: []string{cl.key, cl.bodyKey()}})
	if err != nil || !reply.Read[0].Exists() {
		return Recorded{}, err
	}
	r, err := ReadRecord(reply.Read[0].Value, id)
	if err == nil && r.Outcome != nil && len(r.Outcome.Body) == 0 {
		r.Outcome.Body = reply.Read[1].Value
	}
	r.Revision = reply.Read[0].Revision
	return r, err
}

// ReadRecord reads a job's record as it is stored.
func ReadRecord(b []byte, id string) (Recorded, error) {
	r, err := decodeRecord(b, id)
	if err != nil {
		return Recorded{}, err
	}
	return Recorded{states[r.State], r.Token, r.Attempts, r.Crashes, r.Wait, r.Outcome, 0}, nil
}

// Drop removes the body of a job's outcome from st, as its expiry does.
func (c *Claims) Drop(ctx context.Context, st store.Store, id string, generation int) error {
	cl := &claim{c: c, key: c.key(id, generation)}
	_, err := st.Txn(ctx, store.Txn{Then: []store.Op{store.Delete(cl.bodyKey())}})
	return err
}

// Restless has the gate shut again at once.
func (s *Suspects) Restless() *Suspects {
	s.rest = 0
	return s
}

// IsSuspect is suspect.
func IsSuspect(crashes, limit int) bool { return suspect(crashes, limit) }
