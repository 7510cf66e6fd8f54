package services

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy carries TCP connections from a loopback port of its own to a server, and breaks them when told to. It ends with the test.
// All methods may be called at any time from any goroutine.
type Proxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	state   proxyState
	cuts    int           // what was connected before the last one is over, whatever the state is by now
	changed chan struct{} // closed and replaced at every change of state
	delay   time.Duration
	conns   map[net.Conn]struct{}
}

type proxyState int

const (
	carrying proxyState = iota
	cut
	silent
)

// NewProxy starts a proxy to target, which is host:port and need not answer yet.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("services: start a proxy to %s: %v", target, err)
	}
	p := &Proxy{listener: l, target: target, changed: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr is where clients connect, host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut drops all connections, as a server that dies does, and drops new ones at once until Restore.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

// Silence keeps connections open and carries nothing, as a pulled cable does, until Restore. Bytes that were sent meanwhile
// arrive then. New connections are taken and hear nothing.
func (p *Proxy) Silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(silent)
}

// Restore ends Cut and Silence.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(carrying)
}

// Delay makes every byte arrive d later, in each direction, from now on; zero carries at once. Connections keep their throughput.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Connections counts those open now.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

func (p *Proxy) set(s proxyState) {
	p.state = s
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) cut() {
	p.cuts++
	p.set(cut)
	for c := range p.conns {
		drop(c)
	}
}

// drop closes with a reset, so that the other side learns of it at once.
func drop(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails only on a connection that is closed
	}
	_ = c.Close() // closing twice is harmless
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.cut()
	p.mu.Unlock()
	_ = p.listener.Close() // nothing was written to it
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.state == cut {
			p.mu.Unlock()
			drop(c)
			continue
		}
		p.conns[c] = struct{}{}
		cuts := p.cuts
		p.wg.Go(func() { p.serve(c, cuts) })
		p.mu.Unlock()
	}
}

// serve carries one connection, which began after so many cuts and ends with the next.
func (p *Proxy) serve(client net.Conn, cuts int) {
	defer func() {
		p.mu.Lock()
		delete(p.conns, client)
		p.mu.Unlock()
	}()
	if !p.pass(cuts) {
		drop(client)
		return
	}
	server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		drop(client)
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.carry(server, client, cuts) })
	both.Go(func() { p.carry(client, server, cuts) })
	both.Wait()
	// What failed was dropped already; the rest has been closed for writing and ends in good order.
	_ = client.Close()
	_ = server.Close()
}

// pass waits while the proxy is silent; false means that it was cut.
func (p *Proxy) pass(cuts int) bool {
	for {
		p.mu.Lock()
		state, over, changed := p.state, p.cuts != cuts, p.changed
		p.mu.Unlock()
		switch {
		case over:
			return false
		case state == carrying:
			return true
		}
		<-changed
	}
}

// carry copies until the end of src and then closes dst for writing; any failure drops both.
func (p *Proxy) carry(dst, src net.Conn, cuts int) {
	type chunk struct {
		due  time.Time
		data []byte
	}
	// Bounded: a reader that is far ahead of the delay waits.
	chunks := make(chan chunk, 256)
	done := make(chan struct{})
	var reader sync.WaitGroup
	var readErr error
	reader.Go(func() {
		defer close(chunks)
		for {
			buf := make([]byte, 32<<10)
			n, err := src.Read(buf)
			if n > 0 {
				p.mu.Lock()
				c := chunk{due: time.Now().Add(p.delay), data: buf[:n]}
				p.mu.Unlock()
				select {
				case chunks <- c:
				case <-done:
					return
				}
			}
			if err != nil {
				readErr = err
				return
			}
		}
	})
	fail := func() {
		drop(src)
		drop(dst)
		close(done)
		reader.Wait()
	}
	for c := range chunks {
		if !p.waitUntil(c.due, cuts) || !p.pass(cuts) {
			fail()
			return
		}
		if _, err := dst.Write(c.data); err != nil {
			fail()
			return
		}
	}
	if !errors.Is(readErr, io.EOF) || !p.pass(cuts) {
		fail()
		return
	}
	if tcp, ok := dst.(*net.TCPConn); ok {
		_ = tcp.CloseWrite() // fails only when the other direction has dropped it
	}
}

// waitUntil is false when the proxy is cut meanwhile.
func (p *Proxy) waitUntil(due time.Time, cuts int) bool {
	for {
		p.mu.Lock()
		over, changed := p.cuts != cuts, p.changed
		p.mu.Unlock()
		left := time.Until(due)
		if over {
			return false
		}
		if left <= 0 {
			return true
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-changed:
			timer.Stop()
		}
	}
}
