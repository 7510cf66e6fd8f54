// Command upper-go is a program as any other: it writes its input in upper case.
//
//	GOOS=wasip1 GOARCH=wasm go build -trimpath -ldflags='-s -w' -o upper-go.wasm ./examples/guests/upper-go
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

func main() {
	in, err := io.ReadAll(os.Stdin)
	if err == nil {
		_, err = os.Stdout.Write(bytes.ToUpper(in))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(75)
	}
}
