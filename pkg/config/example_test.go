package config_test

import (
	"fmt"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
)

func ExampleParse() {
	file := `
transport: redis
redis: {addr: "${REDIS_ADDR:-localhost:6379}"}
modules:
  resize: {source: guests/resize.wasm, limits: {memory: 128MiB}}
routes:
  - {from: jobs, module: resize, to: results}
`
	c, err := config.Parse("sidecar.yaml", []byte(file), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	route := c.Routes[0]
	fmt.Println(c.Store, c.Redis.Addrs[0])
	fmt.Println(route.Name, route.DeadLetter, route.Concurrency, route.Retry.MaxAttempts)
	fmt.Println(c.Modules[route.Module].Limits.Memory)
	// Output:
	// redis localhost:6379
	// jobs jobs_dlq 64 3
	// 128MiB
}

func ExampleError() {
	file := `
transport: kafka
store: redis
kafka: {broker: ["localhost:9092"], group: "${GROUP}"}
modules:
  resize: {source: guests/resize.wasm}
routes:
  - {from: jobs, module: rezise, concurrency: 10000}
`
	_, err := config.Parse("kafka.yaml", []byte(file), nil)
	fmt.Println(err)
	// Output:
	// kafka.yaml:4:9: unknown key "broker"; did you mean "brokers"?
	// kafka.yaml:4:44: environment variable GROUP is not set; set it, or write ${GROUP:-default}
	// kafka.yaml:8:26: routes[0].module: there is no module "rezise"; did you mean "resize"?
	// kafka.yaml:8:47: routes[0].concurrency: 10000 is too large; the most is 4096
}
