// Command upper-reactor answers with its input in upper case, through the native ABI from Go.
//
//	GOOS=wasip1 GOARCH=wasm go build -trimpath -buildmode=c-shared -ldflags='-s -w' -o upper-reactor.wasm ./examples/guests/upper-reactor
package main

import (
	"bytes"
	"errors"

	"github.com/wasmsidecar/wasmsidecar/pkg/guest"
)

func init() {
	guest.Handle(func(in []byte) ([]byte, error) {
		if len(in) == 0 {
			return nil, errors.New("nothing to do")
		}
		if t := guest.Header("Content-Type"); t != "" {
			guest.SetHeader("Content-Type", t)
		}
		return bytes.ToUpper(in), nil
	})
}

func main() {} // never called
