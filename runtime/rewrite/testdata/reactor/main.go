// Command reactor is a guest with a garbage collector and a large runtime: it parses JSON and writes some.
package main

import "encoding/json"

type job struct {
	ID     int   `json:"id"`
	Values []int `json:"values"`
}

//go:wasmexport handle
func handle(n uint32) uint32 {
	in := job{ID: int(n)}
	for i := range 200 {
		in.Values = append(in.Values, 1000+i)
	}
	b, err := json.Marshal(in)
	if err != nil {
		panic(err)
	}
	var out job
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	sum := 0
	for _, v := range out.Values {
		sum += v
	}
	return uint32(sum)
}

func main() {}
