package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxFileSize is the largest configuration file in bytes.
const MaxFileSize = 1 << 20

// Load reads the file called name, or, where there is none and name is a bare one, configs/name, with the variables of the
// process's environment. What is wrong inside the file comes back as an *Error.
func Load(name string) (*Config, error) {
	path := name
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && filepath.Base(name) == name {
		path = filepath.Join("configs", name)
		f, err = os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read configuration: there is no %s here and no %s; name the file with its path: %w", name, path, fs.ErrNotExist)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data, os.LookupEnv)
}

// Parse reads data, which is named filename in messages, with variables from env; nil means that none is set. The Config is
// complete and valid; otherwise the error is an *Error with every mistake. An empty file is Default. Routes are not asked
// for: see NeedRoutes.
func Parse(filename string, data []byte, env func(string) (string, bool)) (*Config, error) {
	r := newReport(filename)
	c := Default()
	c.Store = ""
	if n := r.document(data); n != nil {
		w := &walker{report: r, env: env}
		w.value(n, reflect.ValueOf(c).Elem(), "", "")
		if w.nodes > maxNodes {
			return nil, r.err()
		}
		c.hidden = w.hidden
	} else if err := r.err(); err != nil {
		return nil, err // not YAML at all: nothing can be said of its content
	}
	r.complete(c)
	if err := r.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// document returns the one document of a file; nil when it is empty or, with a mistake reported, not to be read.
func (r *report) document(data []byte) *yaml.Node {
	if len(data) > MaxFileSize {
		r.at(place{}, fmt.Sprintf("the file is larger than %s", Size(MaxFileSize)))
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		r.syntax(err, data)
		return nil
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		r.at(place{second.Line, second.Column}, "a second document begins here; keep one, without --- between parts")
		return nil
	case !errors.Is(err, io.EOF):
		r.syntax(err, data)
		return nil
	}
	if len(doc.Content) == 0 {
		return nil
	}
	return doc.Content[0]
}

// syntax reports what the YAML parser says. The parser's own line is where the construct began or none at all, so the line
// is looked for.
func (r *report) syntax(err error, data []byte) {
	text, guess := err.Error(), 1
	if m := yamlError.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		guess, _ = strconv.Atoi(m[1])
	}
	if m := unknownAnchor.FindStringSubmatch(text); m != nil {
		text = fmt.Sprintf("there is no anchor &%s above", m[1])
	} else {
		text = "not valid YAML: " + text
	}
	n := badLine(data, min(max(guess, 1), bytes.Count(data, []byte("\n"))+1))
	line := strings.TrimRight(strings.Split(string(data), "\n")[n-1], "\r")
	indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
	if tab := strings.IndexByte(indent, '\t'); tab >= 0 {
		r.at(place{n, tab + 1}, "a tab may not indent; use spaces")
		return
	}
	r.at(place{n, len(indent) + 1}, text)
}

var (
	yamlError     = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	unknownAnchor = regexp.MustCompile(`unknown anchor '([^']*)' referenced`)
)

// badLine returns the number of the line that follows the longest run of lines, from the beginning, that can be parsed. It
// begins where the parser stopped and settles for guess before the search is noticed.
func badLine(data []byte, guess int) int {
	_, end := parses(data)
	if i := bytes.IndexByte(data[end:], '\n'); i >= 0 {
		end += i
	} else {
		end = len(data)
	}
	n := bytes.Count(data[:end], []byte("\n")) + 1
	for budget := 1 << 20; ; n-- {
		end = bytes.LastIndexByte(data[:end], '\n')
		if end < 0 {
			return 1
		}
		if budget -= end; budget < 0 {
			return guess
		}
		if ok, _ := parses(data[:end+1]); ok {
			return n
		}
	}
}

// parses says whether data is YAML, and how much of it was looked at.
func parses(data []byte) (ok bool, read int) {
	r := bytes.NewReader(data)
	dec := yaml.NewDecoder(r)
	for {
		var n yaml.Node
		if err := dec.Decode(&n); err != nil {
			return errors.Is(err, io.EOF), len(data) - r.Len()
		}
	}
}

// Complete fills in what is derived (store, names, dead letters, reply patterns) and reports everything that is wrong as an
// *Error without file and line. It is for configurations made in code, beginning with Default, DefaultModule and
// DefaultRoute; Parse and Load have done it. Calling it again changes nothing.
func (c *Config) Complete() error {
	r := newReport("")
	r.complete(c)
	return r.err()
}

// NeedRoutes returns an error unless there is a route, for those who are about to run jobs.
func (c *Config) NeedRoutes() error {
	if len(c.Routes) > 0 {
		return nil
	}
	return errors.New(`there are no routes; add one, such as: routes: [{from: jobs, module: echo, to: results}]`)
}
