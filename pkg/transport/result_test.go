package transport_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func finished() (*job.Job, *job.Outcome) {
	j := decode(transport.Decoder{Module: "resize", Reply: []string{">"}}, message("in", "Wasm-Job-Id", "order-7", "Wasm-Key", "customer-1",
		"Correlation-Id", "c-1", "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate", "a=b",
		"Wasm-Hops", "2", "X-Own", "not copied"))
	return j, &job.Outcome{
		Kind: job.KindOK, Attempts: 2, Body: []byte("out"), Module: "resize", Digest: "9f86d081", Fuel: 1234567,
		Duration: 1500 * time.Microsecond, Source: "jobs@1/41", CorrelationID: "c-1", FinishedAt: published.UnixMilli() + 7, Worker: "host-1",
		Header: job.Header{{Name: "Content-Type", Value: "image/png"}, {Name: "X-Width", Value: "100"}, {Name: "X-Width", Value: "200"}},
	}
}

func failed() (*job.Job, *job.Outcome) {
	j, o := finished()
	o.Kind, o.Err, o.Body, o.Fuel, o.Dead = job.KindTrap, "wasm trap: out of bounds \"memory\"\r\nWasm-Ok: true", nil, 0, true
	o.Header = job.Header{{Name: "content-type", Value: "image/png"}}
	return j, o
}

func TestResult(t *testing.T) {
	t.Parallel()
	for _, e := range []transport.Envelope{transport.EnvelopeNone, transport.EnvelopeDRASM, transport.EnvelopeWatermill} {
		for name, make := range map[string]func() (*job.Job, *job.Outcome){"ok": finished, "failed": failed} {
			j, o := make()
			if e == transport.EnvelopeDRASM {
				o.TypeName = "Resized"
			}
			got := show(transport.Result(j, o, e, "results.images"))
			golden(t, fmt.Sprintf("result-%s-%s", e, name), got)
			if again := show(transport.Result(j, o, e, "results.images")); !bytes.Equal(again, got) {
				t.Errorf("%s, %s: the same outcome gives another message", e, name)
			}
		}
	}
	golden(t, "result-least", show(transport.Result(decode(transport.Decoder{}, message("in")), &job.Outcome{Kind: job.KindOK}, transport.EnvelopeNone, "out")))
}

