package redisstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestReadReply(t *testing.T) {
	t.Parallel()
	const entries = "*2\r\n*2\r\n$3\r\n1-0\r\n*4\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\na\r\n$2\r\n\r\n\r\n*2\r\n$3\r\n2-0\r\n*-1\r\n"
	for _, tc := range []struct {
		name, reply string
		n           int
		err         error
	}{
		{"RESP2", "*1\r\n*2\r\n$4\r\njobs\r\n" + entries, 2, nil},
		{"RESP3", "%1\r\n$4\r\njobs\r\n" + entries, 2, nil},
		{"nothing, RESP2", "*-1\r\n", 0, nil},
		{"nothing, RESP3", "_\r\n", 0, nil},
		{"error", "-NOGROUP No such key\r\n", 0, replyError("NOGROUP No such key")},
		{"long error", "!4\r\nOOPS\r\n", 0, replyError("OOPS")},
		{"cut short", "*1\r\n*2\r\n$4\r\njo", 0, errReply},
		{"longer than it is", "*1\r\n*2\r\n$99999999\r\njobs\r\n", 0, errReply},
		{"two streams", "*2\r\n*2\r\n", 0, errReply},
		{"odd fields", "*1\r\n*2\r\n$1\r\nj\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*1\r\n$1\r\na\r\n", 0, errReply},
		{"empty", "", 0, errReply},
	} {
		got, err := readReply([]byte(tc.reply), nil)
		if len(got) != tc.n || !errors.Is(err, tc.err) {
			t.Errorf("%s: got %d entries, %v", tc.name, len(got), err)
		}
		if tc.n == 2 && (len(got[0].fields) != 2 || string(got[0].fields[1].value) != "\r\n" || !got[1].gone || got[1].id != "2-0") {
			t.Errorf("%s: got %+v", tc.name, got)
		}
	}
}

func TestBuffer(t *testing.T) {
	t.Parallel()
	b := buffer{limit: 10}
	if _, err := io.CopyN(&b, strings.NewReader("0123456789"), 8); err != nil || string(b.b) != "01234567" {
		t.Errorf("got %q, %v", b.b, err)
	}
	if _, err := io.CopyN(&b, strings.NewReader("0123456789"), 3); !errors.Is(err, errTooMuch) {
		t.Errorf("got %v", err)
	}
	if _, err := b.Write([]byte("abc")); !errors.Is(err, errTooMuch) {
		t.Errorf("got %v", err)
	}
	if _, err := io.CopyN(&b, strings.NewReader("8"), 2); !errors.Is(err, io.EOF) {
		t.Errorf("a string that is cut short: %v", err)
	}
}

// Whatever a server sends, the reader neither panics nor takes more memory than came.
func FuzzReadReply(f *testing.F) {
	for _, s := range []string{"*1\r\n*2\r\n$1\r\nj\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n", "%1\r\n", "_\r\n", "-ERR x\r\n", "*1\r\n*-1\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, parse := range []func([]byte, []entry) ([]entry, error){readReply, claimReply} {
			es, err := parse(b, nil)
			if err == nil && len(es) > len(b) {
				t.Errorf("%d entries in %d bytes", len(es), len(b))
			}
		}
	})
}

// Every entry is a job: a body that is made of all fields is valid JSON, and what is written is read as it was.
func FuzzDecode(f *testing.F) {
	f.Add("body", "b", "x", "y")
	f.Add("_watermill_message_uuid", "u", "metadata", "\x81\xa1a\xa1b")
	f.Add("name", "\xff", "name", "<>")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string) {
		fields := []field{{[]byte(n1), []byte(v1)}, {[]byte(n2), []byte(v2)}}
		var m transport.Message
		decode(&m, "s", fields)
		if at, _ := bodyField(fields); at < 0 && !json.Valid(m.Body) {
			t.Fatalf("not JSON: %q", m.Body)
		}
		args := encode(nil, &m)
		again := make([]field, 0, len(args)/2)
		for i := 0; i+1 < len(args); i += 2 {
			again = append(again, field{raw(args[i]), raw(args[i+1])})
		}
		var back transport.Message
		decode(&back, "s", again)
		if !bytes.Equal(m.Body, back.Body) {
			t.Errorf("body %q came back as %q", m.Body, back.Body)
		}
		for _, h := range m.Header {
			if m.Header.Get(h.Name) != back.Header.Get(h.Name) {
				t.Errorf("header %q: %q came back as %q", h.Name, m.Header.Get(h.Name), back.Header.Get(h.Name))
			}
		}
	})
}

func raw(a any) []byte {
	switch a := a.(type) {
	case string:
		return []byte(a)
	case *string:
		return []byte(*a)
	}
	b, _ := a.([]byte)
	return b
}
