package middleware

import (
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// record is what the store holds of a job. Its field numbers are the format: they are never reused, and a field that an old
// sidecar does not know is one that it can do without.
type record struct {
	State    state         `cbor:"1,keyasint"`
	Token    uint64        `cbor:"2,keyasint"` // fencing token: the number of claims so far
	Nonce    string        `cbor:"3,keyasint"` // who claimed it, and for which message
	Attempts int           `cbor:"4,keyasint"` // executions begun
	Crashes  int           `cbor:"5,keyasint,omitempty"`
	Lease    time.Duration `cbor:"6,keyasint,omitempty"`
	Wait     time.Duration `cbor:"7,keyasint,omitempty"`
	Err      string        `cbor:"8,keyasint,omitempty"` // of the last failed attempt
	Outcome  *job.Outcome  `cbor:"9,keyasint,omitempty"`
	Apart    bool          `cbor:"10,keyasint,omitempty"` // the outcome's body lies under a key of its own, which expires earlier
	IDs      int           `cbor:"11,keyasint,omitempty"` // as stored: which parts are the job's id and left out; see encode
}

// first is the record of a job's first claim.
func first(nonce string, lease time.Duration) record {
	return record{State: running, Token: 1, Nonce: nonce, Attempts: 1, Lease: lease}
}

// recordVersion is the first byte of every record. A sidecar refuses versions that it does not know.
const recordVersion = 1

// reader reads records. Text need not be UTF-8: some of it is what producers and guests wrote, and a job whose record cannot be read
// would hold up its route for as long as the record is kept.
var reader = sync.OnceValue(func() cbor.DecMode {
	m, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err) // there are no such options
	}
	return m
})

// decodeRecord reads what encode has written under a key that holds id.
func decodeRecord(b []byte, id string) (*record, error) {
	if len(b) == 0 || b[0] != recordVersion {
		return nil, fmt.Errorf("record has format %d, this sidecar knows %d: upgrade it", version(b), recordVersion)
	}
	r := &record{}
	if err := reader().Unmarshal(b[1:], r); err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}
	if r.State < running || r.State > waiting || (r.State == done) != (r.Outcome != nil) {
		return nil, fmt.Errorf("record is in state %d: not one that this sidecar knows", r.State)
	}
	r.restore(id)
	return r, nil
}

func version(b []byte) int {
	if len(b) == 0 {
		return -1
	}
	return int(b[0])
}
