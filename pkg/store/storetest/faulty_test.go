package storetest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/memkv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/storetest"
)

func TestFaulty(t *testing.T) {
	t.Parallel()
	m, err := memkv.Open(memkv.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f := storetest.NewFaulty(m)
	boom := errors.New("boom")
	put := func(key string) error {
		_, err := f.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put(key, []byte("v"), 0)}})
		return err
	}
	exists := func(key string) bool {
		kv, err := store.Get(t.Context(), m, key)
		if err != nil {
			t.Fatal(err)
		}
		return kv.Exists()
	}
	f.FailNext(2, boom)
	f.LoseReply(3)
	for i, want := range []error{nil, boom, storetest.ErrLost, nil} {
		key := "p/" + string(rune('a'+i))
		if err := put(key); !errors.Is(err, want) {
			t.Fatalf("call %d: error %v, want %v", i+1, err, want)
		}
		if exists(key) != (want == nil || errors.Is(want, storetest.ErrLost)) {
			t.Fatalf("call %d: key exists is %v with error %v", i+1, exists(key), want)
		}
	}
	isX := storetest.Puts(func(key string, _ []byte) bool { return key == "p/x" })
	f.FailWhen(isX, 1, boom)
	hooked := 0
	f.Before(storetest.Writes, 1, func(context.Context, store.Txn) error { hooked++; return nil })
	if err := put("p/y"); err != nil {
		t.Fatalf("a call that does not match: %v", err)
	}
	if err := put("p/x"); !errors.Is(err, boom) || exists("p/x") {
		t.Fatalf("a call that matches: %v", err)
	}
	if err := put("p/x"); err != nil {
		t.Fatalf("the fault came twice: %v", err)
	}
	if hooked != 1 || f.Calls() != 7 {
		t.Fatalf("hook ran %d times, %d calls; want 1 and 7", hooked, f.Calls())
	}
}
