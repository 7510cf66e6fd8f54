package kafka

import (
	"context"
	"errors"
	"net"
	"sync"
)

// cutNet opens connections that can all be cut, and then opens no more until mended.
type cutNet struct {
	mu    sync.Mutex
	conns []net.Conn
	off   bool
}

func newCut() *cutNet { return &cutNet{} }

func (c *cutNet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.mu.Lock()
	off := c.off
	c.mu.Unlock()
	if off {
		return nil, errors.New("the network is cut")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

func (c *cutNet) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = true
	for _, conn := range c.conns {
		_ = conn.Close() // it may be closed already
	}
	c.conns = nil
}

func (c *cutNet) mend() {
	c.mu.Lock()
	c.off = false
	c.mu.Unlock()
}
