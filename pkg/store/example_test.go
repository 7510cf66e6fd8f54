package store_test

import (
	"context"
	"fmt"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/memkv"
)

// A job is claimed by one of several workers; the revision of the claim is its fencing token.
func Example() {
	s, err := memkv.Open(memkv.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	ctx := context.Background()
	key := store.Key("orders", "job", "17")

	claim := func(worker string) store.Reply {
		r, err := s.Txn(ctx, store.Txn{
			If:   []store.Cond{{Key: key}}, // nobody has it
			Then: []store.Op{store.Put(key, []byte(worker), 30*time.Second), store.Add(store.Key("orders", "running"), "17", 1)},
			Read: []string{key},
		})
		if err != nil {
			fmt.Println(err)
		}
		return r
	}
	first := claim("anna")
	second := claim("ben")
	fmt.Println("anna:", first.Done)
	fmt.Printf("ben: %v, it belongs to %s\n", second.Done, second.Read[0].Value)

	// The result is written only if the claim still stands.
	r, err := s.Txn(ctx, store.Txn{
		If:   []store.Cond{{Key: key, Revision: first.Revision}},
		Then: []store.Op{store.Put(key, []byte("done"), 24*time.Hour), store.Remove(store.Key("orders", "running"), "17")},
	})
	fmt.Println("completed:", r.Done, err)
	// Output:
	// anna: true
	// ben: false, it belongs to anna
	// completed: true <nil>
}
