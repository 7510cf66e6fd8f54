package config

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// Print writes the configuration as YAML, every key with its value and secrets as ***.
func (c *Config) Print(w io.Writer) error {
	_, err := w.Write(c.YAML())
	return err
}

// YAML returns what Print writes. Parsing it gives the same configuration, but for the secrets.
func (c *Config) YAML() []byte {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(encode(reflect.ValueOf(c))); err != nil {
		panic(fmt.Sprintf("config: encode: %v", err)) // nodes of known kinds into memory
	}
	return b.Bytes()
}

// encode turns a value into the node that it would be read from.
func encode(v reflect.Value) *yaml.Node {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return &yaml.Node{Kind: yaml.MappingNode}
		}
		return encode(v.Elem())
	case reflect.Struct:
		s := schemaOf(v.Type())
		if s.off >= 0 && v.Field(s.off).Bool() {
			return text("off")
		}
		n := &yaml.Node{Kind: yaml.MappingNode}
		for i := range v.NumField() {
			if name, ok := s.name[i]; ok {
				n.Content = append(n.Content, text(name), encode(v.Field(i)))
			}
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, key := range sortedStrings(v.MapKeys()) {
			n.Content = append(n.Content, text(key), encode(v.MapIndex(reflect.ValueOf(key))))
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, encode(v.Index(i)))
		}
		return n
	case reflect.String:
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
	case fmt.Stringer: // Size, Secret
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

func sortedStrings(vs []reflect.Value) []string {
	m := make(map[string]bool, len(vs))
	for _, v := range vs {
		m[v.String()] = true
	}
	return sortedKeys(m)
}
