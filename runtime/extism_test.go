package runtime_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// What the guest probe-extism can be told to do.
const (
	xAlloc = iota
	xFree
	xLength
	xLengthUnsafe
	xLoad8
	xLoad64
	xStore8
	xStore64
	xBytes
	xReset
	xInputSet
	xInputLength
	xInputOffset
	xInput8
	xInput64
	xOutputSet
	xOutputLength
	xOutputOffset
	xErrorSet
	xErrorGet
	xConfigGet
	xVarGet
	xVarSet
	xRequest
	xStatus
	xHeaders
	xLogLevel
	xLog
	xReturn
	xTrap
	xGrow
	xBlock
	xAllocFree
	xVars
	xTimes = 63
	xA     = 64  // the first word is the index of a result
	xB     = 128 // the second is
)

// plug is one instruction to the guest probe-extism.
func plug(op byte, words ...uint64) string {
	b := make([]byte, 17)
	b[0] = op
	for i, w := range words {
		binary.LittleEndian.PutUint64(b[1+8*i:], w)
	}
	return string(b)
}

// block makes a block of a text.
func block(text string) string { return plug(xBlock, uint64(len(text))) + text }

// results reads what probe-extism answers.
func results(t *testing.T, body []byte) []uint64 {
	t.Helper()
	if len(body)%8 != 0 {
		t.Fatalf("result of %d bytes", len(body))
	}
	out := make([]uint64, len(body)/8)
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(body[8*i:])
	}
	return out
}

// onLevels runs a test on each level of isolation.
func onLevels(t *testing.T, test func(t *testing.T, e *runtime.Engine, level func(*runtime.ModuleConfig))) {
	for _, portable := range []bool{false, true} {
		for _, level := range []runtime.Isolation{runtime.IsolationReset, runtime.IsolationFresh, runtime.IsolationReuse} {
			t.Run(fmt.Sprintf("%s, portable %t", level, portable), func(t *testing.T) {
				t.Parallel()
				e, _ := open(t, func(c *runtime.Config) { c.Portable = portable })
				test(t, e, func(c *runtime.ModuleConfig) { c.Isolation = level })
			})
		}
	}
}

func TestExtism(t *testing.T) {
	t.Parallel()
	onLevels(t, func(t *testing.T, e *runtime.Engine, level func(*runtime.ModuleConfig)) {
		m := load(t, e, "upper-extism", level)
		if got, why := m.ABI(); got != runtime.ABIExtism || !strings.Contains(why, "extism:host") {
			t.Errorf("abi %q because %q", got, why)
		}
		fuel := map[uint64]bool{}
		for range 3 {
			for _, in := range []string{"hello", "", "sixteen letters!", strings.Repeat("word ", 60_000)} {
				r, err := m.Run(t.Context(), newJob(in))
				if in == "" {
					wantKind(t, err, job.KindFailed, "nothing to do")
					continue
				}
				if err != nil {
					t.Fatalf("%.20q: %v", in, err)
				}
				if string(r.Body) != strings.ToUpper(in) {
					t.Fatalf("%.20q: result of %d bytes %.20q", in, len(r.Body), r.Body)
				}
				fuel[r.Fuel] = true
			}
		}
		if len(fuel) != 3 {
			t.Errorf("three jobs burn %v", fuel)
		}
	})
}

