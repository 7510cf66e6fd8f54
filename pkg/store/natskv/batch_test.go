package natskv

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A server that calls every batch incomplete, as one does whose disk is full, is not asked without end; one that takes the batch after
// a while is.
func TestBatchThatIsNotTaken(t *testing.T) {
	t.Parallel()
	srv, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("nats server does not start")
	}
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	var batches, taken atomic.Int64
	_, err = nc.Subscribe("stream.>", func(m *nats.Msg) {
		if m.Reply == "" {
			return
		}
		answer := `{"error":{"code":400,"err_code":10176,"description":"atomic publish batch is incomplete"}}`
		if n := taken.Load(); batches.Add(1) == n {
			answer = `{"stream":"s","seq":7}`
		}
		_ = m.Respond([]byte(answer))
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &Store{id: "id"}
	s.ctx, s.stop = context.WithCancel(t.Context())
	defer s.stop()
	if s.mux, err = newMux(nc, func() {}); err != nil {
		t.Fatal(err)
	}
	defer s.mux.close()
	batch := func() []*member {
		return []*member{{msgs: []*nats.Msg{nats.NewMsg("stream.a"), nats.NewMsg("stream.b")}}}
	}
	g := group{store: s, patience: 200 * time.Millisecond}
	var api *apiError
	if _, err = g.write(batch()); !errors.As(err, &api) || api.ErrCode != codeBatchIncomplete || batches.Load() < 2 {
		t.Errorf("%d batches, error %v", batches.Load(), err)
	}
	g.patience = time.Minute
	taken.Store(batches.Load() + 3)
	if seq, err := g.write(batch()); err != nil || seq != 7 {
		t.Errorf("sequence %d, %v", seq, err)
	}
}
