// Package wasi is a lean wasi_snapshot_preview1 for guests that are used for many jobs.
//
// It has all functions of preview 1. Arguments, environment, clocks, random numbers, sleep, the three standard streams, the
// files below directories that are granted and the exit are there; there are no sockets, and the functions for them answer EBADF
// or ENOTSOCK.
// Nothing about a guest is kept on the host's side but a Process, which belongs to one job: whoever resets a guest's memory
// gives it a new Process, and nothing of the job before is left. proc_exit ends the guest's call with a *sys.ExitError and
// leaves the module open.
package wasi

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	goruntime "runtime"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
)

// Process is what a guest sees of the world in one job. It belongs to the goroutine that runs the guest.
type Process struct {
	Args   []string // the program's name first; none may hold a NUL
	Env    []string // NAME=value; none may hold a NUL
	Stdin  []byte
	Stdout io.Writer // nil: what is written is dropped; it may panic to stop the guest
	Stderr io.Writer // the same
	Start  time.Time // where the monotonic clock begins; the same for all jobs of a guest

	// Counter is told of each call before it is served and may panic to stop the guest; may be nil.
	Counter Counter
	// Files is what the guest may do with files. Who gives it any must Close the Process.
	Files Files
	// BeforeRead is called once, before the guest first reads from stdin; may be nil. r is the read that is about to be.
	BeforeRead func(ctx context.Context, r Read)

	state State
	read  int // how much of Stdin was read
	acted bool
	drew  bool

	files   []*descriptor // once they are used; see table
	wrote   int64         // to files
	refused bool          // and nothing has gone well since
}

// Counter counts the calls of a guest.
type Counter interface {
	Count(ctx context.Context)
}

// Acted says whether the guest has written anything or asked what there is to read.
func (p *Process) Acted() bool { return p.acted }

// Drew says whether the guest has asked for the time, for random numbers or for anything about files.
func (p *Process) Drew() bool { return p.drew }

// State is what a guest may change about its Process. The zero State is that of a new Process.
type State struct {
	closed [3]bool   // standard streams
	flags  [3]uint16 // of standard streams, as fd_fdstat_set_flags left them
}

// State returns p's state, for the processes of guests that continue where this one is now.
func (p *Process) State() State { return p.state }

// SetState puts p into a state that State returned.
func (p *Process) SetState(s State) { p.state = s }

// open says whether fd is one of the standard streams and not closed.
func (p *Process) open(fd uint32) bool { return fd < 3 && !p.state.closed[fd] }

// WithProcess returns a context that carries p to the functions of this package.
func WithProcess(ctx context.Context, p *Process) context.Context { return &Context{ctx, p} }

// Context is what WithProcess returns. Functions find their process in it without allocating.
type Context struct {
	context.Context
	Process *Process
}

type processKey struct{}

// Value implements context.Context.
func (c *Context) Value(key any) any {
	if _, ok := key.(processKey); ok {
		return c.Process
	}
	return c.Context.Value(key)
}

// processOf returns the process that ctx carries; one that has nothing where it carries none.
func processOf(ctx context.Context) *Process {
	if c, ok := ctx.(*Context); ok {
		return c.Process
	}
	if p, ok := ctx.Value(processKey{}).(*Process); ok {
		return p
	}
	return &Process{}
}

// function is one function of preview 1. It returns its errno; what has no result returns 0.
type function struct {
	name   string
	params string // one letter each: i for i32, I for i64
	void   bool   // it has no result
	call   func(ctx context.Context, p *Process, m api.Memory, stack []uint64) errno
}

// Instantiate adds wasi_snapshot_preview1 to rt. Guests that import it must have a memory.
func Instantiate(ctx context.Context, rt wazero.Runtime) error {
	b := rt.NewHostModuleBuilder(abi.WASI)
	for _, f := range functions() {
		params := make([]api.ValueType, len(f.params))
		for i, t := range []byte(f.params) {
			if params[i] = api.ValueTypeI32; t == 'I' {
				params[i] = api.ValueTypeI64
			}
		}
		results := []api.ValueType{api.ValueTypeI32}
		if f.void {
			results = nil
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
			p := processOf(ctx)
			if p.Counter != nil {
				p.Counter.Count(ctx)
			}
			if e := f.call(ctx, p, m.Memory(), stack); !f.void {
				stack[0] = uint64(e)
			}
		}), params, results).WithName(f.name).Export(f.name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("instantiate wasi: %w", err)
	}
	return nil
}

