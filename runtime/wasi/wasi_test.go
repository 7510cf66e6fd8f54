package wasi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"
)

// guest is a module that exports each function of preview 1 by its name, and a memory of one page.
func guest() []byte {
	section := func(id byte, items [][]byte) []byte {
		body := binary.AppendUvarint(nil, uint64(len(items)))
		body = append(body, slices.Concat(items...)...)
		return append(binary.AppendUvarint([]byte{id}, uint64(len(body))), body...)
	}
	name := func(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }
	var types, imports, own, exports, bodies [][]byte
	fs := functions()
	for i, f := range fs {
		index := binary.AppendUvarint(nil, uint64(i))
		typ := append([]byte{0x60}, byte(len(f.params)))
		body := []byte{0}
		for k, p := range []byte(f.params) {
			body = append(body, 0x20, byte(k))
			if p == 'I' {
				typ = append(typ, 0x7e)
			} else {
				typ = append(typ, 0x7f)
			}
		}
		if f.void {
			typ = append(typ, 0)
		} else {
			typ = append(typ, 1, 0x7f)
		}
		body = append(append(append(body, 0x10), index...), 0x0b)
		types = append(types, typ)
		imports = append(imports, slices.Concat(name("wasi_snapshot_preview1"), name(f.name), []byte{0}, index))
		own = append(own, index)
		exports = append(exports, slices.Concat(name(f.name), []byte{0}, binary.AppendUvarint(nil, uint64(len(fs)+i))))
		bodies = append(bodies, append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	}
	return slices.Concat([]byte("\x00asm\x01\x00\x00\x00"), section(1, types), section(2, imports), section(3, own),
		section(5, [][]byte{{0, 1}}), section(7, exports), section(10, bodies))
}

func instantiate(t testing.TB) api.Module {
	t.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	t.Cleanup(func() { _ = rt.Close(ctx) })
	if err := Instantiate(ctx, rt); err != nil {
		t.Fatal(err)
	}
	m, err := rt.Instantiate(ctx, guest())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// call calls a function in the name of p and returns its errno.
func call(t *testing.T, m api.Module, p *Process, name string, args ...uint64) errno {
	t.Helper()
	got, err := m.ExportedFunction(name).Call(WithProcess(t.Context(), p), args...)
	if err != nil {
		t.Fatalf("%s%v: %v", name, args, err)
	}
	return errno(got[0])
}

const outOfBounds = 1<<32 - 2

// What is not there is refused, each thing by its own errno.
func TestRefuses(t *testing.T) {
	t.Parallel()
	m := instantiate(t)
	for _, f := range functions() {
		var stream, other errno
		switch f.name {
		case "fd_advise", "fd_allocate", "fd_pread", "fd_pwrite", "fd_seek", "fd_tell":
			stream, other = eSPIPE, eBADF
		case "fd_datasync", "fd_sync", "fd_filestat_set_size", "fd_filestat_set_times":
			stream, other = eINVAL, eBADF
		case "fd_prestat_get", "fd_prestat_dir_name", "path_symlink":
			stream, other = eBADF, eBADF
		case "fd_readdir", "path_create_directory", "path_filestat_get", "path_filestat_set_times", "path_link", "path_open",
			"path_readlink", "path_remove_directory", "path_rename", "path_unlink_file":
			stream, other = eNOTDIR, eBADF
		case "fd_renumber":
			stream, other = eNOTSUP, eBADF
		case "sock_accept", "sock_recv", "sock_send", "sock_shutdown":
			stream, other = eNOTSOCK, eBADF
		case "fd_fdstat_set_rights", "proc_raise":
			stream, other = eNOSYS, eNOSYS
		case "fd_close", "fd_fdstat_get", "fd_filestat_get", "fd_fdstat_set_flags":
			stream, other = eOK, eBADF
		default:
			continue // has a test of its own
		}
		args := make([]uint64, len(f.params))
		for fd, want := range []errno{stream, stream, stream, other, other} {
			args[0] = uint64(fd)
			if got := call(t, m, &Process{}, f.name, args...); got != want {
				t.Errorf("%s of descriptor %d: errno %d, want %d", f.name, fd, got, want)
			}
		}
		args[0] = outOfBounds
		if got := call(t, m, &Process{}, f.name, args...); got != other {
			t.Errorf("%s of descriptor 4294967294: errno %d, want %d", f.name, got, other)
		}
	}
}

func TestArgsAndEnviron(t *testing.T) {
	t.Parallel()
	m := instantiate(t)
	p := &Process{Args: []string{"me", "", "a b"}, Env: []string{"A=1"}}
	mem := m.Memory()
	for _, tt := range []struct {
		name  string
		list  []string
		bytes string
	}{{"args", p.Args, "me\x00\x00a b\x00"}, {"environ", p.Env, "A=1\x00"}} {
		if e := call(t, m, p, tt.name+"_sizes_get", 0, 4); e != eOK {
			t.Fatal(e)
		}
		n, _ := mem.ReadUint32Le(0)
		size, _ := mem.ReadUint32Le(4)
		if int(n) != len(tt.list) || int(size) != len(tt.bytes) {
			t.Errorf("%s: %d of %d bytes", tt.name, n, size)
		}
		if e := call(t, m, p, tt.name+"_get", 16, 100); e != eOK {
			t.Fatal(e)
		}
		if b, _ := mem.Read(100, size); string(b) != tt.bytes {
			t.Errorf("%s: %q, want %q", tt.name, b, tt.bytes)
		}
		at := uint32(100)
		for i, s := range tt.list {
			if ptr, _ := mem.ReadUint32Le(16 + 4*uint32(i)); ptr != at {
				t.Errorf("%s %d is at %d, want %d", tt.name, i, ptr, at)
			}
			at += uint32(len(s)) + 1
		}
		for _, args := range [][]uint64{{outOfBounds, 0}, {0, outOfBounds}} {
			if e := call(t, m, p, tt.name+"_get", args...); e != eFAULT {
				t.Errorf("%s_get%v: errno %d", tt.name, args, e)
			}
			if e := call(t, m, p, tt.name+"_sizes_get", args...); e != eFAULT {
				t.Errorf("%s_sizes_get%v: errno %d", tt.name, args, e)
			}
		}
	}
}

// iovecs writes an array of (pointer, length) to address 0 and returns how many it has.
func iovecs(m api.Module, pairs ...uint32) uint64 {
	for i, v := range pairs {
		m.Memory().WriteUint32Le(4*uint32(i), v)
	}
	return uint64(len(pairs) / 2)
}

func TestReadAndWrite(t *testing.T) {
	t.Parallel()
	m := instantiate(t)
	mem := m.Memory()
	var out, errs bytes.Buffer
	p := &Process{Stdin: []byte("hello world"), Stdout: &out, Stderr: &errs}
	const result = 5000
	read := func(want string, n uint64) {
		t.Helper()
		if e := call(t, m, p, "fd_read", 0, 0, n, result); e != eOK {
			t.Fatal(e)
		}
		got, _ := mem.ReadUint32Le(result)
		if b, _ := mem.Read(1000, got); string(b) != want {
			t.Errorf("read %q, want %q", b, want)
		}
	}
	read("hello", iovecs(m, 1000, 3, 7, 0, 1003, 2))
	read(" worl", iovecs(m, 1000, 5))
	read("d", iovecs(m, 1000, 100, 1100, 100))
	read("", iovecs(m, 1000, 100))

	mem.WriteString(1000, "abcdef")
	if e := call(t, m, p, "fd_write", 1, 0, iovecs(m, 1000, 3, 1003, 0, 1003, 3), result); e != eOK || out.String() != "abcdef" {
		t.Errorf("errno %d, written %q", e, out.String())
	}
	if e := call(t, m, p, "fd_write", 2, 0, iovecs(m, 1000, 1), result); e != eOK || errs.String() != "a" {
		t.Errorf("errno %d, written %q", e, errs.String())
	}
	if n, _ := mem.ReadUint32Le(result); n != 1 {
		t.Errorf("wrote %d, want 1", n)
	}
	// Far more buffers than fit into one call, all of them the same: what is taken is told.
	out.Reset()
	for i := range uint32(4000) {
		mem.WriteUint32Le(8*i, 60000)
		mem.WriteUint32Le(8*i+4, 1)
	}
	if e := call(t, m, p, "fd_write", 1, 0, 4000, 50000); e != eOK {
		t.Error(e)
	}
	if n, _ := mem.ReadUint32Le(50000); n != maxVectors || out.Len() != maxVectors {
		t.Errorf("wrote %d and told of %d, want %d", out.Len(), n, maxVectors)
	}
	p.read = 0
	bad := []struct {
		name string
		args []uint64
		want errno
	}{
		{"fd_read", []uint64{1, 0, 1, result}, eBADF},
		{"fd_read", []uint64{3, 0, 1, result}, eBADF},
		{"fd_read", []uint64{0, outOfBounds, 1, result}, eFAULT},
		{"fd_read", []uint64{0, 0, 1<<32 - 1, result}, eOK}, // the first ones will do
		{"fd_read", []uint64{0, 0, 1, outOfBounds}, eFAULT},
		{"fd_write", []uint64{0, 0, 1, result}, eBADF},
		{"fd_write", []uint64{3, 0, 1, result}, eBADF},
		{"fd_write", []uint64{1, outOfBounds, 1, result}, eFAULT},
		{"fd_write", []uint64{1, 65528, 2, result}, eFAULT},
		{"fd_write", []uint64{1, 0, 1, outOfBounds}, eFAULT},
	}
	for _, tt := range bad {
		if got := call(t, m, p, tt.name, tt.args...); got != tt.want {
			t.Errorf("%s%v: errno %d, want %d", tt.name, tt.args, got, tt.want)
		}
	}
	iovecs(m, 65000, 1000)
	p.read = 0
	if e := call(t, m, p, "fd_read", 0, 0, 1, result); e != eFAULT {
		t.Errorf("buffer out of bounds: errno %d", e)
	}
}

// Whoever wants to know is told of the first read, before it is served, and can serve it again.
func TestBeforeRead(t *testing.T) {
	t.Parallel()
	m := instantiate(t)
	mem := m.Memory()
	var told []Read
	p := &Process{Stdin: []byte("first")}
	p.BeforeRead = func(_ context.Context, r Read) { told = append(told, r) }
	if e := call(t, m, p, "fd_fdstat_get", 0, 100); e != eOK || len(told) > 0 {
		t.Errorf("errno %d, told %v before a read", e, told)
	}
	n := iovecs(m, 1000, 100)
	for range 2 {
		if e := call(t, m, p, "fd_read", 0, 0, n, 5000); e != eOK {
			t.Error(e)
		}
	}
	if len(told) != 1 || told[0] != (Read{0, 0, n, 5000}) {
		t.Fatalf("told of %v", told)
	}
	again := &Process{Stdin: []byte("second")}
	if e := again.Read(mem, told[0]); e != uint64(eOK) {
		t.Error(e)
	}
	if b, _ := mem.Read(1000, 6); string(b) != "second" {
		t.Errorf("read %q", b)
	}
	if n, _ := mem.ReadUint32Le(5000); n != 6 {
		t.Errorf("read %d bytes", n)
	}
}

// What a guest did before it read is known.
func TestActedAndDrew(t *testing.T) {
	t.Parallel()
	m := instantiate(t)
	m.Memory().Write(0, subscription(1, onRead, 0, 0, 0))
	for _, tt := range []struct {
		name        string
		args        []uint64
		acted, drew bool
	}{
		{"fd_write", []uint64{1, 0, 1, 5000}, true, false},
		{"fd_write", []uint64{7, 0, 1, 5000}, true, false},
		{"poll_oneoff", []uint64{0, 100, 1, 200}, true, false},
		{"random_get", []uint64{5000, 4}, false, true},
		{"clock_time_get", []uint64{0, 0, 5000}, false, true},
		{"fd_read", []uint64{0, 0, 0, 5000}, false, false},
		{"fd_fdstat_get", []uint64{0, 5000}, false, false},
		{"fd_close", []uint64{2}, false, false},
		{"args_sizes_get", []uint64{5000, 5004}, false, false},
		{"environ_sizes_get", []uint64{5000, 5004}, false, false},
	} {
		p := &Process{}
		call(t, m, p, tt.name, tt.args...)
		if p.Acted() != tt.acted || p.Drew() != tt.drew {
			t.Errorf("%s: acted %t, drew %t; want %t, %t", tt.name, p.Acted(), p.Drew(), tt.acted, tt.drew)
		}
	}
}

// A closed stream stays closed, and a new Process has it open again unless it is told otherwise.
func TestState(t *testing.T) {
	t.Parallel()
	m := instantiate(t)
	p := &Process{Stdin: []byte("x")}
	if e := call(t, m, p, "fd_fdstat_set_flags", 2, 4); e != eOK {
		t.Error(e)
	}
	if e := call(t, m, p, "fd_fdstat_set_flags", 2, 32); e != eINVAL {
		t.Errorf("unknown flag: errno %d", e)
	}
	if e := call(t, m, p, "fd_close", 0); e != eOK {
		t.Error(e)
	}
	again := &Process{Stdin: []byte("x")}
	if e := call(t, m, again, "fd_fdstat_get", 0, 0); e != eOK {
		t.Errorf("a new process: errno %d", e)
	}
	again.SetState(p.State())
	for _, q := range []*Process{p, again} {
		if e := call(t, m, q, "fd_read", 0, 0, 0, 0); e != eBADF {
			t.Errorf("read of a closed stream: errno %d", e)
		}
		if e := call(t, m, q, "fd_close", 0); e != eBADF {
			t.Errorf("second close: errno %d", e)
		}
		if e := call(t, m, q, "fd_fdstat_get", 2, 0); e != eOK {
			t.Error(e)
		}
		b, _ := m.Memory().Read(0, 24)
		if b[0] != 0 || b[2] != 4 || binary.LittleEndian.Uint64(b[8:]) != rightSetFlags|rightStat|rightPoll|rightWrite {
			t.Errorf("fdstat % x", b)
		}
	}
}

func TestClocksAndRandom(t *testing.T) {
	t.Parallel()
	m := instantiate(t)
	p := &Process{Start: time.Now()}
	at := func(clock uint64) uint64 {
		if e := call(t, m, p, "clock_time_get", clock, 1, 8); e != eOK {
			t.Fatal(e)
		}
		v, _ := m.Memory().ReadUint64Le(8)
		return v
	}
	if d := time.Since(time.Unix(0, int64(at(realtime)))); d < 0 || d > time.Minute {
		t.Errorf("the clock is %s late", d)
	}
	if a, b := at(monotonic), at(monotonic); a == 0 || b < a || b > uint64(time.Hour) {
		t.Errorf("monotonic clock %d, then %d", a, b)
	}
	for _, tt := range []struct {
		name string
		args []uint64
		want errno
	}{
		{"clock_time_get", []uint64{2, 0, 0}, eINVAL},
		{"clock_time_get", []uint64{0, 0, outOfBounds}, eFAULT},
		{"clock_res_get", []uint64{0, 0}, eOK},
		{"clock_res_get", []uint64{2, 0}, eINVAL},
		{"clock_res_get", []uint64{1, outOfBounds}, eFAULT},
		{"random_get", []uint64{0, 32}, eOK},
		{"random_get", []uint64{65535, 2}, eFAULT},
		{"sched_yield", nil, eOK},
	} {
		if got := call(t, m, p, tt.name, tt.args...); got != tt.want {
			t.Errorf("%s%v: errno %d, want %d", tt.name, tt.args, got, tt.want)
		}
	}
	if b, _ := m.Memory().Read(0, 32); bytes.Equal(b, make([]byte, 32)) {
		t.Error("random bytes are all zero")
	}
}

// subscription is one as poll_oneoff reads it.
func subscription(userdata uint64, tag byte, id uint32, timeout time.Duration, flags uint16) []byte {
	b := make([]byte, subscriptionSize)
	binary.LittleEndian.PutUint64(b, userdata)
	b[8] = tag
	binary.LittleEndian.PutUint32(b[16:], id)
	binary.LittleEndian.PutUint64(b[24:], uint64(timeout))
	binary.LittleEndian.PutUint16(b[40:], flags)
	return b
}

func TestPoll(t *testing.T) {
	t.Parallel()
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when synctest's bubbles begin
	tests := []struct {
		name   string
		subs   [][]byte
		events [][2]uint64 // userdata and errno
		slept  time.Duration
	}{
		{"sleep", [][]byte{subscription(7, onClock, monotonic, time.Hour, 0)}, [][2]uint64{{7, 0}}, time.Hour},
		{"first of two", [][]byte{subscription(1, onClock, monotonic, time.Hour, 0), subscription(2, onClock, realtime, time.Minute, 0)}, [][2]uint64{{2, 0}}, time.Minute},
		{"both", [][]byte{subscription(1, onClock, 0, time.Hour, 0), subscription(2, onClock, 1, time.Hour, 0)}, [][2]uint64{{1, 0}, {2, 0}}, time.Hour},
		{"until", [][]byte{subscription(1, onClock, realtime, time.Duration(start.Add(time.Minute).UnixNano()), absolute)}, [][2]uint64{{1, 0}}, time.Minute},
		{"until long ago", [][]byte{subscription(1, onClock, realtime, 5, absolute)}, [][2]uint64{{1, 0}}, 0},
		{"no such clock", [][]byte{subscription(1, onClock, 9, time.Hour, 0)}, [][2]uint64{{1, uint64(eINVAL)}}, 0},
		{"stdin before sleep", [][]byte{subscription(1, onClock, 1, time.Hour, 0), subscription(2, onRead, 0, 0, 0)}, [][2]uint64{{2, 0}}, 0},
		{"streams", [][]byte{subscription(1, onWrite, 1, 0, 0), subscription(2, onWrite, 0, 0, 0), subscription(3, onRead, 5, 0, 0)}, [][2]uint64{{1, 0}, {2, uint64(eBADF)}, {3, uint64(eBADF)}}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := instantiate(t)
				p := &Process{Stdin: []byte("abc"), Start: time.Now()}
				m.Memory().Write(0, slices.Concat(tt.subs...))
				before := time.Now()
				// The events overwrite the subscriptions.
				if e := call(t, m, p, "poll_oneoff", 0, 0, uint64(len(tt.subs)), 9000); e != eOK {
					t.Fatal(e)
				}
				if d := time.Since(before); d != tt.slept {
					t.Errorf("slept %s, want %s", d, tt.slept)
				}
				if n, _ := m.Memory().ReadUint32Le(9000); int(n) != len(tt.events) {
					t.Fatalf("%d events, want %d", n, len(tt.events))
				}
				for i, want := range tt.events {
					b, _ := m.Memory().Read(uint32(i*eventSize), eventSize)
					if u, e := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint16(b[8:]); u != want[0] || uint64(e) != want[1] {
						t.Errorf("event %d: userdata %d, errno %d; want %v", i, u, e, want)
					}
				}
			})
		})
	}
	m := instantiate(t)
	m.Memory().Write(0, subscription(1, 9, 0, 0, 0))
	for _, tt := range []struct {
		args []uint64
		want errno
	}{
		{[]uint64{0, 100, 0, 200}, eINVAL},
		{[]uint64{0, 100, 1, 200}, eINVAL}, // tag 9
		{[]uint64{0, 100, 1 << 28, 200}, eINVAL},
		{[]uint64{1000, 100, maxSubscriptions + 1, 200}, eINVAL},
		{[]uint64{outOfBounds, 100, 1, 200}, eFAULT},
		{[]uint64{48, outOfBounds, 1, 200}, eFAULT},
		{[]uint64{48, 100, 1, outOfBounds}, eFAULT},
	} {
		if got := call(t, m, &Process{}, "poll_oneoff", tt.args...); got != tt.want {
			t.Errorf("poll_oneoff%v: errno %d, want %d", tt.args, got, tt.want)
		}
	}
}

