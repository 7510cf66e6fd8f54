package natskv

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/store"
)

const (
	// requestTimeout bounds a request whose caller set no bound.
	requestTimeout = 10 * time.Second
	// slowReply is after how long a reply that does not come casts doubt on the stream.
	slowReply = time.Second
)

var (
	errDisconnected = errors.New("connection lost before the reply")
	errNoReply      = errors.New("no reply")
)

// mux carries all requests of a store over one subscription, as many at once as come: replies find their way by the last token
// of their subject.
type mux struct {
	nc     *nats.Conn
	prefix string
	sub    *nats.Subscription
	status chan nats.Status
	slow   func()       // called when a reply takes long
	epoch  atomic.Int64 // grows whenever the connection was lost
	wg     sync.WaitGroup

	mu      sync.Mutex
	next    uint64
	waiting map[string]*exchange
	closed  bool
}

// exchange is a request that waits for its reply.
type exchange struct {
	reply *nats.Msg
	done  chan error
}

func newMux(nc *nats.Conn, slow func()) (*mux, error) {
	m := &mux{nc: nc, slow: slow, prefix: nc.NewInbox() + ".", waiting: make(map[string]*exchange)}
	sub, err := nc.Subscribe(m.prefix+"*", m.reply)
	if err != nil {
		return nil, fmt.Errorf("subscribe to replies: %w", err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, fmt.Errorf("subscribe to replies: %w", err)
	}
	m.sub = sub
	m.status = nc.StatusChanged(nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	m.wg.Go(func() {
		for range m.status {
			m.epoch.Add(1)
			m.failAll(errDisconnected)
		}
	})
	return m, nil
}

func (m *mux) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.failAll(store.ErrClosed)
	_ = m.sub.Unsubscribe() // fails only if the connection is closed
	m.nc.RemoveStatusListener(m.status)
	m.wg.Wait()
}

func (m *mux) failAll(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, x := range m.waiting {
		delete(m.waiting, id)
		x.done <- err
	}
}

// request publishes msg with a reply subject and returns the reply.
func (m *mux) request(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	x := &exchange{done: make(chan error, 1)}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, store.ErrClosed
	}
	m.next++
	id := strconv.FormatUint(m.next, 36)
	m.waiting[id] = x
	m.mu.Unlock()
	msg.Reply = m.prefix + id
	if err := m.nc.PublishMsg(msg); err != nil {
		m.forget(id)
		return nil, err
	}
	timer := time.NewTimer(slowReply)
	defer timer.Stop()
	for slow := false; ; {
		select {
		case err := <-x.done:
			return x.reply, err
		case <-ctx.Done():
			m.forget(id)
			return nil, ctx.Err()
		case <-timer.C:
		}
		if slow {
			m.forget(id)
			return nil, errNoReply
		}
		slow = true
		m.slow()
		timer.Reset(requestTimeout - slowReply)
	}
}

func (m *mux) forget(id string) {
	m.mu.Lock()
	delete(m.waiting, id)
	m.mu.Unlock()
}

func (m *mux) reply(msg *nats.Msg) {
	id := msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:]
	m.mu.Lock()
	x := m.waiting[id]
	if x == nil {
		m.mu.Unlock()
		return
	}
	x.reply = msg
	delete(m.waiting, id)
	m.mu.Unlock()
	x.done <- nil
}

// status returns the status of a reply that has no body, or "".
func status(m *nats.Msg) string {
	if len(m.Data) > 0 || m.Header == nil {
		return ""
	}
	return m.Header.Get("Status")
}

// Error codes of the server, of which nats.go names only some.
const (
	codeAccountLimit    = 10002
	codeNoResources     = 10023
	codeNoStorage       = 10047
	codeTooLarge        = 10054
	codeStreamNotFound  = 10059
	codeWrongLast       = 10071
	codeStoreFailed     = 10077
	codeWrongLastInWork = 10164
)

// apiError is an error as the server reports it.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string { return fmt.Sprintf("%s (%d)", e.Description, e.ErrCode) }

// Unwrap says what the error means in the terms of package store.
func (e *apiError) Unwrap() error {
	switch {
	case e.ErrCode == codeTooLarge:
		return store.ErrTooLarge
	case e.ErrCode == codeAccountLimit, e.ErrCode == codeNoResources, e.ErrCode == codeNoStorage,
		e.ErrCode == codeStoreFailed && strings.Contains(e.Description, "maximum"):
		return store.ErrFull
	}
	return nil
}

// conflict says whether a condition did not hold.
func (e *apiError) conflict() bool {
	return e.ErrCode == codeWrongLast || e.ErrCode == codeWrongLastInWork
}
