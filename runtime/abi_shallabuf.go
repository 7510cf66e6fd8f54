package runtime

import (
	"bytes"
	"context"
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// shallabuf is the ABI of Shallabuf's core modules: the host writes a string into memory that it adds to the guest's and calls
// run(ptr), which returns where another is; each ends with a NUL. 0 means that the guest failed. _start, which there may be,
// is not called.
type shallabuf struct{}

const (
	shallabufRun  = "run"
	shallabufType = "(i32) -> i32"
	// shallabufTail is how many bytes there are behind the body at least: its NUL, and room for what an allocator that takes all
	// memory that it finds writes at its end.
	shallabufTail = 64
	// shallabufGap is how many times the body's length there is before it for such an allocator, which begins to hand out memory
	// below: wasi-libc's of before 2023 is one, when it is asked for the first time.
	shallabufGap = 16
)

func (shallabuf) fits(exports []Func, hasMemory bool) error {
	if err := want(exports, shallabufRun, shallabufType); err != nil {
		return err
	}
	return wantMemory(hasMemory)
}

func (shallabuf) initialize(ctx context.Context, in *instance) error { return initialize(ctx, in) }

func (shallabuf) reactor() bool { return true }

func (shallabuf) run(ctx context.Context, in *instance, c *host.Call) error {
	body := c.Job.Body
	if i := bytes.IndexByte(body, 0); i >= 0 {
		return job.Errorf(job.KindInvalid, "byte %d of the body is a NUL, which is where its guest would take it to end", i)
	}
	mem := in.module.Memory()
	gap := min(shallabufGap*int64(len(body)), (in.bound-int64(mem.Size()))/4) / pageSize
	pages, ok := mem.Grow(uint32(gap) + uint32((len(body)+shallabufTail+pageSize-1)/pageSize))
	if !ok {
		return &host.Fault{Kind: job.KindLimit, Err: ErrMemory, Text: fmt.Sprintf(
			"no room for a body of %d bytes beside the guest's memory of %s (limits.memory)", len(body), size(int64(mem.Size())))}
	}
	at := (pages + uint32(gap)) * pageSize
	mem.Write(at, body) // what was added is zero
	got, err := in.call(ctx, shallabufRun, uint64(at))
	if err != nil {
		return err
	}
	if got[0] == 0 {
		words := c.LastWords()
		if words == "" {
			words = "guest returned no result"
		}
		return job.Errorf(job.KindFailed, "%s", words)
	}
	return shallabufResult(in, uint32(got[0]), c)
}

// shallabufResult adds the string at ptr to the result.
func shallabufResult(in *instance, ptr uint32, c *host.Call) error {
	mem := in.module.Memory()
	var b []byte
	if ptr < mem.Size() {
		b, _ = mem.Read(ptr, mem.Size()-ptr)
	}
	n := bytes.IndexByte(b[:min(int64(len(b)), c.Grants.Output+1)], 0)
	switch {
	case n >= 0:
		return c.Append(b[:n])
	case int64(len(b)) > c.Grants.Output:
		return c.Append(b)
	}
	return &host.Fault{Kind: job.KindTrap, Text: fmt.Sprintf("result out of bounds: no string at %d of a memory of %d ends in it", ptr, mem.Size())}
}
