package redisstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
)

// entry is one stream entry as the server sent it. Its slices alias the reply.
type entry struct {
	id     string
	fields []field
	gone   bool // pending, but deleted from the stream
}

type field struct{ name, value []byte }

// size is about what the entry holds in memory.
func (e *entry) size() int {
	n := len(e.id)
	for _, f := range e.fields {
		n += len(f.name) + len(f.value)
	}
	return n
}

// keepBuffer is the largest reply buffer that is kept for the next read.
const keepBuffer = 4 << 20

// errTooMuch is a reply that would not fit into memory with many others.
var errTooMuch = errors.New("reply is too large to be read at once")

// buffer takes a raw reply.
type buffer struct {
	b     []byte
	limit int // most bytes; 0 for any number
}

// reset makes room for the next reply. What is unusually large is not kept.
func (b *buffer) reset() {
	if cap(b.b) > keepBuffer {
		b.b = nil
	}
	b.b, b.limit = b.b[:0], 0
}

func (b *buffer) Write(p []byte) (int, error) {
	if b.limit > 0 && len(b.b)+len(p) > b.limit {
		return 0, errTooMuch
	}
	b.b = append(b.b, p...)
	return len(p), nil
}

// ReadFrom reads a string of a length that is known, which go-redis says by a LimitedReader, straight into its place.
func (b *buffer) ReadFrom(r io.Reader) (int64, error) {
	lr, ok := r.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{b}, r)
	}
	if lr.N > math.MaxInt32 || b.limit > 0 && len(b.b)+int(lr.N) > b.limit {
		return 0, errTooMuch
	}
	at := len(b.b)
	b.b = slices.Grow(b.b, int(lr.N))
	n, err := io.ReadFull(lr, b.b[at:at+int(lr.N)])
	b.b = b.b[:at+n]
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // as the interface asks; go-redis notices that something is missing
	}
	return int64(n), err
}

// errReply is a reply of another shape than the command has.
var errReply = errors.New("reply cannot be understood")

// cursor reads a raw RESP2 or RESP3 reply. Raw, because go-redis gives entries as maps, in which a field that occurs twice is
// one, and because half of the time of a read goes into making them.
type cursor struct{ b []byte }

// head reads a line: its type and its length or count, -1 for a null. An error reply is returned as an error.
func (c *cursor) head() (kind byte, n int, err error) {
	i := bytes.IndexByte(c.b, '\n')
	if i < 2 || c.b[i-1] != '\r' {
		return 0, 0, fmt.Errorf("%w: no line", errReply)
	}
	line := c.b[:i-1]
	c.b = c.b[i+1:]
	kind = line[0]
	switch kind {
	case '-':
		return 0, 0, replyError(line[1:])
	case '_':
		return kind, -1, nil
	case '$', '*', '%', '~', '=', '!':
		n, err = strconv.Atoi(string(line[1:]))
		if err != nil || n < -1 {
			return 0, 0, fmt.Errorf("%w: length %q", errReply, line)
		}
		if kind == '!' {
			return 0, 0, replyError(c.take(n))
		}
		// Nothing that is announced may be longer than what came.
		if n > len(c.b) {
			return 0, 0, fmt.Errorf("%w: cut short", errReply)
		}
		return kind, n, nil
	}
	return 0, 0, fmt.Errorf("%w: type %q", errReply, kind)
}

// take cuts n bytes and the line end behind them.
func (c *cursor) take(n int) []byte {
	if n < 0 || n+2 > len(c.b) {
		return nil
	}
	b := c.b[:n:n]
	c.b = c.b[n+2:]
	return b
}

// bulk reads a string.
func (c *cursor) bulk() ([]byte, error) {
	kind, n, err := c.head()
	if err != nil {
		return nil, err
	}
	if kind != '$' || n < 0 || n+2 > len(c.b) {
		return nil, fmt.Errorf("%w: want a string", errReply)
	}
	return c.take(n), nil
}

// array reads the head of an array or map and returns how many elements follow, -1 for a null.
func (c *cursor) array() (int, error) {
	kind, n, err := c.head()
	if err != nil {
		return 0, err
	}
	switch {
	case n == -1:
		return -1, nil
	case kind == '%':
		return 2 * n, nil
	case kind == '*' || kind == '~':
		return n, nil
	}
	return 0, fmt.Errorf("%w: want an array", errReply)
}

// readReply parses the reply of XREAD or XREADGROUP for one stream. In RESP2 it is a list of pairs, in RESP3 a map.
func readReply(b []byte, scratch []entry) ([]entry, error) {
	c := cursor{b}
	kind, n, err := c.head()
	if err != nil || n <= 0 {
		return scratch[:0], err
	}
	if n != 1 {
		return nil, fmt.Errorf("%w: %d streams", errReply, n)
	}
	if kind != '%' {
		if n, err = c.array(); err != nil {
			return nil, err
		}
		if n != 2 {
			return nil, fmt.Errorf("%w: want stream and entries", errReply)
		}
	}
	if _, err := c.bulk(); err != nil {
		return nil, err
	}
	return c.entries(scratch)
}

// claimReply parses the reply of XCLAIM.
func claimReply(b []byte, scratch []entry) ([]entry, error) {
	c := cursor{b}
	return c.entries(scratch)
}

// entries reads a list of entries. It uses the memory of scratch.
func (c *cursor) entries(scratch []entry) ([]entry, error) {
	n, err := c.array()
	if err != nil {
		return nil, err
	}
	out := scratch[:0]
	for range n {
		if len(out) < cap(out) {
			out = out[:len(out)+1]
		} else {
			out = append(out, entry{})
		}
		e := &out[len(out)-1]
		e.fields, e.gone, e.id = e.fields[:0], false, ""
		if err := c.entry(e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// entry reads one: an id and a list of names and values, or nothing where the entry was deleted.
func (c *cursor) entry(e *entry) error {
	n, err := c.array()
	if err != nil {
		return err
	}
	if n == -1 { // Redis 6.2 answers XCLAIM so
		e.gone = true
		return nil
	}
	if n != 2 {
		return fmt.Errorf("%w: entry of %d parts", errReply, n)
	}
	id, err := c.bulk()
	if err != nil {
		return err
	}
	e.id = string(id)
	if n, err = c.array(); err != nil {
		return err
	}
	if n == -1 {
		e.gone = true
		return nil
	}
	if n%2 != 0 {
		return fmt.Errorf("%w: field without a value", errReply)
	}
	for range n / 2 {
		name, err := c.bulk()
		if err != nil {
			return err
		}
		value, err := c.bulk()
		if err != nil {
			return err
		}
		e.fields = append(e.fields, field{name, value})
	}
	return nil
}