// A sleep ends with the context and stops the guest; an exit ends the call; the module stays open after both.
func TestStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := instantiate(t)
		m.Memory().Write(0, subscription(1, onClock, monotonic, time.Hour, 0))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := time.Now()
		_, err := m.ExportedFunction("poll_oneoff").Call(WithProcess(ctx, &Process{}), 0, 100, 1, 200)
		var exit *sys.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != sys.ExitCodeContextCanceled || time.Since(before) != time.Second {
			t.Errorf("stopped after %s: %v", time.Since(before), err)
		}
		_, err = m.ExportedFunction("proc_exit").Call(t.Context(), 75)
		if !errors.As(err, &exit) || exit.ExitCode() != 75 {
			t.Errorf("exit: %v", err)
		}
		if e := call(t, m, &Process{}, "sched_yield"); e != eOK || m.IsClosed() {
			t.Errorf("after an exit: errno %d, closed %t", e, m.IsClosed())
		}
	})
}

// A context need not be a Process's own: whoever wraps it is understood, and a guest without a Process has nothing.
func TestContexts(t *testing.T) {
	t.Parallel()
	type key struct{}
	p := &Process{}
	if got := processOf(context.WithValue(WithProcess(t.Context(), p), key{}, 1)); got != p {
		t.Error("the process of a wrapped context is another")
	}
	if got := processOf(t.Context()); got == nil || got == p || got.Args != nil {
		t.Errorf("without a process: %v", got)
	}
}
