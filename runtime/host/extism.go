package host

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"strconv"
	"strings"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// ModuleExtism is the import module of Extism plug-ins.
const ModuleExtism = "extism:host/env"

// MaxVars is how many bytes the names and values of a plug-in's vars may have together, as in Extism's own hosts. Each counts
// for 64 more.
const MaxVars = 1 << 20

// extismState is what an Extism plug-in keeps with its host while it does one job.
type extismState struct {
	arena   arena
	input   []byte
	inputAt uint64 // 0: not in the arena
	out     []byte
	outAt   uint64
	errAt   uint64
	vars    map[string][]byte
	varSize int64
}

// extismFunctions are those of the import module extism:host/env. Addresses and lengths are i64 and are the arena's; 0 is the
// address of nothing. Loads find zeros outside of all blocks, as in Extism's own kernel; whatever else a guest does there
// traps, which the kernel may not notice.
func extismFunctions() []function {
	return []function{
		{"alloc", types(i64), types(i64), extismAlloc},
		{"free", types(i64), nil, extismFree},
		{"length", types(i64), types(i64), extismLength},
		{"length_unsafe", types(i64), types(i64), extismLength},
		{"load_u8", types(i64), types(i32), extismLoad8},
		{"load_u64", types(i64), types(i64), extismLoad64},
		{"store_u8", types(i64, i32), nil, extismStore8},
		{"store_u64", types(i64, i64), nil, extismStore64},
		{"memory_bytes", nil, types(i64), extismBytes},
		{"reset", nil, nil, extismReset},

		{"input_set", types(i64, i64), nil, extismInputSet},
		{"input_length", nil, types(i64), extismInputLength},
		{"input_offset", nil, types(i64), extismInputOffset},
		{"input_load_u8", types(i64), types(i32), extismInput8},
		{"input_load_u64", types(i64), types(i64), extismInput64},
		{"output_set", types(i64, i64), nil, extismOutputSet},
		{"output_length", nil, types(i64), extismOutputLength},
		{"output_offset", nil, types(i64), extismOutputOffset},
		{"error_set", types(i64), nil, extismErrorSet},
		{"error_get", nil, types(i64), extismErrorGet},

		{"config_get", types(i64), types(i64), extismConfig},
		{"var_get", types(i64), types(i64), extismVarGet},
		{"var_set", types(i64, i64), nil, extismVarSet},
		{"http_request", types(i64, i64), types(i64), extismRequest},
		{"http_status_code", nil, types(i32), extismStatus},
		{"http_headers", nil, types(i64), extismHeaders},

		{"get_log_level", nil, types(i32), extismLogLevel},
		{"log_trace", types(i64), nil, extismLog(slog.LevelDebug)},
		{"log_debug", types(i64), nil, extismLog(slog.LevelDebug)},
		{"log_info", types(i64), nil, extismLog(slog.LevelInfo)},
		{"log_warn", types(i64), nil, extismLog(slog.LevelWarn)},
		{"log_error", types(i64), nil, extismLog(slog.LevelError)},
	}
}

// plugin returns what the plug-in keeps with its host.
func (c *Call) plugin() *extismState {
	if c.extism == nil {
		c.extism = &extismState{input: c.Job.Body}
	}
	return c.extism
}

// task is plugin for functions that are about the job.
func (c *Call) task(function string) *extismState {
	c.needJob(function)
	return c.plugin()
}

// toil stops a guest whose time is over while the host works for it: a call that moves much memory burns no more fuel than one
// that does nothing, and fuel is what the clock is looked at for.
func (c *Call) toil(ctx context.Context, n int) {
	if c.work += n; c.work < 256<<10 {
		return
	}
	c.work = 0
	if ctx.Err() != nil {
		panic(sys.NewExitError(sys.ExitCodeContextCanceled))
	}
}

// hasRoom says whether a block of n bytes fits into the guest's limit of memory, and counts it there.
func (c *Call) hasRoom(n uint64) bool {
	x := c.plugin()
	return n <= math.MaxInt32 && c.Lender.Lend(x.arena.bytes+x.varSize+cost(int(n)))
}

// give makes b a block of the arena and returns its address: 0 for no bytes. b is the arena's from then on.
func (c *Call) give(ctx context.Context, what string, b []byte) uint64 {
	if len(b) == 0 {
		return 0
	}
	c.toil(ctx, len(b))
	if !c.hasRoom(uint64(len(b))) {
		panic(noRoom(what, uint64(len(b))))
	}
	return c.extism.arena.add(b)
}

func noRoom(what string, n uint64) *Fault {
	return &Fault{Kind: job.KindLimit, Err: ErrMemory, Text: "no room for " + what + " of " + strconv.FormatUint(n, 10) +
		" bytes beside the guest's memory (limits.memory)"}
}

