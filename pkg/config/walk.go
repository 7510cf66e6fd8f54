package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds what is read from one file, aliases counted as often as they are used.
const maxNodes = 50_000

// walker reads YAML nodes into the Go types beside them.
type walker struct {
	*report
	env    func(string) (string, bool)
	nodes  int
	hidden []string // paths tagged hide whose values came from the environment
}

// value reads n into v, which stands at path and was declared with tag.
func (w *walker) value(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	if w.nodes++; w.nodes > maxNodes {
		if w.nodes == maxNodes+1 {
			w.node(n, "more than %d values; aliases count as often as they are used", maxNodes)
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	w.places[path] = place{n.Line, n.Column}
	if n.Style&yaml.TaggedStyle != 0 {
		w.failf(path, "tags such as %s are not supported; remove it", n.ShortTag())
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(fresh(v.Type()))
		w.value(n, v.Elem(), path, tag)
	case reflect.Struct:
		w.object(n, v, path)
	case reflect.Map:
		w.table(n, v, path, tag)
	case reflect.Slice:
		w.list(n, v, path, tag)
	default:
		if s, ok := w.scalar(n, path); ok {
			w.set(v, s, path)
			if tag.Get("hide") != "" && s != n.Value {
				w.hidden = append(w.hidden, path)
			}
		}
	}
}

// fresh makes an element of a list or map as it stands before its keys are read.
func fresh(t reflect.Type) reflect.Value {
	switch t {
	case reflect.TypeFor[*Module]():
		return reflect.ValueOf(DefaultModule())
	case reflect.TypeFor[*Route]():
		return reflect.ValueOf(DefaultRoute())
	case reflect.TypeFor[*Schedule]():
		return reflect.ValueOf(DefaultSchedule())
	}
	return reflect.New(t.Elem())
}

// object reads a mapping whose keys are the fields of a struct.
func (w *walker) object(n *yaml.Node, v reflect.Value, path string) {
	s := schemaOf(v.Type())
	switch {
	case isNull(n):
		return
	case n.Kind == yaml.ScalarNode && s.off >= 0:
		if text, ok := w.scalar(n, path); ok && text == "off" {
			v.Field(s.off).SetBool(true)
		} else if ok {
			w.failf(path, "want off or a mapping of keys to values")
		}
		return
	case n.Kind != yaml.MappingNode:
		w.failf(path, "want a mapping of keys to values, found %s", describe(n))
		return
	}
	names := map[int]string{}
	for key, val := range w.pairs(n) {
		i, ok := s.index[key.Value]
		if !ok {
			w.unknown(key, s)
			continue
		}
		if other, twice := names[i]; twice {
			w.node(key, "%q and %q are two names for one key; keep one", other, key.Value)
			continue
		}
		names[i] = key.Value
		f := v.Type().Field(i)
		w.value(val, v.Field(i), join(path, s.name[i]), f.Tag)
	}
}

func (w *walker) unknown(key *yaml.Node, s schema) {
	if why, ok := s.later[key.Value]; ok {
		w.node(key, "%q is %s", key.Value, why)
		return
	}
	w.node(key, "unknown key %q%s", key.Value, w.suggest(key.Value, s.keys, "known here: "))
}

// table reads a mapping whose keys are free.
func (w *walker) table(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	if n.Kind != yaml.MappingNode && !isNull(n) {
		w.failf(path, "want a mapping of names to values, found %s", describe(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for key, val := range w.pairs(n) {
		elem := reflect.New(v.Type().Elem()).Elem()
		w.value(val, elem, joinKey(path, key.Value), tag)
		v.SetMapIndex(reflect.ValueOf(key.Value), elem)
	}
}

// pairs yields the keys and values of a mapping, without the keys that cannot be one and the second of two alike.
func (w *walker) pairs(n *yaml.Node) func(yield func(key, val *yaml.Node) bool) {
	return func(yield func(key, val *yaml.Node) bool) {
		first := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, val := n.Content[i], n.Content[i+1]
			line, twice := first[key.Value]
			switch {
			case key.Kind != yaml.ScalarNode || key.Style&yaml.TaggedStyle != 0 || key.Value == "" || len(key.Value) > 256:
				w.node(key, "a key is a short text; found %s", describe(key))
			case key.Tag == "!!merge":
				w.node(key, "merge keys (<<) are not supported; write the keys out, or use an alias for a whole value")
			case strings.Contains(key.Value, "${"):
				w.node(key, "variables expand in values only, not in keys")
			case twice:
				w.node(key, "duplicate key %q; it is given first in line %d", key.Value, line)
			default:
				first[key.Value] = key.Line
				if !yield(key, val) {
					return
				}
			}
		}
	}
}

// list reads a sequence. An addrs list may be one text with commas, and so may its entries: that is how they come from the
// environment.
func (w *walker) list(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag) {
	items, addrs := n.Content, tag.Get("addrs") != ""
	switch {
	case isNull(n):
		items = nil
	case n.Kind == yaml.ScalarNode && addrs:
		items = []*yaml.Node{n}
	case n.Kind != yaml.SequenceNode:
		w.failf(path, "want a list, found %s; write [a, b], or begin each entry with a dash", describe(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, len(items)))
	for i, item := range items {
		at, elem := path+"["+strconv.Itoa(i)+"]", reflect.New(v.Type().Elem()).Elem()
		w.value(item, elem, at, tag)
		w.wrong[path] = w.wrong[path] || w.wrong[at]
		if !addrs {
			v.Set(reflect.Append(v, elem))
			continue
		}
		for s := range strings.SplitSeq(elem.String(), ",") {
			if s = strings.TrimSpace(s); s != "" {
				v.Set(reflect.Append(v, reflect.ValueOf(s)))
			}
		}
	}
}

// scalar returns the text of n with its variables expanded.
func (w *walker) scalar(n *yaml.Node, path string) (string, bool) {
	switch {
	case isNull(n):
		w.failf(path, "has no value; give it one or remove the key")
		return "", false
	case n.Kind != yaml.ScalarNode:
		w.failf(path, "want a single value, found %s", describe(n))
		return "", false
	}
	s, err := expand(n.Value, w.env)
	if err != nil {
		w.wrong[path] = true
		w.node(n, "%v", err)
		return "", false
	}
	return s, true
}

// set parses s into v.
func (w *walker) set(v reflect.Value, s, path string) {
	if err := parse(v, s); err != nil {
		w.failf(path, "%v", err)
	}
}

// parse reads s as v's type. Its errors never quote a Secret, which takes any text.
func parse(v reflect.Value, s string) error {
	switch v.Interface().(type) {
	case time.Duration:
		d, err := parseDuration(s)
		v.SetInt(int64(d))
		return err
	case Size:
		n, err := ParseSize(s)
		v.SetInt(int64(n))
		return err
	case Count:
		n, err := ParseCount(s)
		v.SetInt(int64(n))
		return err
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		if s != "true" && s != "false" {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		v.SetBool(s == "true")
	default:
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || v.OverflowInt(n) {
			return fmt.Errorf("%q is not a whole number", s)
		}
		v.SetInt(n)
	}
	return nil
}

// node reports a mistake at a node.
func (w *walker) node(n *yaml.Node, format string, args ...any) {
	w.at(place{n.Line, n.Column}, fmt.Sprintf(format, args...))
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// joinKey is join for a key of the user's own, which may hold dots.
func joinKey(path, key string) string {
	if strings.ContainsAny(key, ".[]\"") {
		return path + "[" + strconv.Quote(key) + "]"
	}
	return join(path, key)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	return "a single value"
}
