package transport

import (
	"strings"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// The headers that Decode reads, as indexes of fields.
const (
	fieldJobID = iota
	fieldMsgID
	fieldIdempotency
	fieldCEID
	fieldCESource
	fieldWatermillUUID
	fieldModule
	fieldKey
	fieldDelay
	fieldDeliverAt
	fieldExpiresAt
	fieldTimeout
	fieldMaxAttempts
	fieldBackoff
	fieldMaxBackoff
	fieldReplyTo
	fieldCorrelation
	fieldCorrelationWM
	fieldHops
	fieldMoved
	fieldDeadGeneration
	numFields
)

// HeaderCorrelationWM is the name under which Watermill's middleware keeps the correlation id.
const HeaderCorrelationWM = "correlation_id"

// fields holds the first value of every header that Decode reads; "" where it is absent or empty.
type fields [numFields]string

// scan walks the headers once, which is cheaper than to look for each name.
func (f *fields) scan(h job.Header) {
	for i := range h {
		if n := fieldOf(h[i].Name); n >= 0 && f[n] == "" {
			f[n] = h[i].Value
		}
	}
}

// first returns the first of the named values that is there.
func (f *fields) first(names ...int) string {
	for _, n := range names {
		if f[n] != "" {
			return f[n]
		}
	}
	return ""
}

// fieldOf returns the index of a header's name, or -1. The length tells most names apart.
func fieldOf(name string) int {
	try := func(want string, n int) int {
		if strings.EqualFold(name, want) {
			return n
		}
		return -1
	}
	switch len(name) {
	case len("ce-id"): // CloudEvents writes ce-id on NATS and HTTP, ce_id on Kafka
		return max(try("ce-id", fieldCEID), try("ce_id", fieldCEID))
	case len(HeaderKey): // and Reply-To
		return max(try(HeaderKey, fieldKey), try(HeaderReplyTo, fieldReplyTo))
	case len("ce-source"): // and Wasm-Hops
		return max(try("ce-source", fieldCESource), try("ce_source", fieldCESource), try(HeaderHops, fieldHops))
	case len(HeaderDelay): // and Wasm-Moved
		return max(try(HeaderDelay, fieldDelay), try(HeaderMoved, fieldMoved))
	case len(HeaderJobID): // and Nats-Msg-Id, Wasm-Module
		return max(try(HeaderJobID, fieldJobID), try(HeaderMsgID, fieldMsgID), try(HeaderModule, fieldModule))
	case len(HeaderTimeout): // and Wasm-Backoff
		return max(try(HeaderTimeout, fieldTimeout), try(HeaderBackoff, fieldBackoff))
	case len(HeaderMaxBackoff):
		return try(HeaderMaxBackoff, fieldMaxBackoff)
	case len(HeaderCorrelation): // and correlation_id
		return max(try(HeaderCorrelation, fieldCorrelation), try(HeaderCorrelationWM, fieldCorrelationWM))
	case len(HeaderIdempotency): // and Wasm-Deliver-At, Wasm-Expires-At
		return max(try(HeaderIdempotency, fieldIdempotency), try(HeaderDeliverAt, fieldDeliverAt), try(HeaderExpiresAt, fieldExpiresAt))
	case len(HeaderMaxAttempts):
		return try(HeaderMaxAttempts, fieldMaxAttempts)
	case len(HeaderWatermillUUID):
		return try(HeaderWatermillUUID, fieldWatermillUUID)
	case len(HeaderDeadGeneration):
		return try(HeaderDeadGeneration, fieldDeadGeneration)
	}
	return -1
}

// token says whether name is fit for a header's name on every broker: the characters of an HTTP token.
func token(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return name != ""
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