// take returns the block at an address, which must not be kept; nil for 0.
func (c *Call) take(ctx context.Context, what string, at uint64) []byte {
	if at == 0 {
		return nil
	}
	b := c.plugin().arena.start(at)
	if b == nil {
		panic(nowhere(what, at, 0))
	}
	c.toil(ctx, len(b))
	return b
}

func nowhere(what string, at, n uint64) *Fault {
	text := "pointer to " + what + " out of bounds: there is no block"
	if n > 0 {
		text += " with " + strconv.FormatUint(n, 10) + " bytes"
	}
	return &Fault{Kind: job.KindTrap, Text: text + " at " + strconv.FormatUint(at, 10)}
}

// release drops the block at an address; where there is none it does nothing. As in the kernel, the input goes with its block and
// the output does not.
func (c *Call) release(at uint64) {
	x := c.plugin()
	b := x.arena.start(at)
	if b == nil {
		return
	}
	if x.inputAt-at < uint64(len(b)) {
		x.input, x.inputAt = nil, 0
	}
	if x.outAt-at < uint64(len(b)) {
		x.out, x.outAt = append([]byte(nil), x.out...), 0 // a copy, so that the rest of the block can go
	}
	x.arena.free(at)
	if len(b) >= 64<<10 { // worth giving back to the guest's memory at once
		c.Lender.Lend(x.arena.bytes + x.varSize)
	}
}

func extismAlloc(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
	n := stack[0]
	if n == 0 {
		return
	}
	if !c.hasRoom(n) {
		// The guest may know what to do without; if it crashes instead, this is why.
		c.trouble = &job.Error{Kind: job.KindLimit, Err: noRoom("a block", n)}
		stack[0] = 0
		return
	}
	c.trouble = nil
	c.toil(ctx, int(n))
	stack[0] = c.extism.arena.add(make([]byte, n))
}

func extismFree(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	c.release(stack[0])
}

func extismLength(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = uint64(len(c.plugin().arena.start(stack[0])))
}

func extismLoad8(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = load8(c.plugin().arena.from(stack[0]))
}

func extismLoad64(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = load64(c.plugin().arena.from(stack[0]))
}

func load8(b []byte) uint64 {
	if len(b) == 0 {
		return 0
	}
	return uint64(b[0])
}

func load64(b []byte) uint64 {
	if len(b) >= 8 {
		return binary.LittleEndian.Uint64(b)
	}
	var all [8]byte
	copy(all[:], b)
	return binary.LittleEndian.Uint64(all[:])
}

func extismStore8(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	b := c.plugin().arena.from(stack[0])
	if len(b) < 1 {
		panic(nowhere("a byte", stack[0], 1))
	}
	b[0] = byte(stack[1])
}

func extismStore64(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	b := c.plugin().arena.from(stack[0])
	if len(b) < 8 {
		panic(nowhere("eight bytes", stack[0], 8))
	}
	binary.LittleEndian.PutUint64(b, stack[1])
}

func extismBytes(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = uint64(c.plugin().arena.bytes)
}

func extismReset(_ context.Context, c *Call, _ api.Module, _ []uint64) {
	x := c.task("reset")
	*x = extismState{vars: x.vars, varSize: x.varSize}
	c.verdict = nil
	c.Lender.Lend(x.varSize)
}

// part returns n bytes at an address that may be anywhere in a block.
func (x *extismState) part(what string, at, n uint64) []byte {
	b := x.arena.from(at)
	if n > uint64(len(b)) {
		panic(nowhere(what, at, n))
	}
	return b[:n:n]
}

func extismInputSet(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	x := c.task("input_set")
	x.input, x.inputAt = x.part("input", stack[0], stack[1]), stack[0]
}

func extismInputLength(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = uint64(len(c.task("input_length").input))
}

func extismInputOffset(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
	x := c.task("input_offset")
	if x.inputAt == 0 && len(x.input) > 0 {
		x.inputAt = c.give(ctx, "the input", append([]byte(nil), x.input...))
		x.input = x.arena.start(x.inputAt)
	}
	stack[0] = x.inputAt
}

func extismInput8(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	b := c.task("input_load_u8").input
	stack[0] = load8(b[min(stack[0], uint64(len(b))):])
}

func extismInput64(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	b := c.task("input_load_u64").input
	stack[0] = load64(b[min(stack[0], uint64(len(b))):])
}

func extismOutputSet(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	x := c.task("output_set")
	if stack[1] > uint64(c.Grants.Output) {
		panic(c.overOutput())
	}
	x.out, x.outAt = x.part("output", stack[0], stack[1]), stack[0]
}

func extismOutputLength(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = uint64(len(c.task("output_length").out))
}

func extismOutputOffset(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = c.task("output_offset").outAt
}

