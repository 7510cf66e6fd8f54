package runtime_test

import (
	"context"
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/examples/guests"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

func ExampleEngine() {
	ctx := context.Background()
	engine, err := runtime.New(runtime.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = engine.Close(ctx) }()
	for _, name := range []string{"upper", "trap"} {
		module, err := engine.Load(ctx, runtime.ModuleConfig{Name: name, Wasm: guests.Bytes(name)})
		if err != nil {
			fmt.Println(err)
			return
		}
		result, err := module.Run(ctx, &job.Job{ID: "1", Body: []byte("hello")})
		if err != nil {
			fmt.Println(job.KindOf(err), "-", err)
			continue
		}
		fmt.Printf("%s\n", result.Body)
	}
	// Output:
	// HELLO
	// trap - module "trap": unreachable in handle
}
