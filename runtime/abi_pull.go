package runtime

import (
	"context"

	"github.com/wasmsidecar/wasmsidecar/pkg/abi"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
)

// pull is the native ABI: handle() or handle() i32, and the guest asks for the rest.
type pull struct{}

var pullHandle = []string{"() -> i32", "() -> ()"}

func (pull) fits(exports []Func, _ bool) error { return want(exports, abi.Handle, pullHandle...) }

func (pull) initialize(ctx context.Context, in *instance) error { return initialize(ctx, in) }

func (pull) reactor() bool { return true }

func (pull) run(ctx context.Context, in *instance, _ *host.Call) error {
	got, err := in.call(ctx, abi.Handle)
	if err != nil {
		return err
	}
	if len(got) == 1 && uint32(got[0]) != 0 {
		return exitCode(got[0])
	}
	return nil
}
