package runtime

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// drasm is DRASM's ABI: the host writes an envelope where the guest's alloc says, and handle(ptr, len) returns another as
// len<<32 | ptr. The guest owns both; dealloc is never called, for the instance ends with the job.
type drasm struct{}

const drasmHandle = "(i32, i32) -> i64"

func (drasm) fits(exports []Func, hasMemory bool) error {
	if err := want(exports, abi.Handle, drasmHandle); err != nil {
		return err
	}
	if err := want(exports, "alloc", "(i32) -> i32"); err != nil {
		return err
	}
	if err := want(exports, "dealloc", "(i32, i32) -> ()"); err != nil {
		return err
	}
	return wantMemory(hasMemory)
}

func (drasm) initialize(ctx context.Context, in *instance) error { return initialize(ctx, in) }

func (drasm) reactor() bool { return true }

func (drasm) run(ctx context.Context, in *instance, c *host.Call) error {
	message := host.Envelope{TypeName: c.Job.TypeName, Payload: c.Job.Body}.Append(nil)
	c.Invoke = in.call
	ptr, err := c.Alloc(ctx, in.module, message)
	if err != nil {
		return err
	}
	got, err := in.call(ctx, abi.Handle, uint64(ptr), uint64(len(message)))
	if err != nil {
		return err
	}
	// A byte of payload takes at most four of JSON; the rest is for the type's name and white space.
	raw, err := host.Take(in.module, got[0], 4*c.Grants.Output+pageSize)
	if err != nil {
		return err
	}
	reply, err := host.ParseEnvelope(raw)
	if err != nil {
		return &host.Fault{Kind: job.KindTrap, Text: err.Error()}
	}
	if reply.TypeName == "Error" {
		return job.Errorf(job.KindFailed, "%s", errorText(reply.Payload))
	}
	c.TypeName = job.CleanText(reply.TypeName)
	return c.Append(reply.Payload)
}

// errorText is what a DRASM Error message says: its "error" member, else its payload.
func errorText(payload []byte) string {
	var e struct {
		Error any `json:"error"`
	}
	s := string(payload)
	if json.Unmarshal(payload, &e) == nil && e.Error != nil {
		if said, ok := e.Error.(string); ok {
			s = said
		}
	}
	if s = job.CleanText(s); strings.TrimSpace(s) == "" {
		return "guest answered with an Error message"
	}
	return s
}
