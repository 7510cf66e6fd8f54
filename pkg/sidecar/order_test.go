package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/memkv"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport/inmem"
)

// cutStore is a store that can be out of reach.
type cutStore struct {
	store.Store
	cut atomic.Bool
}

// Txn fails while the store is out of reach.
func (s *cutStore) Txn(ctx context.Context, t store.Txn) (store.Reply, error) {
	if s.cut.Load() {
		return store.Reply{}, errors.New("out of reach")
	}
	return s.Store.Txn(ctx, t)
}

// turnsTest is a subject and a store that several sidecars share, in simulated time.
type turnsTest struct {
	t      *testing.T
	broker *inmem.Broker
	store  store.Store
}

func newTurnsTest(t *testing.T) *turnsTest {
	broker, err := inmem.NewBroker(inmem.Config{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := memkv.Open(memkv.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return &turnsTest{t, broker, st}
}

// sidecar opens the route in one more sidecar.
func (x *turnsTest) sidecar() (transport.Source, *cutStore) {
	tr := x.broker.Open()
	open := func(ctx context.Context) (transport.Source, error) {
		return tr.Source(ctx, transport.SourceConfig{Route: "r", Subject: "jobs", Limit: 100, Lease: 24 * time.Hour, Sole: true})
	}
	st := &cutStore{Store: x.store}
	cfg := turnConfig{Route: "r", Key: store.Key("jobs", "order", "r"), Lease: 30 * time.Second, Log: slog.New(slog.DiscardHandler)}
	s, err := inTurn(open, st, cfg)(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			x.t.Error(err)
		}
	})
	return s, st
}

func (x *turnsTest) publish(bodies ...string) {
	tr := x.broker.Open()
	for _, b := range bodies {
		if err := tr.Publisher().Publish(x.t.Context(), &transport.Message{Subject: "jobs", Key: []byte("k"), Body: []byte(b)}); err != nil {
			x.t.Fatal(err)
		}
	}
}

// next returns the next message of s, or "" when none comes within d.
func (x *turnsTest) next(s transport.Source, d time.Duration) (string, transport.Delivery) {
	ctx, cancel := context.WithTimeout(x.t.Context(), d)
	defer cancel()
	for {
		ds, err := s.Fetch(ctx, 1)
		switch {
		case len(ds) > 0:
			return string(ds[0].Message().Body), ds[0]
		case ctx.Err() != nil:
			return "", nil
		case err != nil:
			time.Sleep(time.Second) // as the window pauses
		}
	}
}

func (x *turnsTest) want(s transport.Source, d time.Duration, body string) transport.Delivery {
	x.t.Helper()
	got, del := x.next(s, d)
	if got != body {
		x.t.Fatalf("got %q, want %q", got, body)
	}
	return del
}

// One sidecar at a time keeps a route's order; when it closes, another goes on at once.
func TestOrderIsHandedOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newTurnsTest(t)
		a, _ := x.sidecar()
		b, _ := x.sidecar()
		x.publish("1", "2", "3")
		x.want(a, time.Second, "1").Ack()
		held := x.want(a, time.Second, "2")
		x.want(b, 5*time.Minute, "") // stands by, however long
		if held.Lost() {
			t.Error("the keeper of the order has lost a delivery")
		}
		held.Release()
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		x.want(b, time.Minute, "2").Ack()
		x.want(b, time.Minute, "3").Ack()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("taken over after %v", took)
		}
	})
}

// A keeper that cannot renew its lease has lost everything before another begins.
func TestOrderPassesWithTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newTurnsTest(t)
		a, st := x.sidecar()
		b, _ := x.sidecar()
		x.publish("1", "2")
		held := x.want(a, time.Second, "1")
		st.cut.Store(true)
		var lostAt atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			for !held.Lost() {
				time.Sleep(100 * time.Millisecond)
			}
			lostAt.Store(time.Now().UnixNano())
		})
		began := time.Now()
		d := x.want(b, time.Minute, "1")
		if at := lostAt.Load(); at == 0 || at >= time.Now().UnixNano() {
			t.Error("two sidecars had the route's order at once")
		}
		if took := time.Since(began); took > 35*time.Second {
			t.Errorf("taken over after %v", took)
		}
		wg.Wait()
		st.cut.Store(false)
		x.want(a, time.Minute, "") // stands by
		held.Ack()                 // without effect
		d.Ack()
		x.want(b, time.Second, "2").Ack()
		if n := x.broker.Held("jobs"); n != 0 {
			t.Errorf("%d messages are held", n)
		}
	})
}

// The store may be away for less than the lease; a lost answer to a renewal costs nothing.
func TestOrderOutlivesShortOutages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newTurnsTest(t)
		a, st := x.sidecar()
		x.publish("1")
		held := x.want(a, time.Second, "1")
		for range 20 {
			st.cut.Store(true)
			time.Sleep(9 * time.Second)
			st.cut.Store(false)
			time.Sleep(11 * time.Second)
			if err := a.Extend(t.Context(), []transport.Delivery{held}); err != nil {
				t.Fatal(err)
			}
			if held.Lost() {
				t.Fatal("the order was lost")
			}
		}
		held.Ack()
	})
}

// The order's lease is wanted by as many sidecars as there are; only ever one has it.
func TestOrderHasOneKeeper(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newTurnsTest(t)
		var wg sync.WaitGroup
		var order []string
		var mu sync.Mutex
		for range 5 {
			s, _ := x.sidecar()
			wg.Go(func() {
				for range 8 {
					body, d := x.next(s, 3*time.Second)
					if d == nil {
						continue
					}
					mu.Lock()
					order = append(order, body)
					mu.Unlock()
					d.Ack()
					if err := s.Close(t.Context()); err != nil {
						t.Error(err)
					}
					return
				}
			})
		}
		x.publish("0", "1", "2", "3", "4")
		wg.Wait()
		if got := fmt.Sprint(order); got != "[0 1 2 3 4]" {
			t.Errorf("order %s", got)
		}
	})
}
