package middleware

import (
	"encoding/binary"
	"math"
	"strings"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// A record is CBOR (RFC 8949), but that text need not be UTF-8: maps of indefinite length, from the numbers of the fields to those that
// are not zero. The library reads it; it is written by hand in half the time, of which every job with a recorded outcome takes its part.

// Parts of a record that are the job's id, for record.IDs. A job whose producer gave it none has its message's position for an id,
// which the record would hold three times and its key once.
const (
	idEndsNonce = 1 << iota
	idIsSource
	idIsCorrelation
)

// encode returns the record as it is stored under a key that holds id, the job's.
func (r *record) encode(id string) []byte {
	nonce, ids := r.Nonce, 0
	if s, ok := strings.CutSuffix(nonce, id); ok {
		nonce, ids = s, idEndsNonce
	}
	size := 64 + len(nonce) + len(r.Err)
	var source, correlation string
	if o := r.Outcome; o != nil {
		if source = o.Source; source == id {
			source, ids = "", ids|idIsSource
		}
		if correlation = o.CorrelationID; correlation == id {
			correlation, ids = "", ids|idIsCorrelation
		}
		size += 192 + len(o.Err) + len(o.Body) + o.Header.Size() + 16*len(o.Header) + len(source) + len(correlation)
	}
	w := cborWriter{append(make([]byte, 0, size), recordVersion, mapBegin)}
	w.uint(1, uint64(r.State))
	w.uint(2, r.Token)
	w.text(3, nonce)
	w.int(4, int64(r.Attempts))
	w.int(5, int64(r.Crashes))
	w.int(6, int64(r.Lease))
	w.int(7, int64(r.Wait))
	w.text(8, r.Err)
	if o := r.Outcome; o != nil {
		w.head(majorUint, 9)
		w.outcome(o, source, correlation)
	}
	w.bool(10, r.Apart)
	w.int(11, int64(ids))
	return append(w.b, mapEnd)
}

// outcome writes o with this source and correlation id.
func (w *cborWriter) outcome(o *job.Outcome, source, correlation string) {
	w.b = append(w.b, mapBegin)
	w.text(1, string(o.Kind))
	w.text(2, o.Err)
	w.int(3, int64(o.Attempts))
	w.int(4, int64(o.Crashes))
	if len(o.Body) > 0 {
		w.head(majorUint, 5)
		w.head(majorBytes, uint64(len(o.Body)))
		w.b = append(w.b, o.Body...)
	}
	if len(o.Header) > 0 {
		w.head(majorUint, 6)
		w.head(majorArray, uint64(len(o.Header)))
		for _, f := range o.Header {
			w.b = append(w.b, mapBegin)
			w.text(1, f.Name)
			w.text(2, f.Value)
			w.b = append(w.b, mapEnd)
		}
	}
	w.text(7, o.TypeName)
	w.text(8, o.Module)
	w.text(9, o.Digest)
	w.uint(10, o.Fuel)
	w.int(11, int64(o.Duration))
	w.text(12, source)
	w.text(13, correlation)
	w.int(14, o.FinishedAt)
	w.bool(15, o.Dead)
	w.text(16, o.Worker)
	w.b = append(w.b, mapEnd)
}

// restore puts the job's id back where encode has left it out.
func (r *record) restore(id string) {
	if r.IDs&idEndsNonce != 0 {
		r.Nonce += id
	}
	if r.IDs&idIsSource != 0 && r.Outcome != nil {
		r.Outcome.Source = id
	}
	if r.IDs&idIsCorrelation != 0 && r.Outcome != nil {
		r.Outcome.CorrelationID = id
	}
	r.IDs = 0
}

// Heads of CBOR items.
const (
	majorUint  = 0 << 5
	majorNeg   = 1 << 5
	majorBytes = 2 << 5
	majorText  = 3 << 5
	majorArray = 4 << 5
	mapBegin   = 0xbf
	mapEnd     = 0xff
	valueTrue  = 0xf5
)

// cborWriter writes fields, each under its number, and none that is zero.
type cborWriter struct{ b []byte }

func (w *cborWriter) head(major byte, n uint64) {
	switch {
	case n < 24:
		w.b = append(w.b, major|byte(n))
	case n <= math.MaxUint8:
		w.b = append(w.b, major|24, byte(n))
	case n <= math.MaxUint16:
		w.b = binary.BigEndian.AppendUint16(append(w.b, major|25), uint16(n))
	case n <= math.MaxUint32:
		w.b = binary.BigEndian.AppendUint32(append(w.b, major|26), uint32(n))
	default:
		w.b = binary.BigEndian.AppendUint64(append(w.b, major|27), n)
	}
}

func (w *cborWriter) uint(field, n uint64) {
	if n != 0 {
		w.head(majorUint, field)
		w.head(majorUint, n)
	}
}

func (w *cborWriter) int(field uint64, n int64) {
	if n >= 0 {
		w.uint(field, uint64(n))
		return
	}
	w.head(majorUint, field)
	w.head(majorNeg, uint64(-1-n))
}

func (w *cborWriter) text(field uint64, s string) {
	if s != "" {
		w.head(majorUint, field)
		w.head(majorText, uint64(len(s)))
		w.b = append(w.b, s...)
	}
}

func (w *cborWriter) bool(field uint64, is bool) {
	if is {
		w.head(majorUint, field)
		w.b = append(w.b, valueTrue)
	}
}
