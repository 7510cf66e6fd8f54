package transport_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestDecodePlain(t *testing.T) {
	t.Parallel()
	m := message("body", "X-Multi", "a", "x-multi", "b", "Wasm-Key", "k", "correlation-id", "c-1")
	got := decode(transport.Decoder{Module: "echo"}, m)
	want := &job.Job{
		ID: "jobs@1/42", Route: "route", Module: "echo", Subject: "jobs.in", Key: "k", Source: "jobs@1/42",
		Header: m.Header, Body: []byte("body"), CorrelationID: "c-1", Published: published,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	if v := got.Header.Values("X-Multi"); len(v) != 2 {
		t.Errorf("X-Multi is %q", v)
	}
}

func TestDecodeID(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", 129)
	ids := [][2]string{ // the order of precedence
		{"Wasm-Job-Id", "job"},
		{"NATS-MSG-ID", "msg"},
		{"Idempotency-Key", "idem"},
		{"ce-id", "7"},
		{"_watermill_message_uuid", "uuid"},
	}
	all := message(`{"job_id":"envelope","message":{"payload":""}}`, "ce-source", "//src/a")
	for i := len(ids) - 1; i >= 0; i-- {
		all.Header.Add(ids[i][0], ids[i][1])
	}
	for i, want := range []string{"job", "msg", "idem", "//src/a/7", "uuid", "envelope"} {
		if got := decode(transport.Decoder{Envelope: transport.EnvelopeDRASM}, all).ID; got != want {
			t.Errorf("id is %q, want %q", got, want)
		}
		if i < len(ids) {
			all.Header.Del(ids[i][0])
		}
	}
	tests := []struct {
		name string
		m    *transport.Message
		want string // "" for a SHA-256
	}{
		{"position", message("x"), "jobs@1/42"},
		{"empty header is none", message("x", "Wasm-Job-Id", "", "Nats-Msg-Id", "m"), "m"},
		{"empty first value", message("x", "Wasm-Job-Id", "", "Wasm-Job-Id", "second"), "second"},
		{"kafka's form of CloudEvents", message("x", "ce_id", "1", "ce_source", "/s"), "/s/1"},
		{"event without source", message("x", "ce-id", "1"), "1"},
		{"256 bytes", message("x", "Wasm-Job-Id", strings.Repeat("a", 256)), strings.Repeat("a", 256)},
		{"257 bytes", message("x", "Wasm-Job-Id", strings.Repeat("a", 257)), ""},
		{"258 bytes of two each", message("x", "Wasm-Job-Id", long), ""},
		{"not UTF-8", message("x", "Wasm-Job-Id", "a\xff"), ""},
		{"line break", message("x", "Wasm-Job-Id", "a\r\nb"), ""},
		{"spaces around", message("x", "Wasm-Job-Id", " a"), ""},
		{"spaces inside", message("x", "Wasm-Job-Id", "a b/é"), "a b/é"},
	}
	seen := map[string]bool{}
	for _, tt := range tests {
		got := decode(transport.Decoder{}, tt.m).ID
		switch {
		case tt.want != "" && got != tt.want:
			t.Errorf("%s: id is %q, want %q", tt.name, got, tt.want)
		case tt.want == "" && (len(got) != 64 || seen[got]):
			t.Errorf("%s: id is %q, want a SHA-256 of its own", tt.name, got)
		}
		seen[got] = true
	}
	// What stands for a long id is itself an id that stays.
	first := decode(transport.Decoder{}, message("x", "Wasm-Job-Id", long)).ID
	if again := decode(transport.Decoder{}, message("x", "Wasm-Job-Id", first)).ID; again != first {
		t.Errorf("id %q becomes %q", first, again)
	}
	if got := (&transport.Decoder{Route: "r"}).Decode(delivered{m: message("x")}).ID; len(got) != 64 {
		t.Errorf("without any id, not even a position, it is %q", got)
	}
}

func TestDecodeModule(t *testing.T) {
	t.Parallel()
	const drasm = `{"job_id":"1","module_id":"adder","message":{"type_name":"T","payload":[1]}}`
	tests := []struct {
		name, module string
		envelope     transport.Envelope
		m            *transport.Message
		want, fault  string
	}{
		{name: "fixed", module: "echo", m: message("x", "Wasm-Module", "other"), want: "echo"},
		{name: "header by default", m: message("x", "wasm-module", "upper"), want: "upper"},
		{name: "no header by default", m: message("x")},
		{name: "header by template", module: "{header.Wasm-Module}", m: message("x", "Wasm-Module", "upper"), want: "upper"},
		{name: "no header by template", module: "{header.Wasm-Module}", m: message("x"), fault: "header Wasm-Module is missing"},
		{name: "parts", module: "img-{header.X-Op}-v{header.X-V}", m: message("x", "X-Op", "resize", "X-V", "2"), want: "img-resize-v2"},
		{name: "part missing", module: "img-{header.X-Op}-v{header.X-V}", m: message("x", "X-Op", "resize"), fault: "header X-V is missing"},
		{name: "drasm", envelope: transport.EnvelopeDRASM, m: message(drasm), want: "adder"},
		{name: "drasm by template", module: "{header.wasm-module}", envelope: transport.EnvelopeDRASM, m: message(drasm), want: "adder"},
		{name: "drasm, header first", envelope: transport.EnvelopeDRASM, m: message(drasm, "Wasm-Module", "echo"), want: "echo"},
		{name: "drasm, fixed", module: "echo", envelope: transport.EnvelopeDRASM, m: message(drasm), want: "echo"},
	}
	for _, tt := range tests {
		j := decode(transport.Decoder{Module: tt.module, Envelope: tt.envelope}, tt.m)
		if j.Module != tt.want {
			t.Errorf("%s: module is %q, want %q", tt.name, j.Module, tt.want)
		}
		checkFault(t, tt.name, j, tt.fault)
	}
	for template, ok := range map[string]bool{
		"": true, "echo": true, "a{header.X}b{header.Y-Z}": true,
		"{header.}": false, "{X}": false, "{header.X": false, "a}": false, "{header.a b}": false,
	} {
		if err := transport.ValidModule(template); (err == nil) != ok {
			t.Errorf("ValidModule(%q) = %v", template, err)
		}
	}
}

// checkFault checks that j is invalid for the reason given, or valid for none.
func checkFault(t *testing.T, name string, j *job.Job, fault string) {
	t.Helper()
	if fault == "" {
		if j.Invalid != nil {
			t.Errorf("%s: %v", name, j.Invalid)
		}
		return
	}
	if j.Invalid == nil {
		t.Errorf("%s: valid, want %q", name, fault)
		return
	}
	text := j.Invalid.Error()
	if job.KindOf(j.Invalid) != job.KindInvalid || !strings.HasPrefix(text, "decode: ") || !strings.Contains(text, fault) {
		t.Errorf("%s: %s: %q, want %q", name, job.KindOf(j.Invalid), text, fault)
	}
	if j.ID == "" {
		t.Errorf("%s: an invalid job without an id", name)
	}
}

func TestDecodeTimes(t *testing.T) {
	t.Parallel()
	d := transport.Decoder{Timeout: 10 * time.Second, MaxAttempts: 5, MaxBody: 100}
	at := func(d time.Duration) func(*job.Job) (any, any) {
		return func(j *job.Job) (any, any) { return j.NotBefore, published.Add(d) }
	}
	tests := []struct {
		name    string
		headers []string
		got     func(*job.Job) (got, want any)
		fault   string
	}{
		{"delay", []string{"Wasm-Delay", "1.5s"}, at(1500 * time.Millisecond), ""},
		{"no delay", []string{"Wasm-Delay", "0"}, func(j *job.Job) (any, any) { return j.NotBefore, time.Time{} }, ""},
		{"delay of nonsense", []string{"Wasm-Delay", "soon\r\n"}, nil, `header Wasm-Delay: "soon  " is not a duration; write one such as 1.5s`},
		{"delay without unit", []string{"wasm-delay", "5"}, nil, "is not a duration"},
		{"negative delay", []string{"Wasm-Delay", "-5s"}, nil, "is not a duration"},
		{"deliver at", []string{"Wasm-Deliver-At", "2026-01-02T03:05:05Z"}, at(time.Minute), ""},
		{"deliver at, another zone", []string{"Wasm-Deliver-At", "2026-01-02T04:05:05.000+01:00"}, at(time.Minute), ""},
		{"deliver at in milliseconds", []string{"Wasm-Deliver-At", fmt.Sprint(published.UnixMilli() + 1)}, at(time.Millisecond), ""},
		{"the later of both", []string{"Wasm-Deliver-At", "2026-01-02T03:05:05Z", "Wasm-Delay", "10m"}, at(10 * time.Minute), ""},
		{"deliver at nonsense", []string{"Wasm-Deliver-At", "tomorrow"}, nil, `header Wasm-Deliver-At: "tomorrow" is not a time; write RFC 3339`},
		{"deliver before 1970", []string{"Wasm-Deliver-At", "-1"}, nil, "is not a time"},
		{"deliver after 9999", []string{"Wasm-Deliver-At", "253402300800000"}, nil, "is not a time"},
		{"delay of a moved message", []string{"Wasm-Delay", "1h", "Wasm-Moved", "0.1"}, func(j *job.Job) (any, any) { return j.NotBefore, time.Time{} }, ""},
		{"moved", []string{"Wasm-Delay", "1h", "Wasm-Moved", "2.3", "Wasm-Deliver-At", "2026-01-02T03:05:05Z"}, func(j *job.Job) (any, any) {
			return []any{j.NotBefore, j.Moved, j.Generation, j.Attempt}, []any{published.Add(time.Minute), true, 2, 3}
		}, ""},
		{"moved nonsense", []string{"Wasm-Moved", "1"}, nil, "header Wasm-Moved"},
		{"moved nonsense", []string{"Wasm-Moved", "1.-1"}, nil, "header Wasm-Moved"},
		{"expires", []string{"Wasm-Expires-At", "2026-01-02T03:04:06Z"}, func(j *job.Job) (any, any) { return j.ExpiresAt, published.Add(time.Second) }, ""},
		{"expires nonsense", []string{"Wasm-Expires-At", "x"}, nil, "header Wasm-Expires-At"},
		{"timeout", []string{"Wasm-Timeout", "2s"}, func(j *job.Job) (any, any) { return j.Timeout, 2 * time.Second }, ""},
		{"timeout may not widen", []string{"Wasm-Timeout", "1h"}, func(j *job.Job) (any, any) { return j.Timeout, 10 * time.Second }, ""},
		{"timeout of nothing", []string{"Wasm-Timeout", "0s"}, nil, "leaves no time"},
		{"attempts", []string{"Wasm-Max-Attempts", "2"}, func(j *job.Job) (any, any) { return j.MaxAttempts, 2 }, ""},
		{"attempts may not widen", []string{"Wasm-Max-Attempts", "99"}, func(j *job.Job) (any, any) { return j.MaxAttempts, 5 }, ""},
		{"attempts without end", []string{"Wasm-Max-Attempts", "0"}, nil, "header Wasm-Max-Attempts: \"0\" is not a count; write a whole number from 1"},
		{"attempts nonsense", []string{"Wasm-Max-Attempts", "1e3"}, nil, "header Wasm-Max-Attempts"},
		{"backoff", []string{"wasm-backoff", "2s", "Wasm-Max-Backoff", "1h"}, func(j *job.Job) (any, any) {
			return []time.Duration{j.Backoff, j.MaxBackoff}, []time.Duration{2 * time.Second, time.Hour}
		}, ""},
		{"backoff of a moved message", []string{"Wasm-Backoff", "2s", "Wasm-Moved", "0.1"}, func(j *job.Job) (any, any) { return j.Backoff, 2 * time.Second }, ""},
		{"backoff of nothing", []string{"Wasm-Backoff", "0s"}, nil, "header Wasm-Backoff: \"0s\" leaves no time"},
		{"backoff nonsense", []string{"Wasm-Backoff", "2"}, nil, "header Wasm-Backoff: \"2\" is not a duration"},
		{"cap of nothing", []string{"Wasm-Max-Backoff", "0"}, nil, "header Wasm-Max-Backoff: \"0\" leaves no time"},
		{"negative cap", []string{"Wasm-Max-Backoff", "-1h"}, nil, "header Wasm-Max-Backoff: \"-1h\" is not a duration"},
		{"hops", []string{"Wasm-Hops", "63"}, func(j *job.Job) (any, any) { return j.Hops, 63 }, ""},
		{"too many hops", []string{"Wasm-Hops", "64"}, nil, "64 results led to this job, the limit is 64"},
		{"hops nonsense", []string{"Wasm-Hops", "99999999999999999999"}, nil, "header Wasm-Hops"},
		{"dead generation", []string{"Wasm-Dead-Generation", "3"}, func(j *job.Job) (any, any) { return j.Generation, 3 }, ""},
	}
	for _, tt := range tests {
		j := decode(d, message("x", tt.headers...))
		checkFault(t, tt.name, j, tt.fault)
		if tt.got != nil {
			if got, want := tt.got(j); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %v, want %v", tt.name, got, want)
			}
		}
	}
	checkFault(t, "large", decode(d, message(strings.Repeat("x", 101))), "the body has 101 bytes and route \"route\" takes 100")
	checkFault(t, "just not large", decode(d, message(strings.Repeat("x", 100))), "")

	// Where the broker does not say when it took the message, a delay counts from now.
	before := time.Now()
	j := d.Decode(delivered{m: message("x", "Wasm-Delay", "1h"), position: "p"})
	if wait := j.NotBefore.Sub(before); wait < time.Hour || wait > 2*time.Hour {
		t.Errorf("the job waits %v", wait)
	}
}