// What each host function answers.
func TestExtismFunctions(t *testing.T) {
	t.Parallel()
	e, l := open(t)
	m := load(t, e, "probe-extism", func(c *runtime.ModuleConfig) { c.Config = map[string]string{"greeting": "hello"} })
	word := binary.LittleEndian.Uint64([]byte("hello\x00\x00\x00"))
	tests := []struct {
		name, script string
		want         []uint64 // of the last results
	}{
		{"a block", plug(xAlloc, 10) + plug(xLength|xA, 0) + plug(xLengthUnsafe|xA, 0) + plug(xStore64|xA, 0, 513) + plug(xLoad8|xA, 0), []uint64{10, 10, 0, 1}},
		{"a block of nothing", plug(xAlloc, 0) + plug(xLength, 0), []uint64{0, 0}},
		{"zeros in a new block", plug(xAlloc, 8) + plug(xLoad64|xA, 0), []uint64{0}},
		{"the end of a block", block("hello") + plug(xLoad64|xA, 0), []uint64{word}},
		{"no length in the middle", block("hello") + plug(xLength, 65), []uint64{0}},
		{"a block that is freed", block("hello") + plug(xFree|xA, 0) + plug(xLength|xA, 0) + plug(xLoad64|xA, 0) + plug(xFree|xA, 0), []uint64{0, 0, 0}},
		{"loads outside", plug(xLoad8, 0) + plug(xLoad8, 1<<63) + plug(xLoad64, 1<<64-1) + plug(xLoad64, 1), []uint64{0, 0, 0, 0}},
		{"bytes", plug(xBytes) + plug(xAlloc, 100) + plug(xBytes), []uint64{0, 64, 64 + 112}},
		{"input", plug(xInputLength) + plug(xInput8, 1<<63) + plug(xInput64, 1<<64-8) + plug(xInput8, 0) + plug(xInput64, 0), []uint64{5 * 17, 0, 0, xInputLength, xInputLength}},
		{"input as a block", plug(xInputOffset) + plug(xLength|xA, 0) + plug(xStore8|xA, 0, 77) + plug(xInput8, 0) + plug(xInputOffset), []uint64{5 * 17, 0, 77, 64}},
		{"input that is set", block("hello") + plug(xInputSet|xA, 0, 3) + plug(xInputLength), nil},
		{"output", block("hello") + plug(xOutputSet|xA, 0, 5) + plug(xReset) + plug(xOutputLength), nil},
		{"error", plug(xErrorGet) + block("hello") + plug(xErrorSet|xA, 1) + plug(xErrorGet) + plug(xErrorSet, 0) + plug(xErrorGet), []uint64{0, 64, 0, 64, 0, 0}},
		{"config", block("greeting") + plug(xConfigGet|xA, 0) + plug(xLoad64|xA, 1) + plug(xLength|xA, 0), []uint64{word, 8}},
		{"no such config", block("farewell") + plug(xConfigGet|xA, 0), []uint64{0}},
		{"var", block("name") + block("hello") + plug(xVarSet|xA|xB, 0, 1) + plug(xLength|xA, 1) + block("name") + plug(xVarGet|xA, 4) + plug(xLoad64|xA, 5), []uint64{word}},
		{"no such var", block("name") + plug(xVarGet|xA, 0), []uint64{0}},
		{"a var that is deleted", block("name") + block("hello") + plug(xVarSet|xA|xB, 0, 1) + block("name") + plug(xVarSet|xA, 3, 0) + block("name") + plug(xVarGet|xA, 5), []uint64{0}},
		{"http before there is a response", plug(xStatus) + plug(xHeaders), []uint64{0, 0}},
		{"log level", plug(xLogLevel), []uint64{0}},
		{"log", block("one line") + plug(xLog|xA, 0, 3) + plug(xLength|xA, 0), []uint64{0}},
		{"log of nothing", plug(xLog, 0, 2), []uint64{0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := m.Run(t.Context(), newJob(tt.script))
			if err != nil {
				t.Fatal(err)
			}
			got := results(t, r.Body)
			if len(got) < len(tt.want) || fmt.Sprint(got[len(got)-len(tt.want):]) != fmt.Sprint(tt.want) {
				t.Errorf("results %v, want %v at the end", got, tt.want)
			}
		})
	}
	t.Cleanup(func() {
		if out := l.String(); strings.Count(out, `level=WARN msg=guest source=guest module=probe-extism job_id=j-1 route=jobs attempt=1 correlation_id=c-1 text="one line"`) != 1 {
			t.Errorf("log %q", out)
		}
	})
}