func functions() []function {
	return []function{
		{name: "args_get", params: "ii", call: argsGet},
		{name: "args_sizes_get", params: "ii", call: argsSizesGet},
		{name: "clock_res_get", params: "ii", call: clockResGet},
		{name: "clock_time_get", params: "iIi", call: clockTimeGet},
		{name: "environ_get", params: "ii", call: environGet},
		{name: "environ_sizes_get", params: "ii", call: environSizesGet},
		{name: "fd_advise", params: "iIIi", call: onFile(eSPIPE, fdAdvise)},
		{name: "fd_allocate", params: "iII", call: onFile(eSPIPE, fdAllocate)},
		{name: "fd_close", params: "i", call: fdClose},
		{name: "fd_datasync", params: "i", call: onFile(eINVAL, fdSync)},
		{name: "fd_fdstat_get", params: "ii", call: fdStatGet},
		{name: "fd_fdstat_set_flags", params: "ii", call: fdStatSetFlags},
		{name: "fd_fdstat_set_rights", params: "iII", call: always(eNOSYS)},
		{name: "fd_filestat_get", params: "ii", call: fileStatGet},
		{name: "fd_filestat_set_size", params: "iI", call: onFile(eINVAL, fdSetSize)},
		{name: "fd_filestat_set_times", params: "iIIi", call: onFile(eINVAL, fdSetTimes)},
		{name: "fd_pread", params: "iiiIi", call: onFile(eSPIPE, fdPread)},
		{name: "fd_prestat_dir_name", params: "iii", call: prestatName},
		{name: "fd_prestat_get", params: "ii", call: prestatGet},
		{name: "fd_pwrite", params: "iiiIi", call: onFile(eSPIPE, fdPwrite)},
		{name: "fd_read", params: "iiii", call: fdRead},
		{name: "fd_readdir", params: "iiiIi", call: onFile(eNOTDIR, fdReadDir)},
		{name: "fd_renumber", params: "ii", call: onFile(eNOTSUP, fdRenumber)},
		{name: "fd_seek", params: "iIii", call: onFile(eSPIPE, fdSeek)},
		{name: "fd_sync", params: "i", call: onFile(eINVAL, fdSync)},
		{name: "fd_tell", params: "ii", call: onFile(eSPIPE, fdTell)},
		{name: "fd_write", params: "iiii", call: fdWrite},
		{name: "path_create_directory", params: "iii", call: onFile(eNOTDIR, pathCreateDirectory)},
		{name: "path_filestat_get", params: "iiiii", call: onFile(eNOTDIR, pathStatGet)},
		{name: "path_filestat_set_times", params: "iiiiIIi", call: onFile(eNOTDIR, pathSetTimes)},
		{name: "path_link", params: "iiiiiii", call: onFile(eNOTDIR, pathLink)},
		{name: "path_open", params: "iiiiiIIii", call: onFile(eNOTDIR, pathOpen)},
		{name: "path_readlink", params: "iiiiii", call: onFile(eNOTDIR, pathReadLink)},
		{name: "path_remove_directory", params: "iii", call: onFile(eNOTDIR, pathRemove(true))},
		{name: "path_rename", params: "iiiiii", call: onFile(eNOTDIR, pathRename)},
		{name: "path_symlink", params: "iiiii", call: pathSymlink},
		{name: "path_unlink_file", params: "iii", call: onFile(eNOTDIR, pathRemove(false))},
		{name: "poll_oneoff", params: "iiii", call: pollOneoff},
		{name: "proc_exit", params: "i", void: true, call: procExit},
		{name: "proc_raise", params: "i", call: always(eNOSYS)},
		{name: "random_get", params: "ii", call: randomGet},
		{name: "sched_yield", call: schedYield},
		{name: "sock_accept", params: "iii", call: stream(eNOTSOCK)},
		{name: "sock_recv", params: "iiiiii", call: stream(eNOTSOCK)},
		{name: "sock_send", params: "iiiii", call: stream(eNOTSOCK)},
		{name: "sock_shutdown", params: "ii", call: stream(eNOTSOCK)},
	}
}

