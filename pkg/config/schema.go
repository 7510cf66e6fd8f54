package config

import (
	"reflect"
	"slices"
	"strings"
)

// schema is what a struct's tags say.
type schema struct {
	index map[string]int    // field by key, other names included
	name  map[int]string    // key by field
	keys  []string          // keys in order
	later map[string]string // keys that are refused, and why
	off   int               // the field that the text off sets, or -1
}

func schemaOf(t reflect.Type) schema {
	s := schema{index: map[string]int{}, name: map[int]string{}, later: map[string]string{}, off: -1}
	for i := range t.NumField() {
		f := t.Field(i)
		name, other, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case f.Name == "_":
			why := f.Tag.Get("why")
			if why == "" {
				why = "not supported yet; remove it"
			}
			for _, key := range strings.Fields(f.Tag.Get("later")) {
				s.later[key] = why
			}
		case !f.IsExported():
		case name == "":
			s.off = i
		default:
			s.name[i], s.keys = name, append(s.keys, name)
			s.index[name] = i
			if other != "" {
				s.index[other] = i
			}
		}
	}
	slices.Sort(s.keys)
	return s
}