// The levels of a plug-in's log lines are those of the log, trace being debug.
func TestExtismLogLevels(t *testing.T) {
	t.Parallel()
	l := &logs{}
	e, _ := open(t, func(c *runtime.Config) {
		c.Log = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
	script := plug(xLogLevel)
	for level, name := range []string{"trace", "debug", "info", "warn", "error"} {
		script += block("at "+name) + plug(xLog|xA, uint64(1+2*level), uint64(level))
	}
	r, err := load(t, e, "probe-extism").Run(t.Context(), newJob(script))
	if err != nil {
		t.Fatal(err)
	}
	if got := results(t, r.Body); got[0] != 3 {
		t.Errorf("level %d, want 3 (warn)", got[0])
	}
	if out := l.String(); strings.Count(out, "msg=guest") != 2 || !strings.Contains(out, "level=WARN") || !strings.Contains(out, "level=ERROR") {
		t.Errorf("log %q", out)
	}
}

// How a plug-in's job ends.
func TestExtismVerdicts(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	tests := []struct {
		name, script string
		kind         job.Kind
		text         string
	}{
		{"0", plug(xReturn, 0), job.KindOK, ""},
		{"65", plug(xReturn, 65), job.KindFailed, "exit code 65"},
		{"75", plug(xReturn, 75), job.KindRetry, "exit code 75"},
		{"1", plug(xReturn, 1), job.KindTrap, "exit code 1"},
		{"an error and 1", block("no good") + plug(xErrorSet|xA, 0) + plug(xReturn, 1), job.KindFailed, "no good"},
		{"an error and 0", block("no good") + plug(xErrorSet|xA, 0), job.KindFailed, "no good"},
		{"an error and 75", block("not now") + plug(xErrorSet|xA, 0) + plug(xReturn, 75), job.KindRetry, "not now"},
		{"an error and a trap", block("no good") + plug(xErrorSet|xA, 0) + plug(xTrap), job.KindFailed, "no good"},
		{"an error of spaces", block(" \n") + plug(xErrorSet|xA, 0) + plug(xReturn, 1), job.KindFailed, "plug-in set an error"},
		{"a trap", plug(xTrap), job.KindTrap, "unreachable in probe"},
		{"a large output", plug(xAlloc, 2<<20) + plug(xOutputSet|xA, 0, 2<<20), job.KindLimit, "over the limit of 1048576 bytes (limits.output)"},
	}
	m := load(t, e, "probe-extism")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := m.Run(t.Context(), newJob(tt.script))
			wantKind(t, err, tt.kind, tt.text)
		})
	}
	_, err := m.Run(t.Context(), newJob(plug(xAlloc, 2<<20)+plug(xOutputSet|xA, 0, 2<<20)))
	if !errors.Is(err, runtime.ErrOutput) {
		t.Errorf("error %v is not ErrOutput", err)
	}
}

// What a plug-in gives back is no part of its result, unless it said so before.
func TestExtismOutputIsKept(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	r, err := load(t, e, "probe-extism").Run(t.Context(), newJob(block("hello")+plug(xOutputSet|xA, 0, 4)+plug(xFree|xA, 0)+block("HELLO")))
	if err != nil || string(r.Body) != "hell" {
		t.Errorf("result %v, %v", r, err)
	}
}

