package job

import "strings"

// Field is one header: a name and one of its values.
type Field struct {
	Name  string `cbor:"1,keyasint"`
	Value string `cbor:"2,keyasint"`
}

// Header holds headers in the order in which they came. Names are matched without regard to case; a name may occur more than
// once. The zero value is empty and ready to use. A Header is not for concurrent writes.
type Header []Field

// Get returns the first value of name, or "".
func (h Header) Get(name string) string {
	v, _ := h.Lookup(name)
	return v
}

// Lookup returns the first value of name and whether there is one.
func (h Header) Lookup(name string) (string, bool) {
	for i := range h {
		if len(h[i].Name) == len(name) && strings.EqualFold(h[i].Name, name) {
			return h[i].Value, true
		}
	}
	return "", false
}

// Values returns all values of name in order.
func (h Header) Values(name string) []string {
	var out []string
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			out = append(out, h[i].Value)
		}
	}
	return out
}

// Add appends a value.
func (h *Header) Add(name, value string) { *h = append(*h, Field{name, value}) }

// Set replaces every value of name with one, keeping the place of the first.
func (h *Header) Set(name, value string) {
	out, done := (*h)[:0:0], false
	for _, f := range *h {
		if !strings.EqualFold(f.Name, name) {
			out = append(out, f)
			continue
		}
		if !done {
			out, done = append(out, Field{name, value}), true
		}
	}
	if !done {
		out = append(out, Field{name, value})
	}
	*h = out
}

// Del removes every value of name.
func (h *Header) Del(name string) {
	out := (*h)[:0:0]
	for _, f := range *h {
		if !strings.EqualFold(f.Name, name) {
			out = append(out, f)
		}
	}
	*h = out
}

// Clone returns a copy that shares no memory with h and has room for extra more fields.
func (h Header) Clone(extra int) Header {
	out := make(Header, len(h), len(h)+extra)
	copy(out, h)
	return out
}

// Size is the number of bytes of all names and values.
func (h Header) Size() int {
	n := 0
	for i := range h {
		n += len(h[i].Name) + len(h[i].Value)
	}
	return n
}
