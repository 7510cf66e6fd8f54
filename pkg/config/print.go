package config

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// Print writes the configuration as YAML, every key with its value. Secrets print as ***, and so does what a module's config,
// env.vars and args take from the environment.
func (c *Config) Print(w io.Writer) error {
	_, err := w.Write(c.YAML())
	return err
}

// YAML returns what Print writes. Parsing it gives the same configuration, but for the secrets.
func (c *Config) YAML() []byte {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(c.encode(reflect.ValueOf(c), "")); err != nil {
		panic(fmt.Sprintf("config: encode: %v", err)) // nodes of known kinds into memory
	}
	return b.Bytes()
}

// encode turns the value at path into the node that it would be read from.
func (c *Config) encode(v reflect.Value, path string) *yaml.Node {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return &yaml.Node{Kind: yaml.MappingNode}
		}
		return c.encode(v.Elem(), path)
	case reflect.Struct:
		s := schemaOf(v.Type())
		if s.off >= 0 && v.Field(s.off).Bool() {
			return text("off")
		}
		n := &yaml.Node{Kind: yaml.MappingNode}
		for i := range v.NumField() {
			if name, ok := s.name[i]; ok {
				n.Content = append(n.Content, text(name), c.encode(v.Field(i), join(path, name)))
			}
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, key := range mapKeys(v) {
			n.Content = append(n.Content, text(key), c.encode(v.MapIndex(reflect.ValueOf(key)), joinKey(path, key)))
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, c.encode(v.Index(i), path+"["+strconv.Itoa(i)+"]"))
		}
		return n
	case reflect.String:
		if slices.Contains(c.hidden, path) {
			return text(Secret("x").String())
		}
		return text(escape(format(v)))
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: format(v)}
}

// text is a string node, quoted by the encoder where it would be read as something else.
func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// format writes a scalar as it is written in a file.
func format(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return formatDuration(x)
	case fmt.Stringer: // Size, Count, Secret
		return x.String()
	}
	switch v.Kind() {
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	}
	return v.String()
}

// mapKeys returns the keys of a map from strings, in order.
func mapKeys(v reflect.Value) []string {
	keys := make([]string, 0, v.Len())
	for _, key := range v.MapKeys() {
		keys = append(keys, key.String())
	}
	slices.Sort(keys)
	return keys
}
