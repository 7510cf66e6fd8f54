// Command extismcompare holds wasmsidecar beside Extism's own Go SDK on the same plug-ins and prints what a job costs under each,
// and the ratios. It fails when wasmsidecar is not five times faster than the SDK with an instance for each job, its way to a
// clean sandbox. Its tests run the plug-ins that come with the SDK under both.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	extism "github.com/extism/go-sdk"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

const (
	rounds = 7
	round  = 200 * time.Millisecond
	enough = 5 // times faster
)

func main() {
	if err := compare(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "extismcompare:", err)
		os.Exit(1)
	}
}

// way is one way to run a job. It returns the result.
type way struct {
	run func() ([]byte, error)
	all []time.Duration // of a job, by round
}

func compare(ctx context.Context) error {
	extism.SetLogLevel(extism.LogLevelOff)
	vowels, err := sdkPlugin("count_vowels")
	if err != nil {
		return err
	}
	fmt.Printf("one job of 1 KiB, median of %d rounds of %s, µs (ratio to wasmsidecar)\n\n", rounds, round)
	fmt.Printf("%-22s %14s %24s %20s %20s\n", "plug-in", "wasmsidecar", "SDK, instance per job", "and with a timeout", "SDK, one instance")
	slow := 0
	for _, p := range []struct {
		name, function string
		wasm           []byte
	}{
		{"upper-extism (C)", "shout", guests.Bytes("upper-extism")},
		{"count_vowels (Rust)", "count_vowels", vowels},
	} {
		ways, end, err := waysOf(ctx, p.function, p.wasm, []byte(strings.Repeat("hello wasm, ", 85)+"0123"))
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		err = measure(ways)
		end()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		ours := ways[0].median()
		row := fmt.Sprintf("%-22s %14.1f", p.name, micros(ours))
		for i, w := range ways[1:] {
			width := []int{24, 20, 20}[i]
			row += fmt.Sprintf(" %*s", width, fmt.Sprintf("%.1f (%.1f)", micros(w.median()), float64(w.median())/float64(ours)))
		}
		fmt.Println(row)
		if ways[1].median() < enough*ours {
			slow++
		}
	}
	if slow > 0 {
		return fmt.Errorf("%d plug-ins are not %d times as fast as under the SDK with an instance for each job", slow, enough)
	}
	return nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// waysOf returns wasmsidecar with everything on that is on by default, and the SDK as its documentation has it: compiled once with
// an instance for each job, the same with a timeout, and one instance for all jobs, which keeps what they leave.
func waysOf(ctx context.Context, function string, wasm, in []byte) (ways []*way, end func(), err error) {
	engine, err := runtime.New(runtime.Config{})
	if err != nil {
		return nil, nil, err
	}
	closers := []func(context.Context) error{engine.Close}
	end = func() {
		for _, f := range slices.Backward(closers) {
			_ = f(ctx)
		}
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	m, err := engine.Load(ctx, runtime.ModuleConfig{Name: "plug-in", Wasm: wasm, Function: function})
	if err != nil {
		return nil, nil, err
	}
	ways = append(ways, &way{run: func() ([]byte, error) {
		r, err := m.Run(ctx, &job.Job{ID: "j", Attempt: 1, Body: in})
		if err != nil {
			return nil, err
		}
		return r.Body, nil
	}})
	for _, timeout := range []uint64{0, 10_000} {
		c, err := extism.NewCompiledPlugin(ctx, extism.Manifest{Wasm: []extism.Wasm{extism.WasmData{Data: wasm}}, Timeout: timeout}, extism.PluginConfig{EnableWasi: true}, nil)
		if err != nil {
			return nil, nil, err
		}
		closers = append(closers, c.Close)
		ways = append(ways, &way{run: func() (out []byte, err error) {
			p, err := c.Instance(ctx, extism.PluginInstanceConfig{})
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, p.Close(ctx)) }()
			_, out, err = p.Call(function, in)
			return out, err
		}})
	}
	p, err := extism.NewPlugin(ctx, extism.Manifest{Wasm: []extism.Wasm{extism.WasmData{Data: wasm}}}, extism.PluginConfig{EnableWasi: true}, nil)
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, p.Close)
	return append(ways, &way{run: func() ([]byte, error) {
		_, out, err := p.Call(function, in)
		return out, err
	}}), end, nil
}

// measure runs all ways by turns, so that what else the machine does falls on each of them.
func measure(ways []*way) error {
	want, err := ways[0].run()
	if err != nil {
		return err
	}
	for i, w := range ways[1:3] { // one instance goes on counting
		if got, err := w.run(); err != nil || string(got) != string(want) {
			return fmt.Errorf("way %d answers %q, %v; want %q", i+1, got, err, want)
		}
	}
	for range rounds {
		for _, w := range ways {
			begin, n := time.Now(), 0
			for time.Since(begin) < round {
				if _, err := w.run(); err != nil {
					return err
				}
				n++
			}
			w.all = append(w.all, time.Since(begin)/time.Duration(n))
		}
	}
	return nil
}

func (w *way) median() time.Duration {
	slices.Sort(w.all)
	return w.all[len(w.all)/2]
}

// sdkPlugin returns a plug-in that comes with the SDK's module.
func sdkPlugin(name string) ([]byte, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/extism/go-sdk").Output()
	if err != nil {
		return nil, fmt.Errorf("find the SDK's module: %w", err)
	}
	return os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "wasm", name+".wasm"))
}
