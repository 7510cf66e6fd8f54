package jetstream

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestRequestIsAnsweredByTheResult(t *testing.T) {
	t.Parallel()
	srv := embed(t, EmbedConfig{Listen: "127.0.0.1:0"})
	tr := open(t, dial(t, srv.ConnectConfig()))
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs.*"}})
	serving, err := tr.ServeRequests(t.Context(), "jobs.*")
	if err != nil {
		t.Fatal(err)
	}
	s := consume(t, tr, transport.SourceConfig{Subject: "jobs.*"})
	go func() {
		ds, err := s.Fetch(t.Context(), 1)
		if err != nil || len(ds) != 1 {
			return
		}
		m := ds[0].Message()
		reply := &transport.Message{Subject: m.Header.Get("Reply-To"), Body: append([]byte("re: "+m.Subject+" "), m.Body...)}
		reply.Header = job.Header{{Name: "X-Own", Value: m.Header.Get("x-own")}}
		if err := tr.Replier().Publish(t.Context(), reply); err == nil {
			ds[0].Ack()
		}
	}()
	nc := dial(t, ConnectConfig{URLs: []string{srv.ClientURL()}})
	answer, err := nc.RequestMsg(&nats.Msg{
		Subject: "request.jobs.echo", Data: []byte("hi"), Header: nats.Header{"X-Own": {"kept"}, "reply-to": {"another"}},
	}, within)
	if err != nil {
		t.Fatal(err)
	}
	if string(answer.Data) != "re: jobs.echo hi" || answer.Header.Get("X-Own") != "kept" {
		t.Errorf("answer %q %v", answer.Data, answer.Header)
	}
	if err := serving.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Request("request.jobs.echo", nil, within); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("request after Close: %v", err)
	}
}

// Many that ask at once are all heard, though they come faster than they are stored.
func TestManyRequestsAtOnce(t *testing.T) {
	t.Parallel()
	const n = 10_000
	srv := embed(t, EmbedConfig{Listen: "127.0.0.1:0"})
	tr := open(t, dial(t, srv.ConnectConfig()))
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	serving, err := tr.ServeRequests(t.Context(), "jobs")
	if err != nil {
		t.Fatal(err)
	}
	for range requestsAtOnce { // as if that many were being stored
		serving.(*requests).slots <- struct{}{}
	}
	nc := dial(t, ConnectConfig{URLs: []string{srv.ClientURL()}})
	for range n {
		if err := nc.Publish("request.jobs", []byte("hi")); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "all requests wait", func() bool { // one is in the hand of whoever waits for a slot
		waiting, _, err := serving.(*requests).sub.Pending()
		dropped, derr := serving.(*requests).sub.Dropped()
		if err != nil || derr != nil || dropped > 0 {
			t.Fatalf("%d requests were dropped: %v, %v", dropped, err, derr)
		}
		return waiting >= n-1
	})
	for range requestsAtOnce {
		<-serving.(*requests).slots
	}
	if err := serving.Close(); err != nil {
		t.Error(err)
	}
}

func TestRequestThatCannotBeStored(t *testing.T) {
	t.Parallel()
	tr := local(t)
	if _, err := tr.ServeRequests(t.Context(), "nothing"); err != nil {
		t.Fatal(err)
	}
	answer, err := tr.nc.Request("request.nothing", []byte("hi"), within)
	if err != nil {
		t.Fatal(err)
	}
	var problem struct{ Type, Title, Detail, Kind string }
	if err := json.Unmarshal(answer.Data, &problem); err != nil {
		t.Fatal(err)
	}
	if answer.Header.Get("Wasm-Ok") != "false" || problem.Kind != "invalid" || !strings.Contains(problem.Detail, `no stream holds subject "nothing"`) {
		t.Errorf("answer %v %s", answer.Header, answer.Data)
	}
}

func TestReplierStoresWhatAStreamHolds(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sinks: []string{"answers"}})
	if err := tr.Replier().Publish(t.Context(),
		&transport.Message{Subject: "answers", Body: []byte("stored")},
		&transport.Message{Subject: "_INBOX.nobody", Body: []byte("lost")},
		&transport.Message{Subject: "unheld", Body: []byte("lost")}); err != nil {
		t.Fatal(err)
	}
	tail, err := tr.Tail(t.Context(), "answers", true)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	if m, err := tail.Next(t.Context()); err != nil || string(m.Body) != "stored" {
		t.Errorf("%v %v", m, err)
	}
	for name, m := range map[string]*transport.Message{
		"two words":   {Subject: "two words"},
		"no subject":  {},
		"bad header":  {Subject: "_INBOX.x", Header: job.Header{{Name: "a:b", Value: "c"}}},
		"control":     {Subject: "_INBOX.x\r\n"},
		"empty token": {Subject: "_INBOX..x"},
	} {
		if err := tr.Replier().Publish(t.Context(), m); !errors.Is(err, transport.ErrRejected) {
			t.Errorf("%s: %v", name, err)
		}
	}
	large := &transport.Message{Subject: "_INBOX.x", Body: make([]byte, 2<<20)}
	if err := tr.Replier().Publish(t.Context(), large); !errors.Is(err, transport.ErrTooLarge) {
		t.Errorf("large: %v", err)
	}
}

func TestTailOfAWorkQueue(t *testing.T) {
	t.Parallel()
	tr := local(t)
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs.*"}})
	publish(t, tr, "jobs.a", "1", "2")
	for _, c := range []struct {
		fromStart bool
		want      string
	}{{true, "1 2 3"}, {false, "3"}} {
		tail, err := tr.Tail(t.Context(), "jobs.*", c.fromStart)
		if err != nil {
			t.Fatal(err)
		}
		publish(t, tr, "jobs.b", "3")
		var got []string
		for range strings.Fields(c.want) {
			m, err := tail.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(m.Body))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("got %v, want %s", got, c.want)
		}
		time.AfterFunc(20*time.Millisecond, func() { _ = tail.Close() })
		if _, err := tail.Next(t.Context()); !errors.Is(err, transport.ErrClosed) {
			t.Errorf("Next after Close: %v", err)
		}
	}
	if _, err := tr.Tail(t.Context(), "nothing", true); !errors.Is(err, transport.ErrRejected) {
		t.Errorf("tail of what no stream holds: %v", err)
	}
}