// Each rude thing that a plug-in can do, by name. Each ends its own job and no other; what a job has taken is there for the next.
func TestExtismRude(t *testing.T) {
	t.Parallel()
	const most = 1<<64 - 1
	tests := []struct {
		name, script string
		kind         job.Kind
		text         string
	}{
		{"store at nothing", plug(xStore8, 0, 1), job.KindTrap, "no block with 1 bytes at 0"},
		{"store far away", plug(xStore64, most, 1), job.KindTrap, "no block with 8 bytes at 18446744073709551615"},
		{"store over the end", plug(xAlloc, 7) + plug(xStore64|xA, 0, 1), job.KindTrap, "no block with 8 bytes"},
		{"store between blocks", plug(xAlloc, 1) + plug(xAlloc, 1) + plug(xStore8, 66, 1), job.KindTrap, "at 66"},
		{"store into what is freed", plug(xAlloc, 9) + plug(xFree|xA, 0) + plug(xStore8|xA, 0, 1), job.KindTrap, "no block"},
		{"output of nothing", plug(xOutputSet, most, 1), job.KindTrap, "pointer to output out of bounds"},
		{"output over the end", plug(xAlloc, 9) + plug(xOutputSet|xA, 0, 10), job.KindTrap, "no block with 10 bytes"},
		{"output of 2^64 bytes", plug(xAlloc, 9) + plug(xOutputSet|xA, 0, most), job.KindLimit, "limits.output"},
		{"input over the end", plug(xAlloc, 9) + plug(xInputSet|xA, 0, most), job.KindTrap, "pointer to input"},
		{"error of nothing", plug(xErrorSet, 5), job.KindTrap, "pointer to error text"},
		{"config of nothing", plug(xConfigGet, 5), job.KindTrap, "pointer to config name"},
		{"var of nothing", plug(xVarSet, 5, 5), job.KindTrap, "pointer to var name"},
		{"log of nothing", plug(xLog, 5, 1), job.KindTrap, "pointer to log text"},
		{"request of nothing", plug(xRequest, 5, 0), job.KindTrap, "pointer to request"},
		{"a huge block", plug(xAlloc, most) + plug(xAlloc, 1<<40) + plug(xAlloc, 8<<20), job.KindOK, ""},
		{"a huge block that it uses", plug(xAlloc, 8<<20) + plug(xStore64|xA, 0, 1), job.KindLimit, "no room for a block of 8388608 bytes"},
		{"a huge block and a trap", plug(xAlloc, 8<<20) + plug(xTrap), job.KindLimit, "no room for a block of 8388608 bytes"},
		{"many blocks", plug(xTimes, 1000) + plug(xAlloc, 1<<20) + plug(xTrap), job.KindLimit, "no room"},
		{"many small blocks", plug(xTimes, 1<<16) + plug(xAlloc, 1) + plug(xTrap), job.KindLimit, "no room"},
		{"blocks that are freed", plug(xTimes, 10000) + plug(xAllocFree, 1<<10) + plug(xTimes, 100) + plug(xAllocFree, 1<<20), job.KindOK, ""},
		{"a block beside the memory", plug(xGrow, 32) + plug(xAlloc, 3<<20) + plug(xTrap), job.KindLimit, "no room"},
		{"memory beside a block", plug(xAlloc, 3<<20) + plug(xGrow, 32) + plug(xStore8|xA, 0, 1) + plug(xGrow, 1), job.KindOK, ""},
		{"a var that is too large", block("name") + plug(xAlloc, 2<<20) + plug(xVarSet|xA|xB, 0, 1), job.KindLimit, "vars are over their limit"},
		{"a request that is too large", plug(xAlloc, 1<<20) + plug(xRequest|xA, 0, 0), job.KindLimit, "request of 1048576 bytes is over the limit of 524288"},
		{"a var bomb", plug(xTimes, 1000) + plug(xVars, 1<<16), job.KindLimit, "vars are over their limit of 1048576 bytes"},
		{"many small vars", plug(xTimes, 1<<14) + plug(xVars, 1), job.KindLimit, "vars are over their limit"},
		{"endless work for the host", plug(xTimes, 1<<62) + plug(xAllocFree, 1<<20), job.KindTimeout, ""},
		{"endless calls", plug(xTimes, 1<<62) + plug(xInputLength), job.KindTimeout, ""},
	}
	onLevels(t, func(t *testing.T, e *runtime.Engine, level func(*runtime.ModuleConfig)) {
		m := load(t, e, "probe-extism", level, func(c *runtime.ModuleConfig) { c.Limits.Memory, c.Limits.Time = 4<<20, time.Minute })
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				j := newJob(tt.script)
				if tt.kind == job.KindTimeout {
					j.Timeout = 100 * time.Millisecond
				}
				r, err := m.Run(t.Context(), j)
				wantKind(t, err, tt.kind, tt.text)
				if err == nil && tt.name == "memory beside a block" {
					if got := results(t, r.Body); int32(got[1]) != -1 || int32(got[3]) < 0 {
						t.Errorf("memory grew to %d and %d pages, want refused and granted", int32(got[1]), int32(got[3]))
					}
				}
				// Three of four MiB are there for each job.
				r, err = m.Run(t.Context(), newJob(plug(xAlloc, 3<<20)+plug(xBytes)))
				if err != nil {
					t.Fatal(err)
				}
				if got := results(t, r.Body); got[0] != 64 {
					t.Errorf("the next job's block is at %d, of %d bytes", got[0], got[1])
				}
			})
		}
	})
}

// Vars are the job's own: the next does not find them.
func TestExtismVarsEnd(t *testing.T) {
	t.Parallel()
	onLevels(t, func(t *testing.T, e *runtime.Engine, level func(*runtime.ModuleConfig)) {
		m := load(t, e, "probe-extism", level)
		for range 3 {
			r, err := m.Run(t.Context(), newJob(block("name")+plug(xVarGet|xA, 0)+block("name")+block("value")+plug(xVarSet|xA|xB, 2, 3)))
			if err != nil {
				t.Fatal(err)
			}
			if got := results(t, r.Body); got[1] != 0 {
				t.Errorf("a var is there before it is set, at %d", got[1])
			}
		}
	})
}

