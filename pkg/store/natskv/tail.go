package natskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
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

// tail follows subjects of the stream in order, through lost connections and lost consumers.
type tail struct {
	store   *Store
	filters []string
	all     bool // begin with what is there, else with what comes
	headers bool // leave out the bodies
	// handle gets every message, from one goroutine.
	handle func(m *nats.Msg, meta *nats.MsgMetadata)
	// resumed is called before the first message after a break. If whole is true, what is there is told again, because the break
	// was long or the stream is another one; otherwise it goes on where it stopped, and what was deleted or written over meanwhile
	// is told only as it stands now.
	resumed func(whole bool)
	// idle, which may be nil, is called now and then while there is nothing to tell.
	idle func()

	sub      *nats.Subscription
	name     string
	pending  uint64 // messages that were there when the consumer was made
	consumed uint64 // messages of this consumer so far
	seq      uint64 // stream sequence up to which everything was handled
	created  int64  // which stream that was; see keeper
	heard    time.Time
	epoch    int64
}

// start makes the consumer, which goes on where an earlier one stopped. When it returns, everything written from then on will be told;
// whole is as resumed has it.
func (t *tail) start(ctx context.Context) (whole bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := t.store.look(ctx)
	if err != nil {
		return false, err
	}
	created := info.Created.UnixNano()
	another := t.created != 0 && t.created != created
	// A deletion is remembered for a while only. Whoever was away for long begins anew.
	whole = another || t.all && (t.seq == 0 || time.Since(t.heard) > goneTTL/2)
	from := t.seq + 1
	switch {
	case another && !t.all:
		from = 1 // nothing was told of this stream yet
	case whole, t.seq == 0:
		from = 0
	}
	if err := t.consume(ctx, from); err != nil {
		return false, err
	}
	// The consumer may be one of a stream that was made between.
	if info, err = t.store.look(ctx); err == nil && info.Created.UnixNano() != created {
		err = errors.New("the stream was made again meanwhile")
	}
	if err != nil {
		t.drop()
		return false, err
	}
	t.created = created
	return whole, nil
}

// consume makes a consumer from a sequence on; 0 stands for the beginning.
func (t *tail) consume(ctx context.Context, from uint64) error {
	s := t.store
	t.epoch = s.mux.epoch.Load()
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
	config := map[string]any{
		"name": name, "deliver_subject": inbox, "ack_policy": "none", "max_deliver": 1, "replay_policy": "instant",
		"flow_control": true, "idle_heartbeat": heartbeat, "inactive_threshold": consumerTTL, "mem_storage": true, "num_replicas": 1,
		"headers_only": t.headers, "filter_subjects": t.filters,
	}
	switch {
	case from > 0:
		config["deliver_policy"], config["opt_start_seq"] = "by_start_sequence", from
	case t.all:
		config["deliver_policy"] = "last_per_subject"
	default:
		config["deliver_policy"] = "new"
	}
	body, err := json.Marshal(map[string]any{"stream_name": s.cfg.Stream, "config": config})
	if err != nil {
		_ = sub.Unsubscribe()
		return err
	}
	replies, err := s.request(ctx, nil, &nats.Msg{Subject: "$JS.API.CONSUMER.CREATE." + s.cfg.Stream + "." + name, Data: body})
	var r struct {
		Error   *apiError `json:"error"`
		Pending uint64    `json:"num_pending"`
		Deliver struct {
			Stream uint64 `json:"stream_seq"`
		} `json:"delivered"`
	}
	if err == nil {
		err = json.Unmarshal(replies[0].Data, &r)
	}
	if err == nil && r.Error != nil {
		err = r.Error
	}
	if err != nil {
		_ = sub.Unsubscribe()
		return fmt.Errorf("create consumer: %w", err)
	}
	t.sub, t.name, t.pending, t.consumed, t.heard = sub, name, r.Pending, 0, time.Now()
	switch {
	case !t.all && from <= 1:
		t.seq = r.Deliver.Stream
	case from == 0:
		t.seq = 0
	}
	return nil
}

// run tells messages until ctx ends.
func (t *tail) run(ctx context.Context) {
	defer t.drop()
	for {
		t.follow(ctx)
		t.drop()
		for {
			if ctx.Err() != nil {
				return
			}
			whole, err := t.start(ctx)
			if err == nil {
				t.resumed(whole)
				break
			}
			t.store.cfg.Log.Debug("cannot follow the nats stream", "err", err)
			if pause(ctx, tailPause) != nil {
				return
			}
		}
	}
}

// follow tells messages until something was missed.
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
		if len(m.Data) == 0 && m.Header.Get("Status") == "100" {
			if !t.control(m) {
				return
			}
			continue
		}
		meta, err := m.Metadata()
		if err != nil || meta.Sequence.Consumer != t.consumed+1 {
			return
		}
		t.heard = time.Now()
		t.consumed = meta.Sequence.Consumer
		t.handle(m, meta)
		t.seq = meta.Sequence.Stream
	}
}

// control answers flow control and heartbeats; false means that messages were missed.
func (t *tail) control(m *nats.Msg) bool {
	t.heard = time.Now()
	if m.Reply != "" { // flow control: we have come this far
		_ = t.store.nc.Publish(m.Reply, nil) // if it is lost, heartbeats ask again
		return true
	}
	if t.idle != nil && m.Header.Get("Nats-Consumer-Stalled") == "" {
		t.idle()
	}
	if stalled := m.Header.Get("Nats-Consumer-Stalled"); stalled != "" {
		_ = t.store.nc.Publish(stalled, nil)
	}
	if last := m.Header.Get("Nats-Last-Consumer"); last != "" && last != strconv.FormatUint(t.consumed, 10) {
		return false
	}
	return true
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

// gone says whether m says that what its subject names was deleted.
func gone(m *nats.Msg) bool { return m.Header.Get(headerOperation) != "" }

// lifetime returns the TTL of a message; 0 means that it stays.
func lifetime(m *nats.Msg) time.Duration {
	n, err := strconv.ParseInt(strings.TrimSpace(m.Header.Get(headerTTL)), 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}
