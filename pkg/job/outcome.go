package job

import (
	"strings"
	"time"
	"unicode/utf8"
)

// Outcome is everything that is remembered of a finished job: enough to emit its result, its reply and its dead letter again,
// the same to the byte. The field numbers are part of the stored format: they are never reused.
type Outcome struct {
	Kind     Kind   `cbor:"1,keyasint"`
	Err      string `cbor:"2,keyasint,omitempty"` // what went wrong; empty for KindOK
	Attempts int    `cbor:"3,keyasint"`           // executions, the crashed ones included
	Crashes  int    `cbor:"4,keyasint,omitempty"` // executions that ended without a word

	Body     []byte        `cbor:"5,keyasint,omitempty"`
	Header   Header        `cbor:"6,keyasint,omitempty"`
	TypeName string        `cbor:"7,keyasint,omitempty"`
	Module   string        `cbor:"8,keyasint,omitempty"`
	Digest   string        `cbor:"9,keyasint,omitempty"`
	Fuel     uint64        `cbor:"10,keyasint,omitempty"`
	Duration time.Duration `cbor:"11,keyasint,omitempty"`

	Source        string `cbor:"12,keyasint,omitempty"` // position of the message that was run
	CorrelationID string `cbor:"13,keyasint,omitempty"`
	FinishedAt    int64  `cbor:"14,keyasint,omitempty"` // Unix milliseconds
	Dead          bool   `cbor:"15,keyasint,omitempty"` // attempts exhausted, rather than a verdict
	Worker        string `cbor:"16,keyasint,omitempty"` // the host that ran it; DRASM's results name it
}

// OK says whether the job went well.
func (o *Outcome) OK() bool { return o.Kind == KindOK }

// MaxErrorText is the longest error text in a header, a record or a dead letter, in bytes.
const MaxErrorText = 1 << 10

// CleanText makes text that a guest or a producer controls fit for a header: valid UTF-8, no control characters (CR and LF
// among them), at most MaxErrorText bytes.
func CleanText(s string) string {
	ascii, clean := true, len(s) <= MaxErrorText
	for i := 0; clean && i < len(s); i++ {
		clean = s[i] >= ' ' && s[i] != 0x7f
		ascii = ascii && s[i] < utf8.RuneSelf
	}
	if clean && (ascii || utf8.ValidString(s)) {
		return s
	}
	if len(s) > 4*MaxErrorText {
		s = s[:4*MaxErrorText]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) <= MaxErrorText {
		return s
	}
	const mark = "…"
	n := MaxErrorText - len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}