// The policy of http is that of wasmsidecar_http; D-13 has its cases.
func TestExtismHTTP(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/large":
			_, _ = w.Write(make([]byte, 2<<20))
			return
		case "/endless":
			for {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		case "/elsewhere":
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
			return
		}
		w.Header().Set("X-Two", "1")
		w.Header().Add("X-Two", "2")
		w.WriteHeader(http.StatusTeapot)
		_, _ = fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL, r.Header.Get("X-In"), body)
	})
	ask := func(request string) string { return block(strings.ReplaceAll(request, "URL", s.URL)) }
	e, _ := open(t, resolve(map[string]string{"rebind.example.com": "127.0.0.1"}))
	m := load(t, e, "probe-extism", allow(s.host(), "rebind.example.com:"+s.port()), func(c *runtime.ModuleConfig) { c.Limits.HTTPCalls = 3 })
	tests := []struct {
		name, script string
		kind         job.Kind
		want         string // of the output, or of the error
	}{
		{"body", ask(`{"url":"URL/a","method":"put","headers":{"x-in":"yes"}}`) + block("hello") + plug(xRequest|xA|xB, 0, 1) + plug(xLength|xA, 2) + plug(xOutputSet|xA|xB, 2, 3), job.KindOK, "PUT /a yes hello"},
		{"headers", ask(`{"url":"URL/a"}`) + plug(xRequest|xA, 0) + plug(xHeaders) + plug(xLength|xA, 2) + plug(xOutputSet|xA|xB, 2, 3), job.KindOK, `"x-two":"1, 2"`},
		{"another host", ask(`{"url":"http://169.254.169.254/"}`) + plug(xRequest|xA, 0), job.KindDenied, "is not granted"},
		{"a name that leads here", ask(`{"url":"http://rebind.example.com:`+s.port()+`/"}`) + plug(xRequest|xA, 0), job.KindDenied, "not on the public internet"},
		{"a redirect", ask(`{"url":"URL/elsewhere"}`) + plug(xRequest|xA, 0), job.KindDenied, "is not granted"},
		{"too much", ask(`{"url":"URL/large"}`) + plug(xRequest|xA, 0), job.KindLimit, "over the limit of 1048576 bytes"},
		{"without end", ask(`{"url":"URL/endless"}`) + plug(xRequest|xA, 0), job.KindLimit, "over the limit of 1048576 bytes"},
		{"too often", plug(xTimes, 1000) + plug(xAlloc, 1) + strings.Repeat(ask(`{"url":"URL/a"}`), 4) +
			plug(xRequest|xA, 2) + plug(xRequest|xA, 3) + plug(xRequest|xA, 4) + plug(xRequest|xA, 5), job.KindLimit, "over the limit of 3 requests"},
		{"no json", block("nonsense") + plug(xRequest|xA, 0), job.KindTrap, "request is not as expected"},
		{"no url", block("{}") + plug(xRequest|xA, 0), job.KindTrap, "request has no url"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := m.Run(t.Context(), newJob(tt.script))
			if tt.kind != job.KindOK {
				wantKind(t, err, tt.kind, tt.want)
				return
			}
			if err != nil || !strings.Contains(string(r.Body), tt.want) {
				t.Errorf("result %v, %v; want %q", r, err, tt.want)
			}
		})
	}
	_, err := load(t, e, "probe-extism").Run(t.Context(), newJob(ask(`{"url":"URL/a"}`)+plug(xRequest|xA, 0)))
	wantKind(t, err, job.KindDenied, "module has no allow.http")
}

// Sections of plug-ins that only export.
const (
	fourTypes = "\x01\x04\x60\x00\x00\x60\x00\x01\x7f\x60\x01\x7f\x00\x60\x02\x7f\x7f\x00" // () -> (), () -> i32, (i32) -> (), (i32, i32) -> ()
	onePage   = "\x05\x01\x00\x01"
)