// AppendPlugin adds what an Extism plug-in has set as its output to the result. Its error is a *Fault.
func (c *Call) AppendPlugin() error {
	if c.extism == nil {
		return nil
	}
	return c.Append(c.extism.out)
}

// extismErrorSet is error_set(address): the guest's verdict that the job has failed, as fail is; with 0 it takes it back.
func extismErrorSet(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	x := c.task("error_set")
	x.errAt, c.verdict = stack[0], nil
	if x.errAt == 0 {
		return
	}
	b := x.arena.start(x.errAt)
	if b == nil {
		panic(nowhere("error text", x.errAt, 0))
	}
	c.verdict = &job.Error{Kind: job.KindFailed, Err: errors.New("plug-in set an error")}
	if s := job.CleanText(string(b[:min(len(b), 4*job.MaxErrorText)])); strings.TrimSpace(s) != "" {
		c.verdict.Err = errors.New(s)
	}
}

func extismErrorGet(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = c.task("error_get").errAt
}

func extismConfig(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
	value := c.Config[string(c.take(ctx, "config name", stack[0]))]
	stack[0] = c.give(ctx, "a config value", []byte(value))
}

func extismVarGet(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
	x := c.task("var_get")
	value := x.vars[string(c.take(ctx, "var name", stack[0]))]
	c.release(stack[0])
	stack[0] = c.give(ctx, "a var", append([]byte(nil), value...))
}

// extismVarSet is var_set(name, value); a value at 0 deletes. Vars last as long as the job.
func extismVarSet(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
	x := c.task("var_set")
	rawName, rawValue := c.take(ctx, "var name", stack[0]), c.take(ctx, "var value", stack[1])
	n := len(rawName) + len(rawValue)
	if n > MaxVars {
		panic(overVars())
	}
	name, value := string(rawName), append([]byte(nil), rawValue...)
	c.release(stack[0])
	c.release(stack[1])
	if old, ok := x.vars[name]; ok {
		delete(x.vars, name)
		x.varSize -= cost(len(name) + len(old))
	}
	if stack[1] == 0 {
		return
	}
	if x.varSize+cost(n) > MaxVars {
		panic(overVars())
	}
	if !c.hasRoom(uint64(n)) {
		panic(noRoom("a var", uint64(n)))
	}
	if x.vars == nil {
		x.vars = map[string][]byte{}
	}
	x.vars[name] = value
	x.varSize += cost(n)
}

func overVars() *Fault {
	return &Fault{Kind: job.KindLimit, Text: "vars are over their limit of " + strconv.Itoa(MaxVars) + " bytes"}
}

// extismRequest is http_request(request, body) address of the response's body, the request being {"url", "method"?,
// "headers"?}. Extism has no way to say that a request failed: the guest is stopped.
func extismRequest(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
	c.needJob("http_request")
	err := c.exchange(ctx, func() (outgoing, error) {
		r, _, err := parseRequest(c.take(ctx, "request", stack[0]), 0)
		r.body = c.take(ctx, "request body", stack[1])
		return r, err
	})
	c.release(stack[0])
	c.release(stack[1])
	if err != nil {
		f := &Fault{Kind: job.KindTrap, Text: "http request: " + c.http.err, Err: err}
		if c.trouble != nil {
			f.Kind, c.trouble = c.trouble.Kind, nil
		}
		panic(f)
	}
	body := c.http.body
	c.http.body = nil
	stack[0] = c.give(ctx, "a response", body)
}

func extismStatus(_ context.Context, c *Call, _ api.Module, stack []uint64) {
	c.needJob("http_status_code")
	stack[0] = uint64(uint32(c.http.status))
}

// extismHeaders is http_headers() address of the last response's headers, a JSON object by names in lower case; 0 when there
// is no response.
func extismHeaders(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
	c.needJob("http_headers")
	if c.http.status == 0 {
		stack[0] = 0
		return
	}
	headers := map[string]any{}
	for name, values := range c.http.header {
		headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	stack[0] = c.give(ctx, "response headers", mustJSON(headers))
}

// extismLogLevel is get_log_level() i32, the least level that is written: 0 trace to 4 error.
func extismLogLevel(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
	stack[0] = math.MaxInt32
	for i, level := range []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelDebug, slog.LevelDebug} {
		if c.Logger.Enabled(ctx, level) {
			stack[0] = uint64(4 - i)
		}
	}
}

// extismLog is log_<level>(address of the text, which is freed).
func extismLog(level slog.Level) func(context.Context, *Call, api.Module, []uint64) {
	return func(ctx context.Context, c *Call, _ api.Module, stack []uint64) {
		c.LogBytes(level, c.take(ctx, "log text", stack[0]))
		c.release(stack[0])
	}
}
