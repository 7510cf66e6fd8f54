package middleware

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// TestRecordIsStored has records written and read again: by this version, and as a version that writes with the library wrote them.
func TestRecordIsStored(t *testing.T) {
	t.Parallel()
	const id = "jobs@0e6949af/3/9467"
	full := job.Outcome{
		Kind: job.KindTrap, Err: "what went wrong", Attempts: 3, Crashes: 1, Body: make([]byte, 70_000), Header: job.Header{{Name: "A", Value: "b"}, {Name: "Empty"}},
		TypeName: "type", Module: "upper", Digest: strings.Repeat("0f", 32), Fuel: math.MaxUint64, Duration: 3 * time.Millisecond,
		Source: "jobs@0e6949af/4/1", CorrelationID: "c", FinishedAt: time.Now().UnixMilli(), Dead: true, Worker: "host",
	}
	own := full
	own.Source, own.CorrelationID, own.Duration = id, id, -time.Second
	for name, r := range map[string]record{
		"first":     first("owner/"+id, 30*time.Second),
		"elsewhere": first("owner/jobs@0e6949af/4/1", 30*time.Second),
		"waits":     {State: waiting, Token: math.MaxUint64, Nonce: "owner/" + id, Attempts: math.MaxInt, Crashes: 255, Wait: time.Hour, Err: "no"},
		"full":      {State: done, Token: 256, Nonce: "n", Attempts: 65_536, Outcome: &full, Apart: true},
		"own":       {State: done, Token: 24, Nonce: id, Attempts: 23, Outcome: &own},
		"cancelled": {State: done, Token: 1, Outcome: &job.Outcome{Kind: job.KindCancelled}},
	} {
		got, err := decodeRecord(r.encode(id), id)
		if err != nil || !reflect.DeepEqual(*got, r) {
			t.Errorf("%s: %+v (%v), want %+v", name, got, err, r)
		}
		b, err := cbor.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err = decodeRecord(append([]byte{recordVersion}, b...), id)
		if err != nil || !reflect.DeepEqual(*got, r) {
			t.Errorf("%s as it was written before: %+v (%v), want %+v", name, got, err, r)
		}
	}
	r := record{State: done, Token: 1, Nonce: "owner/" + id, Outcome: &own}
	own.Body = nil
	if n := strings.Count(string(r.encode(id)), id); n != 0 {
		t.Errorf("the id, which its key has, is in the record %d times", n)
	}
}
