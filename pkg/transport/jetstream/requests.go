package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

const (
	requestPrefix = "request."
	requestQueue  = "wasmsidecar"
	// requestsAtOnce is how many requests are being stored at once; more wait in the subscription, and beyond its bounds, in
	// number and in bytes, the client drops them, which their senders see as a timeout.
	requestsAtOnce = 256
	requestsWait   = 65_536
	requestBytes   = 64 << 20
)

// requests turns core requests into jobs.
type requests struct {
	t     *Transport
	sub   *nats.Subscription
	slots chan struct{}
	busy  sync.WaitGroup
	ended chan struct{}
	stop  context.CancelFunc
	once  sync.Once
	err   error
}

// ServeRequests makes jobs of requests. JetStream does not keep the reply subject of a message, so a request that is sent to the
// job subject itself is answered by the stream's acknowledgement and never by the result. A request to request.<subject> is
// stored at subject with its reply subject in the header Reply-To, where the result then goes; if it cannot be stored, it is
// answered at once with a problem (RFC 9457) and the header Wasm-Ok: false. Transports share the requests to one subject.
// subject may hold wildcards. Close the closer to stop; Transport.Close does so too.
func (t *Transport) ServeRequests(ctx context.Context, subject string) (io.Closer, error) {
	if err := transport.ValidPattern(subject); err != nil {
		return nil, fmt.Errorf("serve requests: %w: %w", err, transport.ErrRejected)
	}
	if err := t.open(); err != nil {
		return nil, err
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	r := &requests{t: t, slots: make(chan struct{}, requestsAtOnce), ended: make(chan struct{}), stop: stop}
	sub, err := t.nc.QueueSubscribe(requestPrefix+subject, requestQueue, func(m *nats.Msg) {
		r.slots <- struct{}{}
		r.busy.Add(1)
		go func() {
			defer r.busy.Done()
			defer func() { <-r.slots }()
			r.serve(work, m)
		}()
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("serve requests to %q: %w", requestPrefix+subject, classify(err))
	}
	r.sub = sub
	sub.SetClosedHandler(func(string) { close(r.ended) })
	if err := sub.SetPendingLimits(requestsWait, requestBytes); err != nil {
		stop()
		return nil, fmt.Errorf("serve requests to %q: %w", requestPrefix+subject, err)
	}
	t.mu.Lock()
	t.requests[r] = struct{}{}
	t.mu.Unlock()
	return r, nil
}

// serve stores one request.
func (r *requests) serve(ctx context.Context, m *nats.Msg) {
	out := &nats.Msg{Subject: strings.TrimPrefix(m.Subject, requestPrefix), Header: make(nats.Header, len(m.Header)+1), Data: m.Data}
	for name, values := range m.Header {
		out.Header[name] = values
	}
	if m.Reply != "" {
		for name := range out.Header {
			if strings.EqualFold(name, transport.HeaderReplyTo) {
				delete(out.Header, name)
			}
		}
		out.Header.Set(transport.HeaderReplyTo, m.Reply)
	}
	err := r.t.pub.publish(ctx, []*nats.Msg{out})
	if err == nil {
		return
	}
	r.t.log.Warn("a request was not stored", "subject", out.Subject, "err", err)
	if m.Reply == "" {
		return
	}
	kind, title := "unavailable", "the job could not be stored"
	if transport.Permanent(err) {
		kind = "invalid"
	}
	if errors.Is(err, transport.ErrTooLarge) {
		kind, title = "limit", "the job is too large"
	}
	body, jerr := json.Marshal(map[string]any{"type": "about:blank", "title": title, "detail": err.Error(), "kind": kind, "attempts": 0})
	if jerr != nil {
		return
	}
	answer := &nats.Msg{Subject: m.Reply, Data: body, Header: nats.Header{
		transport.HeaderOK: {"false"}, transport.HeaderKind: {kind}, transport.HeaderContentType: {"application/problem+json"},
	}}
	if err := r.t.nc.PublishMsg(answer); err != nil {
		r.t.log.Warn("a request stays unanswered", "subject", out.Subject, "err", err)
	}
}

// Close stops taking requests and waits for those that are being stored.
func (r *requests) Close() error {
	r.once.Do(func() {
		r.t.mu.Lock()
		delete(r.t.requests, r)
		r.t.mu.Unlock()
		if err := r.sub.Drain(); err != nil {
			if !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
				r.err = fmt.Errorf("stop serving requests to %q: %w", r.sub.Subject, err)
			}
		} else {
			select {
			case <-r.ended:
			case <-time.After(apiTimeout):
			}
		}
		r.busy.Wait()
		r.stop()
	})
	return r.err
}
