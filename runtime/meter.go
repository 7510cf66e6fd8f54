package runtime

import (
	"context"
	"errors"
	"fmt"
	"math"
	goruntime "runtime"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/runtime/host"
	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite"
)

// slice is how much fuel a guest gets at a time, which bounds how long it runs before the host looks at the clock and lets the
// collector and others have the processor: about a quarter of a millisecond. To ask costs a thousandth of that.
const slice = 1 << 18

// unlimited is the budget of a run without limits.fuel; it is never used up.
const unlimited = math.MaxInt64 / 4

// meter grants fuel to one run. It belongs to the goroutine that runs the guest.
type meter struct {
	budget  int64
	depth   int64
	in      *instance
	reserve int64 // of the budget, what is not granted yet
}

func newMeter(l Limits) meter {
	m := meter{budget: unlimited, depth: int64(l.Depth)}
	if l.Fuel > 0 {
		m.budget = min(l.Fuel, unlimited)
	}
	if l.Depth == 0 {
		m.depth = math.MaxInt32
	}
	return m
}

// start gives in the first slice of a full budget.
func (m *meter) start(in *instance) {
	first := min(slice, m.budget)
	m.in, m.reserve = in, m.budget-first
	in.fuel.Set(uint64(first))
}

// resume is start for a guest that goes on where it had burnt so much.
func (m *meter) resume(in *instance, burnt int64) {
	first := min(slice, m.budget-burnt)
	m.in, m.reserve = in, m.budget-burnt-first
	in.fuel.Set(uint64(first))
}

// burnt is what the guest has used since start.
func (m *meter) burnt() uint64 {
	if m.in == nil {
		return 0
	}
	return uint64(min(m.budget-m.reserve-int64(m.in.fuel.Get()), m.budget))
}

// refuel is called when the fuel granted or the depth is below zero. It returns once there is fuel again, or panics with a
// *host.Stop.
func (m *meter) refuel(ctx context.Context) {
	if m.in.thawing {
		m.in.thaw()
	}
	if int64(m.in.depth.Get()) < 0 {
		panic(&host.Stop{Err: fmt.Errorf("%w: calls are nested more than %d deep (limits.depth)", ErrDepth, m.depth)})
	}
	switch err := ctx.Err(); {
	case errors.Is(err, context.Canceled):
		panic(&host.Stop{Err: ErrCanceled})
	case err != nil:
		panic(&host.Stop{Err: ErrDeadline})
	}
	left := int64(m.in.fuel.Get()) // below zero
	grant := min(slice-left, m.reserve)
	if left+grant < 0 {
		panic(&host.Stop{Err: fmt.Errorf("%w: the job took more than %d (limits.fuel)", ErrFuel, m.budget)})
	}
	m.reserve -= grant
	m.in.fuel.Set(uint64(left + grant))
	goruntime.Gosched()
}

// meterKey is what the guest's context has its *meter under.
type meterKey struct{}

// instantiateMeter adds the host module that metered code imports.
func instantiateMeter(ctx context.Context, rt wazero.Runtime, m *rewrite.Module) error {
	_, err := rt.NewHostModuleBuilder(m.RefuelModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, _ []uint64) {
			ctx.Value(meterKey{}).(*meter).refuel(ctx)
		}), nil, nil).WithName(m.RefuelName).Export(m.RefuelName).Instantiate(ctx)
	if err != nil {
		return fmt.Errorf("instantiate meter: %w", err)
	}
	return nil
}