func TestDecodeReply(t *testing.T) {
	t.Parallel()
	d := transport.Decoder{Reply: []string{"_INBOX.>", "results.*"}}
	for reply, ok := range map[string]bool{
		"_INBOX.a.b": true, "results.me": true, "results.me.too": false, "jobs.in": false, "_INBOX": false,
		"_INBOX.>": false, "results.*": false, "_INBOX.a b": false, "results.": false, "_INBOX..a": false, "_INBOX.\r\n": false,
	} {
		want := ""
		if ok {
			want = reply
		}
		byHeader := message("x", "reply-to", reply)
		byBroker := &transport.Message{Subject: "jobs.in", ReplyTo: reply}
		for _, m := range []*transport.Message{byHeader, byBroker} {
			j := decode(d, m)
			if j.ReplyTo != want {
				t.Errorf("reply to %q is %q, want %q", reply, j.ReplyTo, want)
			}
			checkFault(t, reply, j, "")
		}
		if got := decode(d, byHeader).Header.Get("Reply-To"); got != reply {
			t.Errorf("header Reply-To is %q, want %q", got, reply)
		}
		if got := decode(transport.Decoder{}, byHeader).ReplyTo; got != "" {
			t.Errorf("a route without patterns replies to %q", got)
		}
	}
}

