package host

import (
	"bytes"
	"context"
	"io"
	"log/slog"

	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// maxLine is where a line of a program's output is cut, in bytes; the rest begins another.
const maxLine = job.MaxErrorText

// logState counts what a call has logged.
type logState struct {
	bytes    int64
	lines    int
	cut      bool
	out, err lineWriter
}

func logFunctions() []function {
	return []function{{"log", types(i32, i32, i32), nil, guestLog}}
}

// guestLog is log(level, src, len).
func guestLog(_ context.Context, c *Call, m api.Module, stack []uint64) {
	level := slog.LevelInfo
	switch api.DecodeI32(stack[0]) {
	case abi.LogDebug:
		level = slog.LevelDebug
	case abi.LogWarn:
		level = slog.LevelWarn
	case abi.LogError:
		level = slog.LevelError
	}
	c.LogBytes(level, view(m, "log text", stack[1], stack[2]))
}

// LogBytes writes one line of guest text to the log, until the call has used up what it may write; then it says so, once.
func (c *Call) LogBytes(level slog.Level, b []byte) {
	if c.log.cut {
		return
	}
	ctx := context.Background() // a line is written even when the job's time is over
	if c.log.bytes+int64(len(b)) > c.Log || c.log.lines >= c.LogLines {
		c.log.cut = true
		c.Logger.LogAttrs(ctx, slog.LevelWarn, "guest log cut off", c.about(slog.Int64("max_bytes", c.Log), slog.Int("max_lines", c.LogLines))...)
		return
	}
	c.log.bytes += int64(len(b))
	c.log.lines++
	if c.Logger.Enabled(ctx, level) {
		c.Logger.LogAttrs(ctx, level, "guest", c.about(slog.String("text", job.CleanText(string(b))))...)
	}
}

// about is what a log line says of the guest and its job, and attrs.
func (c *Call) about(attrs ...slog.Attr) []slog.Attr {
	all := append(make([]slog.Attr, 0, len(attrs)+6), slog.String("source", "guest"), slog.String("module", c.Module))
	if c.ready {
		all = append(all, slog.String("job_id", c.Job.ID), slog.String("route", c.Job.Route), slog.Int("attempt", c.Job.Attempt))
		if c.Job.CorrelationID != "" {
			all = append(all, slog.String("correlation_id", c.Job.CorrelationID))
		}
	}
	return append(all, attrs...)
}

// Stdout returns a writer that turns a program's stdout into log lines at level info.
func (c *Call) Stdout() io.Writer {
	c.log.out.init(c, slog.LevelInfo)
	return &c.log.out
}

// Stderr returns a writer that turns a program's stderr into log lines at level warn.
func (c *Call) Stderr() io.Writer {
	c.log.err.init(c, slog.LevelWarn)
	return &c.log.err
}

// lineWriter cuts a stream into log lines and keeps at most one unfinished line.
type lineWriter struct {
	call  *Call
	level slog.Level
	rest  []byte
	last  string // the last line that was not blank
	cause string // the line by which a language says that the program gives up; more follows, which says where
	goes  bool   // cause goes on in the next line
}

func (w *lineWriter) init(c *Call, level slog.Level) { w.call, w.level = c, level }

// Write implements io.Writer; it never fails.
func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if w.call.log.cut {
			w.rest = nil
			return n, nil
		}
		i := bytes.IndexByte(p, '\n')
		end := i
		if i < 0 {
			end = len(p)
		}
		take := min(end, maxLine-len(w.rest))
		w.rest = append(w.rest, p[:take]...)
		switch {
		case take == end && i >= 0:
			w.flush()
			p = p[i+1:]
		case take == end:
			p = nil
		default:
			w.flush()
			p = p[take:]
		}
	}
	return n, nil
}

// flush logs the unfinished line, if there is one.
func (w *lineWriter) flush() {
	if len(w.rest) == 0 {
		return
	}
	line := bytes.TrimRight(w.rest, "\r")
	if len(bytes.TrimSpace(line)) > 0 {
		w.last = job.CleanText(string(line))
		switch panics := bytes.Contains(line, []byte("' panicked at ")); {
		case w.goes:
			w.cause, w.goes = w.cause+" "+w.last, false
		case w.cause != "":
		case panics, bytes.HasPrefix(line, []byte("panic: ")), bytes.HasPrefix(line, []byte("fatal error: ")): // Rust; Go
			w.cause, w.goes = w.last, panics && bytes.HasSuffix(line, []byte(":"))
		}
		w.call.LogBytes(w.level, line)
	}
	w.rest = w.rest[:0]
}

// LastWords is the line by which the guest's language says on stderr why a program gives up, where Go or Rust did, else the last
// line that the guest wrote there, which often says so too.
func (c *Call) LastWords() string {
	if c.log.err.cause != "" {
		return c.log.err.cause
	}
	return c.log.err.last
}
