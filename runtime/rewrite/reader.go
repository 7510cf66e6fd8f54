package rewrite

import "encoding/binary"

// reader reads a part of a module. After the first error every read returns zero and the position stands still, so callers
// check err once, where it is convenient; each turn of a counted loop must check it.
type reader struct {
	b        []byte // the whole module, so that positions are offsets in it
	pos, end int
	err      *Error
}

func (r *reader) fail(kind error, at int, what string) {
	if r.err == nil {
		r.err = &Error{Offset: at, Func: -1, What: what, Err: kind}
	}
	r.pos = r.end
}

// more reports whether there is something left to read.
func (r *reader) more() bool { return r.err == nil && r.pos < r.end }

// sub returns a reader for the next n bytes and moves on behind them.
func (r *reader) sub(n uint32) reader {
	start := r.pos
	r.bytes(n)
	return reader{b: r.b, pos: start, end: r.pos, err: r.err}
}

func (r *reader) u8() byte {
	if r.pos >= r.end {
		r.fail(ErrMalformed, r.pos, "unexpected end")
		return 0
	}
	c := r.b[r.pos]
	r.pos++
	return c
}

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(r.end-r.pos) {
		r.fail(ErrMalformed, r.pos, "unexpected end")
		return nil
	}
	p := r.pos
	r.pos += int(n)
	return r.b[p:r.pos:r.pos]
}

// u32 reads an unsigned LEB128 number of at most 32 bits.
func (r *reader) u32() uint32 {
	start := r.pos
	var v uint32
	for shift := 0; ; shift += 7 {
		c := r.u8()
		if r.err != nil {
			return 0
		}
		if shift == 28 && c > 0x0f {
			r.fail(ErrMalformed, start, "number does not fit into 32 bits")
			return 0
		}
		v |= uint32(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
}

// signed reads a signed LEB128 number of at most so many bits.
func (r *reader) signed(bits int) int64 {
	start := r.pos
	var v int64
	for shift := 0; ; shift += 7 {
		c := r.u8()
		if r.err != nil {
			return 0
		}
		v |= int64(c&0x7f) << shift
		if left := bits - shift; left < 7 {
			// The bits beyond the number must repeat its sign.
			if rest := int8(c<<1) >> left; c >= 0x80 || (rest != 0 && rest != -1) {
				r.fail(ErrMalformed, start, "number is too large")
				return 0
			}
		}
		if c < 0x80 {
			if s := 64 - 7 - shift; s > 0 {
				v = v << s >> s
			}
			return v
		}
	}
}

func (r *reader) name() string { return string(r.bytes(r.u32())) }

// index reads an index that must be below limit.
func (r *reader) index(limit int, what string) uint32 {
	start := r.pos
	i := r.u32()
	if r.err == nil && uint64(i) >= uint64(limit) {
		r.fail(ErrMalformed, start, "there is no such "+what)
		return 0
	}
	return i
}

func appendU32(b []byte, v uint32) []byte { return binary.AppendUvarint(b, uint64(v)) }

func appendLen(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) }

func appendSigned(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if (v == 0 && c&0x40 == 0) || (v == -1 && c&0x40 != 0) {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

func appendName(b []byte, s string) []byte { return append(appendLen(b, len(s)), s...) }