// D-01: DRASM's jobs are read as they are, and payloads in other forms too.
func TestDecodeDRASM(t *testing.T) {
	t.Parallel()
	form := func(payload string) string {
		return `{"job_id":"5f1","module_id":"echo","message":{"type_name":"EchoRequest","payload":` + payload + `}}`
	}
	all := make([]byte, 256)
	var numbers []string
	for i := range all {
		all[i] = byte(i)
		numbers = append(numbers, fmt.Sprint(i))
	}
	tests := []struct{ name, body, want string }{
		{"numbers", form("[" + strings.Join(numbers, ",") + "]"), string(all)},
		{"numbers with space", form(" [ 1 ,\n 2 ] "), "\x01\x02"},
		{"no numbers", form("[]"), ""},
		{"string", form(`"{\"n\":1} é \u00e9"`), `{"n":1} é é`},
		{"object", form(`{"n": 1}`), `{"n": 1}`},
		{"number", form(`12.5`), `12.5`},
		{"boolean", form(`true`), `true`},
		{"array of what are no bytes", form(`[1,256]`), `[1,256]`},
		{"array of fractions", form(`[1.0]`), `[1.0]`},
		{"array of negatives", form(`[-1]`), `[-1]`},
		{"array of arrays", form(`[[1]]`), `[[1]]`},
		{"base64", `{"job_id":"5f1","module_id":"echo","message":{"type_name":"EchoRequest","payload_base64":"` +
			base64.StdEncoding.EncodeToString(all) + `"}}`, string(all)},
		{"unknown fields", `{"extra":[1],"job_id":"5f1","module_id":"echo","message":{"x":{},"type_name":"EchoRequest","payload":[65]}}`, "A"},
	}
	d := transport.Decoder{Envelope: transport.EnvelopeDRASM}
	for _, tt := range tests {
		j := decode(d, message(tt.body))
		checkFault(t, tt.name, j, "")
		if string(j.Body) != tt.want || j.ID != "5f1" || j.Module != "echo" || j.TypeName != "EchoRequest" {
			t.Errorf("%s: got job %q, module %q, type %q, body %q; want body %q", tt.name, j.ID, j.Module, j.TypeName, j.Body, tt.want)
		}
	}
	// D-10: what cannot be decoded says why, keeps its bytes and has an id.
	for body, fault := range map[string]string{
		``:                "not JSON at byte 0",
		`{"job_id":`:      "not JSON at byte 10",
		"\xff\x00":        "not JSON",
		`[]`:              "array where an object is needed",
		`{"job_id":7}`:    "wrong type for job_id: number",
		`{"job_id":"1"}`:  "message is missing",
		`{"message":{}}`:  "message.payload is missing",
		form("null"):      "message.payload is missing",
		form("[1") + "":   "not JSON",
		form(`[1]`) + `x`: "not JSON",
		`{"message":{"payload":[1],"payload_base64":"AA=="}}`: "exclude each other",
		`{"message":{"payload_base64":"?"}}`:                  "illegal base64",
		`{"message":{"type_name":1,"payload":[1]}}`:           "wrong type for message.type_name: number",
	} {
		j := decode(d, message(body))
		checkFault(t, body, j, fault)
		checkFault(t, body, j, "DRASM envelope: ")
		if string(j.Body) != body || j.ID == "" {
			t.Errorf("%q: body is %q, id %q", body, j.Body, j.ID)
		}
	}
}

