package transport

// Envelope is the form in which a route's jobs and results are wrapped.
type Envelope string

// The envelopes.
const (
	// EnvelopeNone: the body is the payload and the headers say the rest.
	EnvelopeNone Envelope = "none"
	// EnvelopeDRASM: jobs are DRASM's Job and results its ResultMsg, both JSON.
	EnvelopeDRASM Envelope = "drasm"
	// EnvelopeWatermill: results are written in Watermill's wire format. It is read without being asked for.
	EnvelopeWatermill Envelope = "watermill"
)
