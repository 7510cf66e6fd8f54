package transport_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// delivered is a message as a source hands it out.
type delivered struct {
	m           *transport.Message
	position    string
	published   time.Time
	redelivered bool
}

func (d delivered) Message() *transport.Message { return d.m }
func (d delivered) Position() string            { return d.position }
func (d delivered) Published() time.Time        { return d.published }
func (d delivered) Redelivered() bool           { return d.redelivered }
func (d delivered) Lost() bool                  { return false }
func (d delivered) Ack()                        {}
func (d delivered) Dead(string)                 {}
func (d delivered) Release()                    {}
func (d delivered) Retry(context.Context, time.Duration, *transport.Message) error {
	return nil
}

// published is when every message of these tests was published.
var published = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// message makes a message on jobs.in with the headers given as name, value, name, value.
func message(body string, headers ...string) *transport.Message {
	m := &transport.Message{Subject: "jobs.in", Body: []byte(body)}
	for i := 0; i < len(headers); i += 2 {
		m.Header.Add(headers[i], headers[i+1])
	}
	return m
}

func decode(d transport.Decoder, m *transport.Message) *job.Job {
	if d.Route == "" {
		d.Route = "route"
	}
	return d.Decode(delivered{m: m, position: "jobs@1/42", published: published})
}

// show writes a message as golden files hold it.
func show(m *transport.Message) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "subject: %s\nkey: %q\n", m.Subject, m.Key)
	if m.ReplyTo != "" {
		fmt.Fprintf(&b, "reply to: %s\n", m.ReplyTo)
	}
	for _, f := range m.Header {
		fmt.Fprintf(&b, "%s: %s\n", f.Name, strings.ToValidUTF8(f.Value, "?"))
	}
	fmt.Fprintf(&b, "\n%s\n", m.Body)
	return b.Bytes()
}

// golden compares got with testdata/<name>.golden.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; -update rewrites it\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}