// errno is what functions answer.
type errno uint16

const (
	eOK          errno = 0
	eACCES       errno = 2
	eBADF        errno = 8
	eBUSY        errno = 10
	eDQUOT       errno = 19
	eEXIST       errno = 20
	eFAULT       errno = 21
	eFBIG        errno = 22
	eILSEQ       errno = 25
	eINVAL       errno = 28
	eIO          errno = 29
	eISDIR       errno = 31
	eLOOP        errno = 32
	eMFILE       errno = 33
	eMLINK       errno = 34
	eNAMETOOLONG errno = 37
	eNFILE       errno = 41
	eNOENT       errno = 44
	eNOSPC       errno = 51
	eNOSYS       errno = 52
	eNOTDIR      errno = 54
	eNOTEMPTY    errno = 55
	eNOTSOCK     errno = 57
	eNOTSUP      errno = 58
	eNXIO        errno = 60
	ePERM        errno = 63
	eROFS        errno = 69
	eSPIPE       errno = 70
	eTXTBSY      errno = 74
	eXDEV        errno = 75
	eNOTCAPABLE  errno = 76
)

// always is a function that has but one answer.
func always(e errno) func(context.Context, *Process, api.Memory, []uint64) errno {
	return func(context.Context, *Process, api.Memory, []uint64) errno { return e }
}

// stream is a function that answers e for an open standard stream, and that anything else is no descriptor.
func stream(e errno) func(context.Context, *Process, api.Memory, []uint64) errno {
	return func(_ context.Context, p *Process, _ api.Memory, stack []uint64) errno {
		if !p.open(uint32(stack[0])) {
			return eBADF
		}
		return e
	}
}

func procExit(_ context.Context, _ *Process, _ api.Memory, stack []uint64) errno {
	panic(sys.NewExitError(uint32(stack[0])))
}

func schedYield(context.Context, *Process, api.Memory, []uint64) errno {
	goruntime.Gosched()
	return eOK
}

func randomGet(ctx context.Context, p *Process, m api.Memory, stack []uint64) errno {
	p.drew = true
	b, ok := m.Read(uint32(stack[0]), uint32(stack[1]))
	if !ok {
		return eFAULT
	}
	const atOnce = 1 << 20
	for ; len(b) > atOnce && ctx.Err() == nil; b = b[atOnce:] {
		_, _ = rand.Read(b[:atOnce]) // never fails
	}
	if ctx.Err() != nil {
		panic(sys.NewExitError(sys.ExitCodeContextCanceled))
	}
	_, _ = rand.Read(b)
	return eOK
}

func argsSizesGet(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	return sizes(m, p.Args, stack)
}

func argsGet(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	return texts(m, p.Args, stack)
}

func environSizesGet(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	return sizes(m, p.Env, stack)
}

func environGet(_ context.Context, p *Process, m api.Memory, stack []uint64) errno {
	return texts(m, p.Env, stack)
}

// sizes writes how many strings there are and how many bytes they take with their NULs.
func sizes(m api.Memory, list []string, stack []uint64) errno {
	total := 0
	for _, s := range list {
		total += len(s) + 1
	}
	if !m.WriteUint32Le(uint32(stack[0]), uint32(len(list))) || !m.WriteUint32Le(uint32(stack[1]), uint32(total)) {
		return eFAULT
	}
	return eOK
}

// texts writes pointers to the strings to stack[0], and the strings, each ended by NUL, to stack[1].
func texts(m api.Memory, list []string, stack []uint64) errno {
	at, to := uint32(stack[0]), uint32(stack[1])
	for _, s := range list {
		end := to + uint32(len(s))
		if !m.WriteUint32Le(at, to) || !m.WriteString(to, s) || !m.WriteByte(end, 0) {
			return eFAULT
		}
		at, to = at+4, end+1
	}
	return eOK
}
