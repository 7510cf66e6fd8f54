package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/runtime/wasi"
)

// A program that reads its job from stdin does the same up to its first read, whatever the job. There it is frozen: its memory,
// its globals and its call stack are kept, and each job after the first goes on from there with another stdin. That is done
// only when the program has done nothing before that anybody could notice: no output, no call of a host function, no look at
// the clock and no random number, which would be the same for many jobs. With IsolationFrozen the last two do not matter.

// frozen is where a program goes on.
type frozen struct {
	stack stack
	read  wasi.Read // what it waits for
	at    *snapshot
	own   bool // at's image is the instance's own
	depth uint64
	burnt int64
	calls int64 // of host functions
	run   *run  // which it goes on in
}

// prepare makes in ready to be frozen in its next run, or to go on.
func (p *pool) prepare(in *instance, r *run) {
	if in.frozen != nil {
		r.meter.resume(in, in.frozen.burnt)
		r.process.SetState(in.frozen.at.state)
		in.frozen.run = r
		return
	}
	if !p.freeze {
		return
	}
	p.mu.Lock()
	in.freezes = p.thawed == nil && !p.refused
	p.mu.Unlock()
	if in.freezes {
		r.process.BeforeRead = func(ctx context.Context, read wasi.Read) {
			if err := p.halt(ctx, in, r, read); err != nil {
				p.thaw(err)
			}
		}
	}
}

// thaw says that programs are run from their beginning from now on, once, and louder where that is not as configured.
func (p *pool) thaw(why error) {
	p.mu.Lock()
	first := p.thawed == nil
	if first {
		p.thawed = why
	}
	p.mu.Unlock()
	if !first {
		return
	}
	level := slog.LevelDebug
	if p.draws {
		level = slog.LevelInfo
	}
	p.log.Log(context.Background(), level, "program runs from its beginning for each job", "module", p.module, "why", why)
}

// program runs a program, or the rest of a frozen one.
func (in *instance) program(ctx context.Context) error {
	if in.freezes || in.frozen != nil {
		ctx = experimental.WithSnapshotter(ctx)
	}
	in.thawing = in.frozen != nil
	_, err := in.call(ctx, abi.Start)
	return err
}

// halt freezes a program that is about to read for the first time.
func (p *pool) halt(ctx context.Context, in *instance, r *run, read wasi.Read) error {
	switch {
	case r.process.Acted() || r.call.Used():
		return errors.New("it does something before it reads its job")
	case !r.process.Pristine():
		return errors.New("it has files open when it first reads its job")
	case r.process.Drew() && !p.draws:
		if len(r.process.Files.Preopens) > 0 {
			return errors.New("it looks at files or the clock, or draws random numbers, before it reads its job")
		}
		return errors.New("it reads the clock or draws random numbers before it reads its job")
	}
	if in.memory != nil && in.memory.denied() {
		return nil // jobs that may have more memory would begin otherwise
	}
	f := &frozen{read: read, depth: in.depth.Get(), burnt: int64(r.meter.burnt()), calls: r.call.Counted()}
	var err error
	if f.stack, err = stackOf(experimental.GetSnapshotter(ctx).Snapshot()); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Programs are all alike here, but for what they may have taken from addresses or the like: each has an image of its own,
	// unless it is the very same.
	if p.halted != nil && in.like(p.halted) {
		f.at = p.halted
	} else {
		if f.at, err = in.snapshot(p.means.memories); err != nil {
			return err
		}
		f.at.state = r.process.State()
		if f.own = p.halted != nil; !f.own {
			p.halted = f.at
		}
	}
	in.frozen, in.freezes, in.rebase = f, false, true
	return nil
}

// like says whether in is now what snap is.
func (in *instance) like(snap *snapshot) bool {
	for i, g := range in.globals {
		if g.Get() != snap.globals[i] {
			return false
		}
	}
	if in.memory == nil {
		return true
	}
	mem := in.module.Memory()
	b, _ := mem.Read(0, mem.Size())
	return bytes.Equal(b, snap.image.bytes)
}

// thaw makes the program go on behind the read at which it was frozen. It does not return.
func (in *instance) thaw() {
	in.thawing = false
	f := in.frozen
	in.depth.Set(f.depth)
	f.run.meter.resume(in, f.burnt) // what the beginning has burnt again does not count
	f.run.call.SetCounted(f.calls)
	f.stack.restore(f.run.process.Read(in.module.Memory(), f.read))
}

// stack is a call stack that can be gone back to more than once: it is used up by going back, so a copy is kept.
type stack struct {
	snapshot experimental.Snapshot
	bytes    []byte // that snapshot is about to use; nothing documents them
	saved    []byte
}

func stackOf(s experimental.Snapshot) (stack, error) {
	v := reflect.ValueOf(s)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return stack{}, fmt.Errorf("a snapshot is a %s", v.Kind())
	}
	if v = v.FieldByName("stack"); !v.IsValid() || v.Type() != reflect.TypeFor[[]byte]() {
		return stack{}, errors.New("a snapshot has no stack of bytes")
	}
	return stack{s, v.Bytes(), bytes.Clone(v.Bytes())}, nil
}

// restore goes back, as if the function that was being called then returned result. It does not return.
func (s stack) restore(result uint64) {
	copy(s.bytes, s.saved)
	s.snapshot.Restore([]uint64{result})
}

// freezeProbe is a module with a memory m and a function s() that calls t.e() and stores what t.r() i32 returns at 0.
const freezeProbe = "\x00asm\x01\x00\x00\x00" +
	"\x01\x08\x02\x60\x00\x00\x60\x00\x01\x7f" +
	"\x02\x0d\x02\x01t\x01e\x00\x00\x01t\x01r\x00\x01" +
	"\x03\x02\x01\x00" +
	"\x05\x04\x01\x01\x01\x01" +
	"\x07\x09\x02\x01m\x02\x00\x01s\x00\x02" +
	"\x0a\x0d\x01\x0b\x00\x10\x00\x41\x00\x10\x01\x36\x02\x00\x0b"

// testFreeze sees whether a function that was stopped in one call goes on in others.
func testFreeze() (err error) {
	ctx := experimental.WithSnapshotter(context.Background())
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a snapshot is not as expected: %v", p)
		}
	}()
	rt := wazero.NewRuntime(ctx)
	defer func() { err = errors.Join(err, rt.Close(ctx)) }()
	var s stack
	reads, enters := 0, 0
	enter := func(context.Context, api.Module, []uint64) {
		if enters++; enters > 1 {
			s.restore(uint64(enters))
		}
	}
	read := func(ctx context.Context, _ api.Module, values []uint64) {
		reads++
		s, err = stackOf(experimental.GetSnapshotter(ctx).Snapshot())
		values[0] = 1
	}
	_, failed := rt.NewHostModuleBuilder("t").
		NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(enter), nil, nil).Export("e").
		NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(read), nil, []api.ValueType{api.ValueTypeI32}).Export("r").Instantiate(ctx)
	if failed != nil {
		return failed
	}
	m, failed := rt.Instantiate(ctx, []byte(freezeProbe))
	if failed != nil {
		return failed
	}
	f := m.ExportedFunction("s")
	for want := uint32(1); want < 5; want++ {
		if _, failed := f.Call(ctx); failed != nil || err != nil {
			return errors.Join(err, failed)
		}
		if got, _ := m.Memory().ReadUint32Le(0); got != want || reads != 1 {
			return fmt.Errorf("call %d goes on with %d after %d reads", want, got, reads)
		}
	}
	return nil
}
