package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime/host"
	"github.com/wasmsidecar/wasmsidecar/runtime/rewrite/rewritetest"
)

// everything calls all exports of a generated module as one job and writes down what can be seen, of which nothing may come from
// a job before.
type everything struct{ lines []string }

func (*everything) fits([]Func, bool) error                     { return nil }
func (*everything) initialize(context.Context, *instance) error { return nil }
func (*everything) reactor() bool                               { return true }

func (d *everything) run(ctx context.Context, in *instance, _ *host.Call) (err error) {
	d.lines = nil
	say := func(format string, args ...any) { d.lines = append(d.lines, fmt.Sprintf(format, args...)) }
	look := func() {
		b, _ := in.module.Memory().Read(0, in.size())
		say("memory %d %x", len(b), sha256.Sum256(b))
		for i, g := range in.globals {
			say("global %d %x", i, g.Get())
		}
	}
	look()
	for i := 0; err == nil; i++ {
		name := fmt.Sprintf("f%d", i)
		f := in.function(name)
		if f == nil {
			break
		}
		for _, arg := range []uint64{0, 7} {
			in.depth.Set(uint64(in.most))
			values := make([]uint64, 8)
			for k := range f.Definition().ParamTypes() {
				values[k] = arg
			}
			failed := f.CallWithStack(ctx, values)
			say("%s(%d) %x %.80s", name, arg, values, firstLine(fmt.Sprint(failed)))
			if errors.Is(failed, ErrFuel) {
				err = failed
				break
			}
		}
	}
	look()
	say("fuel %d", in.fuel.Get())
	d.stain(in)
	return err
}

// stain leaves something behind in every page, in new ones and in each global.
func (d *everything) stain(in *instance) {
	mem := in.module.Memory()
	_, _ = mem.Grow(1)
	for at := uint32(0); at < mem.Size(); at += osPageSize {
		b, _ := mem.ReadByte(at)
		mem.WriteByte(at, ^b)
	}
	for _, g := range in.globals {
		g.Set(g.Get() + 1)
	}
}

// A generated module finds and does the same in each job, whether its instance is made anew or was reset, by any means and on
// either engine.
func FuzzReset(f *testing.F) {
	for i := range 12 {
		f.Add(rewritetest.Seed(i))
	}
	e, err := New(Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	all := map[string]means{"mapped": e.means(), "portable": findMeans(nil, e.cfg.Log)}
	f.Cleanup(func() { _ = e.Close(context.Background()) })
	limits := DefaultLimits()
	limits.Memory, limits.Fuel, limits.Depth, limits.Time = 8*pageSize, 200_000, 1000, time.Minute
	f.Fuzz(func(t *testing.T, in []byte) {
		wasm := rewritetest.GenerateMild(in[:min(len(in), 2000)])
		sum := sha256.Sum256(wasm)
		for _, interpreter := range []bool{false, true} {
			c, err := e.compile(t.Context(), codeKey{hex.EncodeToString(sum[:]), limits.pages(), interpreter}, ModuleConfig{Wasm: wasm})
			if err != nil {
				t.Fatal(err)
			}
			defer e.release(c)
			zero := api.GoModuleFunc(func(_ context.Context, _ api.Module, stack []uint64) { stack[0] = 0 })
			_, err = c.rt.NewHostModuleBuilder("env").NewFunctionBuilder().
				WithGoModuleFunction(zero, []api.ValueType{api.ValueTypeI32}, []api.ValueType{api.ValueTypeI32}).Export("h").Instantiate(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			d := &everything{}
			jobs := func(by instances, n int) (lines [][]string) {
				m := &Module{engine: e, code: c, name: "fuzz", driver: d, instances: by, own: terms{limits, limits.grants(host.Grants{Logger: e.cfg.Log})}}
				for range n {
					_, err := m.Run(t.Context(), &job.Job{ID: "1"})
					if job.KindOf(err) == job.KindInternal {
						t.Fatal(err)
					}
					lines = append(lines, append(d.lines, fmt.Sprint(err)))
				}
				return lines
			}
			want := jobs(&fresh{code: c, driver: d}, 1)[0]
			if !c.rewritten.Resettable {
				t.Fatal(c.rewritten.Why)
			}
			for name, by := range all {
				p := &pool{code: c, driver: d, means: by, budget: e.budget, log: e.cfg.Log, module: "fuzz"}
				for i, got := range jobs(p, 4) {
					if !slices.Equal(got, want) {
						t.Errorf("%s, interpreter %t, job %d:\n%s\n\nfresh:\n%s", name, interpreter, i, strings.Join(got, "\n"), strings.Join(want, "\n"))
					}
				}
				if err := p.close(); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
