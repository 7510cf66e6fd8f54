package natskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// heartbeat is how often an idle consumer shows that it lives; after three that did not come it is made anew.
	heartbeat = 2 * time.Second
	// consumerTTL is how long the server keeps a consumer that nobody listens to.
	consumerTTL = 30 * time.Second
	// tailPoll is how soon a tail sees that the connection was lost.
	tailPoll = 100 * time.Millisecond
	// tailPause is the pause before a consumer is asked for again.
	tailPause = 200 * time.Millisecond
)

// tail follows the log through lost connections and lost consumers, and keeps the state. It goes on where the state is, or, where that
// cannot be, begins anew: the stream is another one, its beginning was purged beyond where we were, or it has lost its end.
type tail struct {
	store    *Store
	sub      *nats.Subscription
	name     string
	created  int64  // which stream it is; see keeper
	consumed uint64 // messages of this consumer so far
	again    bool   // the state is of no use
	heard    time.Time
	epoch    int64
}

// start makes the consumer.
func (t *tail) start(ctx context.Context) error {
	s := t.store
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	t.epoch = s.mux.epoch.Load()
	s.mu.Lock()
	applied := s.st.applied
	s.mu.Unlock()
	info, err := s.look(ctx)
	if err != nil {
		return err
	}
	created := info.Created.UnixNano()
	s.mu.Lock()
	if t.again || created != t.created || applied+1 < info.State.FirstSeq || applied > info.State.LastSeq {
		s.st = newState()
		s.st.applied, s.st.target = info.State.FirstSeq-1, info.State.LastSeq
		if info.State.Msgs == 0 {
			s.st.applied = info.State.LastSeq
		}
	}
	s.st.ready = s.st.applied >= s.st.target
	t.created, t.again = created, false
	from := s.st.applied + 1
	for f := range s.feeds {
		f.Send(store.Change{Resync: true})
	}
	s.wake()
	s.mu.Unlock()
	if err := t.consume(ctx, from); err != nil {
		return err
	}
	// The consumer may be one of a stream that was made between.
	if info, err = s.look(ctx); err == nil && info.Created.UnixNano() != created {
		err = errors.New("the stream was made again meanwhile")
	}
	if err != nil {
		t.drop()
	}
	return err
}

// consume makes a consumer from a sequence on.
func (t *tail) consume(ctx context.Context, from uint64) error {
	s := t.store
	inbox := s.nc.NewInbox()
	sub, err := s.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	// The server's flow control is the bound.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		_ = sub.Unsubscribe()
		return err
	}
	name := nuid.Next()
	body, err := json.Marshal(map[string]any{"stream_name": s.cfg.Stream, "config": map[string]any{
		"name": name, "deliver_subject": inbox, "ack_policy": "none", "max_deliver": 1, "replay_policy": "instant",
		"deliver_policy": "by_start_sequence", "opt_start_seq": from,
		"flow_control": true, "idle_heartbeat": heartbeat, "inactive_threshold": consumerTTL, "mem_storage": true, "num_replicas": 1,
	}})
	if err != nil {
		_ = sub.Unsubscribe()
		return err
	}
	if err := s.api(ctx, "CONSUMER.CREATE."+s.cfg.Stream+"."+name, body); err != nil {
		_ = sub.Unsubscribe()
		return fmt.Errorf("create consumer: %w", err)
	}
	t.sub, t.name, t.consumed, t.heard = sub, name, 0, time.Now()
	return nil
}

// run follows the log until ctx ends.
func (t *tail) run(ctx context.Context) {
	defer t.drop()
	for {
		t.follow(ctx)
		t.drop()
		for {
			if ctx.Err() != nil {
				return
			}
			err := t.start(ctx)
			if err == nil {
				break
			}
			t.store.cfg.Log.Debug("cannot follow the nats stream", "err", err)
			if pause(ctx, tailPause) != nil {
				return
			}
		}
	}
}

// follow takes in messages until something was missed.
func (t *tail) follow(ctx context.Context) {
	for ctx.Err() == nil {
		if t.store.mux.epoch.Load() != t.epoch || time.Since(t.heard) > 3*heartbeat {
			return
		}
		m, err := t.sub.NextMsg(tailPoll)
		if errors.Is(err, nats.ErrTimeout) {
			continue
		}
		if err != nil {
			return
		}
		t.heard = time.Now()
		if len(m.Data) == 0 && m.Header.Get("Status") == "100" {
			if !t.control(m) {
				return
			}
			continue
		}
		meta, err := m.Metadata()
		if err != nil || meta.Sequence.Consumer != t.consumed+1 || !t.take(meta, m.Data) {
			return
		}
		t.consumed = meta.Sequence.Consumer
	}
}

// take takes in one message; false means that some before it are missing.
func (t *tail) take(meta *nats.MsgMetadata, b []byte) bool {
	s := t.store
	s.clock.saw(meta.Timestamp)
	seq := meta.Sequence.Stream
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case seq <= s.st.applied: // our own, acknowledged before
		return true
	case seq != s.st.applied+1 && s.st.ready:
		// Between are messages that were purged, of which some may have undone what we know.
		t.again = true
		return false
	}
	s.apply(seq, meta.Timestamp, b)
	s.st.ready = s.st.ready || s.st.applied >= s.st.target
	return true
}

// control answers flow control and heartbeats; false means that messages were missed.
func (t *tail) control(m *nats.Msg) bool {
	if m.Reply != "" { // flow control: we have come this far
		_ = t.store.nc.Publish(m.Reply, nil) // if it is lost, heartbeats ask again
		return true
	}
	if stalled := m.Header.Get("Nats-Consumer-Stalled"); stalled != "" {
		_ = t.store.nc.Publish(stalled, nil)
	}
	last := m.Header.Get("Nats-Last-Consumer")
	return last == "" || last == strconv.FormatUint(t.consumed, 10)
}

// drop lets go of the consumer.
func (t *tail) drop() {
	if t.sub == nil {
		return
	}
	_ = t.sub.Unsubscribe() // fails only if the connection is closed
	// Nobody waits for the answer: the server forgets the consumer anyway, a little later.
	_ = t.store.nc.Publish("$JS.API.CONSUMER.DELETE."+t.store.cfg.Stream+"."+t.name, nil)
	t.sub = nil
}
