package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
)

// means are what instances are reset with on this system, after a test of each.
type means struct {
	memories memories
	shrinks  bool // memories that have grown can be made smaller
	freezes  bool // programs can be stopped in a call and go on in another
}

// findMeans tests what resetting relies on and nothing documents, and takes the next best where a test fails. better opens
// memories that are better than portable ones, if they pass their own test; nil: there are to be none.
func findMeans(better func() (memories, error), log *slog.Logger) means {
	m := means{memories: portable{}}
	if better != nil {
		found, err := better()
		if err != nil {
			log.Info("instances are reset by copying memories of up to 1 MiB; larger modules run fresh for each job", "why", err)
		} else {
			m.memories = found
		}
	}
	err := testShrink(m.memories)
	if m.shrinks = err == nil; err != nil {
		log.Warn("instances are not used again once their memory has grown", "err", err)
	}
	err = testFreeze()
	if m.freezes = err == nil; err != nil {
		log.Info("programs are run from their beginning for each job", "why", err)
	}
	return m
}

// probe is a module with a memory of one to four pages, exported as m, and a function g() i32 that reads byte 65536.
const probe = "\x00asm\x01\x00\x00\x00" +
	"\x01\x05\x01\x60\x00\x01\x7f" + // type () -> i32
	"\x03\x02\x01\x00" + // one function of it
	"\x05\x04\x01\x01\x01\x04" + // memory 1 4
	"\x07\x09\x02\x01m\x02\x00\x01g\x00\x00" + // exports
	"\x0a\x0b\x01\x09\x00\x41\x80\x80\x04\x2d\x00\x00\x0b" // i32.const 65536, i32.load8_u

// testShrink sees whether a memory can be made smaller, and whether the guest notices: what was cut off is out of bounds.
func testShrink(by memories) (err error) {
	ctx := context.Background()
	rt := wazero.NewRuntime(ctx)
	defer func() { err = errors.Join(err, rt.Close(ctx)) }()
	var mem memory
	var allocation error
	m, err := rt.Instantiate(experimental.WithMemoryAllocator(ctx, experimental.MemoryAllocatorFunc(func(_, limit uint64) experimental.LinearMemory {
		if mem, allocation = by.allocate(limit); allocation != nil {
			return noMemory{}
		}
		return mem
	})), []byte(probe))
	if err = errors.Join(allocation, err); err != nil {
		return fmt.Errorf("instantiate probe: %w", err)
	}
	reads := func() bool {
		_, err := m.ExportedFunction("g").Call(ctx)
		return err == nil
	}
	for range 2 {
		if _, ok := m.Memory().Grow(2); !ok || !reads() {
			return errors.New("memory does not grow as it should")
		}
		if err := cut(m.Memory(), mem, pageSize); err != nil {
			return err
		}
		if reads() {
			return errors.New("what was cut off a memory can still be read")
		}
	}
	return nil
}