// FuzzDecode: whatever a producer writes, there is a job with an id, and what is wrong with it can be put into a header.
func FuzzDecode(f *testing.F) {
	for _, h := range [][2]string{
		{"Wasm-Job-Id", "1"}, {"Nats-Msg-Id", "\xff"}, {"Wasm-Delay", "1h"}, {"Wasm-Delay", "-"}, {"Wasm-Deliver-At", "1767323045000"},
		{"Wasm-Expires-At", "2026-01-02T03:04:05Z"}, {"Wasm-Timeout", "9999999h"}, {"Wasm-Max-Attempts", "-1"}, {"Wasm-Hops", "64"},
		{"Wasm-Backoff", "-1ns"}, {"Wasm-Max-Backoff", "2562047h47m16.854775807s"},
		{"Wasm-Moved", "1.2"}, {"Wasm-Moved", ".."}, {"Reply-To", "_INBOX.>"}, {"X-Op", "{header.X-Op}"}, {"", ""},
	} {
		f.Add(h[0], h[1], []byte(`{"job_id":"1","module_id":"m","message":{"type_name":"T","payload":[1,2]}}`), "p@1/1", true)
	}
	f.Add("ce-id", "1", []byte(`{"message":{"payload_base64":"AA=="}}`), "", true)
	f.Add("_watermill_message_uuid", "\r\n", []byte("[1,2,"), " ", false)
	f.Fuzz(func(t *testing.T, name, value string, body []byte, position string, drasm bool) {
		m := message(string(body), name, value, name, "second", "ce-source", value)
		m.ReplyTo = value
		for _, module := range []string{"", "{header." + name + "}", value} {
			d := transport.Decoder{Route: "r", Module: module, MaxBody: 1000, MaxAttempts: 3, Timeout: time.Second, Reply: []string{">"}}
			if drasm {
				d.Envelope = transport.EnvelopeDRASM
			}
			j := d.Decode(delivered{m: m, position: position, published: published})
			if j.ID == "" || len(j.ID) > job.MaxIDLen || !utf8.ValidString(j.ID) || strings.ContainsAny(j.ID, "\r\n") {
				t.Fatalf("id %q", j.ID)
			}
			if j.MaxAttempts < 0 || j.MaxAttempts > 3 || j.Timeout < 0 || j.Timeout > time.Second || j.Backoff < 0 || j.MaxBackoff < 0 || j.Hops < 0 || j.Attempt < 0 || j.Generation < 0 {
				t.Fatalf("counts out of range: %+v", j)
			}
			if j.Invalid == nil && j.Hops >= job.MaxHops {
				t.Fatalf("%d hops", j.Hops)
			}
			if j.Invalid != nil {
				text := j.Invalid.Error()
				var e *job.Error
				if !errors.As(j.Invalid, &e) || e.Kind != job.KindInvalid || job.CleanText(text) != text {
					t.Fatalf("invalid: %#v: %q", j.Invalid, text)
				}
			}
			o := &job.Outcome{Kind: job.KindInvalid, Err: value, Header: job.Header{{Name: name, Value: value}}}
			for _, e := range []transport.Envelope{transport.EnvelopeNone, transport.EnvelopeDRASM, transport.EnvelopeWatermill} {
				r := transport.Result(j, o, e, "results")
				if !json.Valid(r.Body) {
					t.Fatalf("result is not JSON: %q", r.Body)
				}
				for _, h := range r.Header {
					if job.CleanText(h.Value) != h.Value {
						t.Fatalf("header %s: %q", h.Name, h.Value)
					}
				}
			}
			moved := transport.Moved(m, j, transport.MoveRetry)
			again := d.Decode(delivered{m: moved, position: "q", published: published})
			if again.ID != j.ID {
				t.Fatalf("moved, job %q becomes %q", j.ID, again.ID)
			}
			if dead := transport.DeadLetter(j, o, m, "dlq", 4000); dead.Size() > 4000 {
				t.Fatalf("a dead letter of %d bytes", dead.Size())
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	m := message(strings.Repeat("x", 1024), "Nats-Msg-Id", "0196f0b2-0000-7000-8000-000000000001", "traceparent", "00-1-2-01", "Content-Type", "text/plain")
	d := &transport.Decoder{Route: "route", Module: "echo"}
	var dl transport.Delivery = delivered{m: m, position: "jobs@1/42", published: published}
	b.ReportAllocs()
	for b.Loop() {
		if d.Decode(dl).Invalid != nil {
			b.Fatal("invalid")
		}
	}
}

func BenchmarkDecodeDRASM(b *testing.B) {
	payload := strings.Repeat("123,", 1023) + "4"
	m := message(`{"job_id":"1","module_id":"m","message":{"type_name":"T","payload":[` + payload + `]}}`)
	d := &transport.Decoder{Route: "route", Envelope: transport.EnvelopeDRASM}
	var dl transport.Delivery = delivered{m: m, position: "jobs@1/42", published: published}
	b.ReportAllocs()
	for b.Loop() {
		if d.Decode(dl).Invalid != nil {
			b.Fatal("invalid")
		}
	}
}
