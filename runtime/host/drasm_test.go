package host

import (
	"bytes"
	"strings"
	"testing"
)

func TestEnvelope(t *testing.T) {
	t.Parallel()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, e := range []Envelope{{"Add", []byte(`{"a":1}`)}, {"", nil}, {`quote " and \ and ü`, all}} {
		got, err := ParseEnvelope(e.Append(nil))
		if err != nil || got.TypeName != e.TypeName || !bytes.Equal(got.Payload, e.Payload) {
			t.Errorf("%+v became %+v, %v", e, got, err)
		}
	}
	if got := string(Envelope{"T", []byte{0, 9, 10, 99, 100, 255}}.Append(nil)); got != `{"type_name":"T","payload":[0,9,10,99,100,255]}` {
		t.Errorf("written as %s", got)
	}
	if got, err := ParseEnvelope([]byte(` { "payload" : [ 1 , 2 ] , "type_name" : "T" } `)); err != nil || string(got.Payload) != "\x01\x02" {
		t.Errorf("white space: %v, %v", got, err)
	}
	if got, err := ParseEnvelope([]byte(`{"payload":"text","type_name":"T"}`)); err != nil || string(got.Payload) != "text" {
		t.Errorf("text: %v, %v", got, err)
	}
	for _, bad := range []string{
		``, `[]`, `{}`, `null`, `{"type_name":"T"}`, `{"payload":[]}`, `{"type_name":"T","payload":null}`, `{"type_name":"T","payload":[256]}`,
		`{"type_name":"T","payload":[-1]}`, `{"type_name":"T","payload":[1.5]}`, `{"type_name":"T","payload":["a"]}`, `{"type_name":"T","payload":[[1]]}`,
		`{"type_name":"T","payload":{}}`, `{"type_name":7,"payload":[]}`, `{"type_name":"T","payload":[1e1]}`, `{"type_name":"T","payload":[99999999999999999999]}`,
	} {
		if e, err := ParseEnvelope([]byte(bad)); err == nil || !strings.Contains(err.Error(), "no envelope") {
			t.Errorf("%s: %+v, %v; want an error", bad, e, err)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(`{"type_name":"T","payload":[1,2,3]}`))
	f.Add([]byte(`{"type_name":"T","payload":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEnvelope(b)
		if err != nil {
			return
		}
		again, err := ParseEnvelope(e.Append(nil))
		if err != nil || again.TypeName != e.TypeName || !bytes.Equal(again.Payload, e.Payload) {
			t.Errorf("%q became %+v, then %+v, %v", b, e, again, err)
		}
	})
}

func TestParseDRASMRequest(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, method, url, header, body, err string }{
		{`{"url":"http://x/"}`, "", "http://x/", "", "", ""},
		{`{"url":"http://x/","method":"post","body":"raw \" text"}`, "POST", "http://x/", "", `raw " text`, ""},
		{`{"url":"http://x/","method":"PUT","body":{"a":[1,2]}}`, "PUT", "http://x/", "application/json", `{"a":[1,2]}`, ""},
		{`{"url":"http://x/","headers":{"content-type":"text/csv","Host":"evil"},"body":[1]}`, "", "http://x/", "text/csv", `[1]`, ""},
		{`{"url":"http://x/","body":null}`, "", "http://x/", "", "", ""},
		{`{"method":"GET"}`, "", "", "", "", "no url"},
		{`[]`, "", "", "", "", "not as expected"},
		{`{"url":"http://x/","headers":{"a b":"c"}}`, "", "", "", "", "not a token"},
		{`{"url":"http://x/","headers":{"a":"b\r\nc: d"}}`, "", "", "", "", "control characters"},
	} {
		r, err := parseDRASM([]byte(tt.in), 1<<20)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", tt.in, err, tt.err)
			}
			continue
		}
		if err != nil || r.method != tt.method || r.url != tt.url || string(r.body) != tt.body || r.header.Get("Content-Type") != tt.header || r.header.Get("Host") != "" {
			t.Errorf("%s: %+v, %v", tt.in, r, err)
		}
	}
}
