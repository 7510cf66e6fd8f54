package rewrite

import (
	"fmt"
	"slices"
	"strings"
)

// Subsections of the name section.
const (
	namesFunctions = 1
	namesLocals    = 2
	namesLabels    = 3
)

type nameEntry struct {
	index uint32
	name  string
}

// adjustCustoms returns the custom sections that hold for the result, with the names of the functions that were added.
func adjustCustoms(in []custom, funcs func(uint32) uint32, added []nameEntry) []custom {
	var out []custom
	for _, c := range in {
		switch {
		case strings.HasPrefix(c.name, ".debug_"), strings.HasPrefix(c.name, "reloc."), c.name == "linking",
			c.name == "sourceMappingURL", c.name == "external_debug_info", strings.HasPrefix(c.name, "metadata.code."):
			continue // describe the code byte by byte
		case len(c.body) == 0:
			continue // wazero cannot read an empty one at a module's end
		case c.name == "name":
			if c.body = adjustNames(c.body, funcs, added); c.body == nil {
				continue // malformed, which is no reason to refuse a module
			}
		}
		out = append(out, c)
	}
	return out
}

// adjustNames moves the function indexes in a name section; it returns nil when it cannot be read.
func adjustNames(body []byte, funcs func(uint32) uint32, added []nameEntry) []byte {
	out := []byte{}
	r := &reader{b: body, end: len(body)}
	for r.more() {
		id := r.u8()
		s := r.sub(r.u32())
		if r.err != nil {
			return nil
		}
		var b []byte
		switch id {
		case namesFunctions:
			names := readNames(&s)
			for i := range names {
				names[i].index = funcs(names[i].index)
			}
			names = append(names, added...)
			slices.SortStableFunc(names, func(a, b nameEntry) int { return int(int64(a.index) - int64(b.index)) })
			b = appendLen(nil, len(names))
			for _, n := range names {
				b = appendName(appendU32(b, n.index), n.name)
			}
		case namesLocals:
			n := s.u32()
			b = appendU32(nil, n)
			for ; n > 0 && s.err == nil; n-- {
				b = appendU32(b, funcs(s.u32()))
				locals := readNames(&s)
				b = appendLen(b, len(locals))
				for _, l := range locals {
					b = appendName(appendU32(b, l.index), l.name)
				}
			}
		case namesLabels:
			continue // blocks are counted differently now
		default:
			b = s.bytes(uint32(s.end - s.pos))
		}
		if s.err != nil || s.pos != s.end {
			return nil
		}
		out = append(appendLen(append(out, id), len(b)), b...)
	}
	return out
}

func readNames(r *reader) []nameEntry {
	var out []nameEntry
	for n := r.u32(); n > 0 && r.err == nil; n-- {
		out = append(out, nameEntry{r.u32(), r.name()})
	}
	return out
}

// functionName returns the name of a function from the name section, an export or an import; empty when it has none.
func (m *module) functionName(index int) string {
	for _, c := range m.customs {
		if c.name != "name" {
			continue
		}
		r := &reader{b: c.body, end: len(c.body)}
		for r.more() {
			id := r.u8()
			s := r.sub(r.u32())
			if id != namesFunctions || r.err != nil {
				continue
			}
			for _, n := range readNames(&s) {
				if int(n.index) == index {
					return n.name
				}
			}
		}
	}
	for _, x := range m.exports {
		if x.kind == kindFunc && int(x.index) == index {
			return x.name
		}
	}
	return ""
}

// describe names a function in a sentence.
func (m *module) describe(index int) string {
	if name := m.functionName(index); name != "" {
		return fmt.Sprintf("%d (%s)", index, name)
	}
	return fmt.Sprint(index)
}