// exporting makes a module with functions of fourTypes that do nothing, or answer 0.
func exporting(names map[string]byte) []byte {
	var funcs, bodies string
	exports := "\x06memory\x02\x00"
	for name, typ := range names {
		exports += string([]byte{byte(len(name))}) + name + "\x00" + string([]byte{byte(len(funcs))})
		funcs += string([]byte{typ})
		body := "\x02\x00\x0b"
		if typ == 1 {
			body = "\x04\x00\x41\x00\x0b"
		}
		bodies += body
	}
	n := byte(len(names))
	return moduleOf(fourTypes, "\x03"+string([]byte{n})+funcs, onePage, "\x07"+string([]byte{n + 1})+exports, "\x0a"+string([]byte{n})+bodies)
}

// Which function of a plug-in is called.
func TestExtismFunction(t *testing.T) {
	t.Parallel()
	e, _ := open(t)
	tests := []struct {
		name     string
		exports  map[string]byte
		function string
		wrong    []string
	}{
		{"the only one", map[string]byte{"greet": 1}, "", nil},
		{"handle", map[string]byte{"a": 1, "handle": 0, "run": 1}, "", nil},
		{"run", map[string]byte{"a": 1, "run": 1, "b": 0}, "", nil},
		{"what is there for languages", map[string]byte{"greet": 0, "_start": 0, "_initialize": 0, "__wasm_call_ctors": 0, "asyncify_stop_unwind": 0, "hs_init": 3, "free": 2}, "", nil},
		{"the start of a program", map[string]byte{"_start": 0, "free": 2}, "", nil},
		{"the one that is named", map[string]byte{"a": 1, "handle": 0}, "a", nil},
		{"several", map[string]byte{"b": 1, "a": 0, "free": 2}, "", []string{"exports several functions: name one of a, b as function"}},
		{"none", map[string]byte{"free": 2}, "", []string{"no function without parameters; found free(i32) -> ()"}},
		{"one that is not there", map[string]byte{"a": 1, "b": 1}, "c", []string{"export c() -> i32 is missing", "it can be a, b"}},
		{"one that takes something", map[string]byte{"free": 2}, "free", []string{"export free has type (i32) -> ()", "it can be none"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := runtime.ModuleConfig{Name: "plug-in", Wasm: exporting(tt.exports), ABI: runtime.ABIExtism, Function: tt.function}
			m, err := e.Load(t.Context(), cfg)
			if tt.wrong != nil {
				wantKind(t, err, job.KindInvalid, tt.wrong...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.Run(t.Context(), newJob("x")); err != nil {
				t.Error(err)
			}
		})
	}
	_, err := e.Load(t.Context(), runtime.ModuleConfig{Name: "echo", Wasm: guests.Bytes("echo"), Function: "handle"})
	wantKind(t, err, job.KindInvalid, "function is for Extism plug-ins; this module's abi is pull")
	_, err = e.Load(t.Context(), runtime.ModuleConfig{Name: "upper", Wasm: guests.Bytes("upper-extism"), ABI: runtime.ABIShallabuf})
	wantKind(t, err, job.KindInvalid, "export run(i32) -> i32 is missing")
	_, err = e.Load(t.Context(), runtime.ModuleConfig{Name: "start", Wasm: exporting(map[string]byte{"_start": 0}), ABI: runtime.ABIExtism, Isolation: runtime.IsolationReuse})
	wantKind(t, err, job.KindInvalid, "runs once")
}

// FuzzExtism calls every host function of Extism with every kind of address and length.
func FuzzExtism(f *testing.F) {
	edges := []uint64{0, 1, 63, 64, 72, 1 << 16, 1<<31 - 1, 1 << 32, 1 << 63, 1<<64 - 1}
	for op := range byte(xVars + 1) {
		for _, a := range edges {
			f.Add([]byte(block("hello") + plug(op, a, a) + plug(op|xA, 0, a) + plug(op|xB, a, 0)))
		}
		f.Add([]byte(block("hello") + block("world") + plug(op|xA|xB, 0, 1) + plug(op|xA|xB, 0, 1)))
	}
	e, _ := open(f)
	m := load(f, e, "probe-extism", func(c *runtime.ModuleConfig) { c.Limits = small() })
	next := load(f, e, "upper-extism")
	f.Fuzz(func(t *testing.T, in []byte) {
		_, err := m.Run(t.Context(), newJob(string(in)))
		checkGuestsFault(t, err)
		if r, err := next.Run(t.Context(), newJob("still here")); err != nil || string(r.Body) != "STILL HERE" {
			t.Fatalf("the next job: %v", err)
		}
	})
}
