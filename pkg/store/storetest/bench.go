package storetest

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

// Bench measures what a job costs its store: a claim of 300 bytes that expires, and the same followed by a completion.
func Bench(b *testing.B, open func(t testing.TB) store.Store) {
	value := bytes.Repeat([]byte("v"), 300)
	for _, workers := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("claim/%d", workers), func(b *testing.B) {
			s := open(b)
			bench(b, workers, func(n int) error { _, err := claim(b, s, n, value); return err })
		})
		b.Run(fmt.Sprintf("claim+complete/%d", workers), func(b *testing.B) {
			s := open(b)
			bench(b, workers, func(n int) error {
				rev, err := claim(b, s, n, value)
				if err != nil {
					return err
				}
				return complete(b, s, n, rev, value)
			})
		})
	}
	b.Run("claim+complete+index/64", func(b *testing.B) {
		s := open(b)
		bench(b, 64, func(n int) error {
			rev, err := claim(b, s, n, value)
			if err != nil {
				return err
			}
			return complete(b, s, n, rev, value, store.Add("jobs/done", strconv.Itoa(n), int64(n)))
		})
	})
}

func claim(b *testing.B, s store.Store, n int, value []byte) (int64, error) {
	key := "jobs/job/" + strconv.Itoa(n)
	r, err := s.Txn(b.Context(), store.Txn{
		If:   []store.Cond{{Key: key}},
		Then: []store.Op{store.Put(key, value, time.Minute)},
		Read: []string{key},
	})
	if err == nil && !r.Done {
		err = fmt.Errorf("claim of %s was refused", key)
	}
	return r.Revision, err
}

func complete(b *testing.B, s store.Store, n int, rev int64, value []byte, more ...store.Op) error {
	key := "jobs/job/" + strconv.Itoa(n)
	r, err := s.Txn(b.Context(), store.Txn{
		If:   []store.Cond{{Key: key, Revision: rev}},
		Then: append([]store.Op{store.Put(key, value, time.Hour)}, more...),
	})
	if err == nil && !r.Done {
		err = fmt.Errorf("completion of %s was refused", key)
	}
	return err
}

func bench(b *testing.B, workers int, one func(n int) error) {
	b.ResetTimer()
	var at atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for n := int(at.Add(1)); n <= b.N; n = int(at.Add(1)) {
				if err := one(n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}
