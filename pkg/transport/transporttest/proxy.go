package transporttest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a network between a client and a server that can be cut. It ends with its test.
type Proxy struct {
	listener net.Listener
	backend  string
	wg       sync.WaitGroup

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]struct{}
}

// NewProxy listens on loopback and passes every connection on to backend.
func NewProxy(t testing.TB, backend string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	p := &Proxy{listener: l, backend: backend, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close() // a second time does no harm
		p.set(true)
		p.wg.Wait()
	})
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut breaks every connection and refuses new ones for d.
func (p *Proxy) Cut(d time.Duration) {
	p.set(true)
	time.Sleep(d)
	p.set(false)
}

func (p *Proxy) set(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
	if down {
		for c := range p.conns {
			_ = c.Close() // breaking it is the purpose
		}
		clear(p.conns)
	}
}

// add takes note of a connection, or refuses it.
func (p *Proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		_ = c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		if !p.add(client) {
			continue
		}
		p.wg.Go(func() {
			server, err := net.DialTimeout("tcp", p.backend, 5*time.Second)
			if err != nil || !p.add(server) {
				_ = client.Close()
				return
			}
			p.wg.Go(func() { pipe(server, client) })
			pipe(client, server)
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.conns, client)
			delete(p.conns, server)
		})
	}
}

// pipe copies until either side ends, and then ends both.
func pipe(dst, src net.Conn) {
	_, _ = io.Copy(dst, src) // how a connection ends is of no interest
	_, _ = dst.Close(), src.Close()
}
