// Command panic-reactor panics, through the native ABI, where there is something in its input.
//
//	GOOS=wasip1 GOARCH=wasm go build -trimpath -buildmode=c-shared -ldflags='-s -w' -o panic-reactor.wasm ./examples/guests/panic-reactor
package main

import "github.com/wasmsidecar/wasmsidecar/pkg/guest"

func init() {
	guest.Handle(func(in []byte) ([]byte, error) {
		if len(in) > 0 {
			panic("given " + string(in))
		}
		return []byte("fine"), nil
	})
}

func main() {} // never called
