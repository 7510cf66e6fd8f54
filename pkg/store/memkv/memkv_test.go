package memkv_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/memkv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, cfg memkv.Config) store.Store {
	t.Helper()
	s, err := memkv.Open(cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.Harness{
		Open:     func(t testing.TB) store.Store { return open(t, memkv.Config{}) },
		Full:     func(t testing.TB) store.Store { return open(t, memkv.Config{MaxBytes: 4 << 20}) },
		Features: storetest.Features{TTL: 50 * time.Millisecond},
	})
}

func TestOpenRefusesNegativeBound(t *testing.T) {
	t.Parallel()
	if _, err := memkv.Open(memkv.Config{MaxBytes: -1}); err == nil {
		t.Fatal("a negative bound was taken")
	}
}

// Expiry follows the bubble's clock to the nanosecond, and what expired frees its memory.
func TestExpiryUnderSynctest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, memkv.Config{MaxBytes: 20_000})
		w, err := s.Watch(t.Context(), "p/")
		if err != nil {
			t.Fatal(err)
		}
		for round := range 50 {
			for i := range 10 {
				r, err := s.Txn(t.Context(), store.Txn{
					If:   []store.Cond{{Key: "p/" + strconv.Itoa(i)}},
					Then: []store.Op{store.Put("p/"+strconv.Itoa(i), make([]byte, 1000), time.Duration(10-i)*time.Hour)},
				})
				if err != nil || !r.Done {
					t.Fatalf("round %d: done %v, %v", round, r.Done, err)
				}
				<-w.Changes()
			}
			begin := time.Now()
			for i := range 10 {
				c := <-w.Changes()
				if want := "p/" + strconv.Itoa(9-i); !c.Deleted || c.KV.Key != want {
					t.Fatalf("change %+v, want deletion of %s", c, want)
				}
				if at := time.Since(begin); at != time.Duration(i+1)*time.Hour {
					t.Fatalf("expired after %v, want %d h", at, i+1)
				}
			}
		}
	})
}

func BenchmarkTxn(b *testing.B) {
	storetest.Bench(b, func(t testing.TB) store.Store { return open(t, memkv.Config{}) })
}