// A repeat may come with another message of the same job: what was recorded counts.
func TestResultIsRecorded(t *testing.T) {
	t.Parallel()
	j, o := finished()
	want := show(transport.Result(j, o, transport.EnvelopeNone, "out"))
	j.Source, j.Attempt, j.CorrelationID, j.Module = "jobs@1/99", 7, "c-2", "other"
	if got := show(transport.Result(j, o, transport.EnvelopeNone, "out")); !bytes.Equal(got, want) {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// What a guest says may not pass for what the sidecar says, nor be obeyed by a broker.
func TestResultGuestHeaders(t *testing.T) {
	t.Parallel()
	j, o := finished()
	o.Header = nil
	want := len(transport.Result(j, o, transport.EnvelopeNone, "out").Header) + 2
	for _, name := range []string{
		"Wasm-Ok", "wasm-job-id", "NATS-ROLLUP", "_Watermill_Message_UUID", "traceparent", "Tracestate", "CORRELATION-ID", "correlation_id",
		"", "two words", "colon:", "line\r\nbreak", "grüße",
	} {
		o.Header.Add(name, "forged")
	}
	o.Header.Add("X-Text", "a\r\nWasm-Kind: ok\x00\xff"+strings.Repeat("z", 2000))
	o.Header.Add("Content-Type", "text/plain")
	m := transport.Result(j, o, transport.EnvelopeNone, "out")
	if len(m.Header) != want {
		t.Errorf("%d headers, want %d: %v", len(m.Header), want, m.Header)
	}
	if v := m.Header.Get("X-Text"); len(v) > job.MaxErrorText || v != job.CleanText(v) {
		t.Errorf("X-Text is %q", v)
	}
}

// D-02: ResultMsg as DRASM's orchestrator reads it, a message in JSON inside it.
func TestResultDRASM(t *testing.T) {
	t.Parallel()
	type resultMsg struct {
		JobID    string  `json:"job_id"`
		WorkerID string  `json:"worker_id"`
		OK       bool    `json:"ok"`
		Output   *[]int  `json:"output"`
		Error    *string `json:"error"`
	}
	body := []byte("bytes \x00\xff \"é\"")
	j := decode(transport.Decoder{Envelope: transport.EnvelopeDRASM}, message(`{"job_id":"a\"b","module_id":"m","message":{"type_name":"T/\u00e9<&>","payload":[1]}}`))
	for _, o := range []*job.Outcome{
		{Kind: job.KindOK, Body: body, Worker: "host"},
		{Kind: job.KindFailed, Err: "no"},
	} {
		m := transport.Result(j, o, transport.EnvelopeDRASM, "wasm_results")
		var got resultMsg
		dec := json.NewDecoder(bytes.NewReader(m.Body))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&got); err != nil {
			t.Fatalf("%s: %v", m.Body, err)
		}
		if got.JobID != `a"b` || got.OK != o.OK() {
			t.Errorf("got %+v", got)
		}
		if !o.OK() {
			if got.Output != nil || got.Error == nil || *got.Error != "no" || got.WorkerID == "" {
				t.Errorf("failure is %s", m.Body)
			}
			continue
		}
		if got.Error != nil || got.WorkerID != "host" {
			t.Errorf("success is %s", m.Body)
		}
		var inner []byte
		for _, n := range *got.Output {
			inner = append(inner, byte(n))
		}
		var message struct {
			TypeName string `json:"type_name"`
			Payload  []int  `json:"payload"`
		}
		if err := json.Unmarshal(inner, &message); err != nil {
			t.Fatalf("%s: %v", inner, err)
		}
		var payload []byte
		for _, n := range message.Payload {
			payload = append(payload, byte(n))
		}
		if !bytes.Equal(payload, body) || message.TypeName != "T/é<&>" {
			t.Errorf("message is %s", inner)
		}
	}
}

// D-02: the native form carries the payload once.
func TestResultSize(t *testing.T) {
	t.Parallel()
	j, o := finished()
	for _, n := range []int{4 << 10, 1 << 20} {
		o.Body = make([]byte, n)
		if got := transport.Result(j, o, transport.EnvelopeNone, "out").Size(); float64(got) > 1.4*float64(n) {
			t.Errorf("a result of %d bytes takes %d", n, got)
		}
	}
}

func TestResultChains(t *testing.T) {
	t.Parallel()
	j, o := finished()
	next := transport.Result(j, o, transport.EnvelopeNone, "next")
	got := transport.Decoder{Route: "second", Module: "m"}
	k := got.Decode(delivered{m: next, position: "next@1/1"})
	if k.ID != "order-7/route" || k.Hops != 3 || k.CorrelationID != "c-1" || k.Key != "customer-1" || k.Moved || k.Invalid != nil {
		t.Errorf("the result became job %+v", k)
	}
}

func TestProblemOfEveryKind(t *testing.T) {
	t.Parallel()
	j, o := failed()
	for _, k := range job.Kinds() {
		if k == job.KindOK {
			continue
		}
		o.Kind, o.Err = k, ""
		m := transport.Result(j, o, transport.EnvelopeNone, "out")
		var p struct {
			Type, Title, Detail, Kind string
			Status, Attempts          int
		}
		if err := json.Unmarshal(m.Body, &p); err != nil {
			t.Fatal(err)
		}
		want := k.Fate()
		if p.Type != "urn:wasmsidecar:problem:"+string(k) || p.Title != want.Title || p.Status != want.Status || p.Detail == "" || p.Kind != string(k) || p.Attempts != 2 {
			t.Errorf("%s: %s", k, m.Body)
		}
		if m.Header.Get("Content-Type") != "application/problem+json" || m.Header.Get("Wasm-Kind") != string(k) || m.Header.Get("wasm-ok") != "false" {
			t.Errorf("%s: %v", k, m.Header)
		}
	}
}

func letter() *transport.Message {
	m := message("original \x00 bytes", "Wasm-Job-Id", "order-7", "Nats-Msg-Id", "m-1", "nats-expected-stream", "OTHER", "Nats-Rollup", "all",
		"X-Own", "kept", "X-Own", "both", "Wasm-Delay", "2s", "Wasm-Key", "customer-1")
	m.ReplyTo = "_INBOX.a"
	return m
}

func TestDeadLetter(t *testing.T) {
	t.Parallel()
	orig := letter()
	j := decode(transport.Decoder{}, orig)
	_, o := failed()
	j.CorrelationID = "c-1"
	dead := transport.DeadLetter(j, o, orig, "dlq", 0)
	golden(t, "deadletter", show(dead))
	if again := transport.DeadLetter(j, o, orig, "dlq", 0); !reflect.DeepEqual(again, dead) {
		t.Error("the same outcome gives another dead letter")
	}

	// A dead letter that dies again says so once, and its own headers are not carried along.
	k := decode(transport.Decoder{Route: "second"}, dead)
	o.Attempts = 9
	golden(t, "deadletter-again", show(transport.DeadLetter(k, o, dead, "dlq2", 0)))

	full := dead.Size()
	for limit := full - 1; limit >= 700; limit -= 13 {
		cut := transport.DeadLetter(j, o, orig, "dlq", limit)
		if cut.Size() > limit {
			t.Fatalf("%d bytes where %d are taken", cut.Size(), limit)
		}
		if got := cut.Header.Get("Wasm-Dead-Truncated"); got != fmt.Sprint(len(orig.Body)) {
			t.Errorf("Wasm-Dead-Truncated is %q", got)
		}
		if cut.Header.Get("Wasm-Job-Id") != "order-7" || cut.Header.Get("Wasm-Dead-Kind") != "trap" {
			t.Errorf("cut to %d it says %v", limit, cut.Header)
		}
		if !bytes.HasPrefix(orig.Body, cut.Body) {
			t.Errorf("cut to %d the body is %q", limit, cut.Body)
		}
	}
	if len(orig.Header) != 8 || orig.Header.Get("Nats-Rollup") != "all" || string(orig.Body) != "original \x00 bytes" {
		t.Errorf("the original was changed: %+v", orig)
	}
}

func TestMoved(t *testing.T) {
	t.Parallel()
	orig := letter()
	j := decode(transport.Decoder{Reply: []string{">"}}, orig)
	j.CorrelationID, j.Attempt = "c-1", 1
	first := transport.Moved(orig, j, transport.MoveRetry)
	golden(t, "moved-retry", show(first))

	// It is the same job still.
	d := transport.Decoder{Route: "route", Reply: []string{">"}}
	k := d.Decode(delivered{m: first, position: "jobs@1/50", published: published.Add(time.Hour)})
	want := *j
	want.Header, want.Source, want.Published, want.Moved = k.Header, k.Source, k.Published, true
	if !reflect.DeepEqual(k, &want) {
		t.Errorf("got\n%+v, want\n%+v", k, &want)
	}

	k.Attempt = 2
	second := transport.Moved(first, k, transport.MoveRetry)
	golden(t, "moved-retry-second", show(second))

	// Moved again before it was due, it must have another id for the broker, and the same for the same delivery.
	early := d.Decode(delivered{m: second, position: "jobs@1/51"})
	third := transport.Moved(second, early, transport.MoveRetry)
	if a, b := second.Header.Get("Nats-Msg-Id"), third.Header.Get("Nats-Msg-Id"); a == b || b != "order-7/route/0.2/retry@jobs@1/51" {
		t.Errorf("moved again %q has the id %q", a, b)
	}
	if again := transport.Moved(second, early, transport.MoveRetry); !reflect.DeepEqual(third, again) {
		t.Error("the same move gives another message")
	}

	// No header grows in number, however often it is moved.
	m, headers := second, len(second.Header)
	for range 10 {
		k := d.Decode(delivered{m: m, position: "p"})
		k.Attempt++
		m.Header.Add("Nats-Scheduler", "by the broker")
		m = transport.Moved(m, k, transport.MoveRetry)
	}
	if len(m.Header) != headers {
		t.Errorf("after ten moves it has %d headers, before %d: %v", len(m.Header), headers, m.Header)
	}

	// A redrive begins anew and drops what the dead letter said.
	_, o := failed()
	dead := transport.DeadLetter(k, o, first, "dlq", 0)
	dead.Subject = "jobs.in"
	again := d.Decode(delivered{m: dead, position: "dlq@1/1"})
	again.Generation++
	again.Attempt = 0
	redriven := transport.Moved(dead, again, transport.MoveRedrive)
	golden(t, "moved-redrive", show(redriven))
	if x := d.Decode(delivered{m: redriven, position: "jobs@1/60"}); x.ID != "order-7" || x.Generation != 1 || x.Attempt != 0 || !x.NotBefore.IsZero() {
		t.Errorf("redriven it is %+v", x)
	}
}

func BenchmarkResult(b *testing.B) {
	j, o := finished()
	b.ReportAllocs()
	for b.Loop() {
		if transport.Result(j, o, transport.EnvelopeNone, "out").Subject == "" {
			b.Fatal("no subject")
		}
	}
}
