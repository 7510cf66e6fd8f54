package services

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echoServer sends back what it gets, until the end of the test.
func echoServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// exchange sends a word and returns what comes back within the time.
func exchange(c net.Conn, word string, within time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, word); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != word {
		return errors.New("got " + string(got))
	}
	return nil
}

const patience = 20 * time.Second

func TestProxyCarries(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echoServer(t))
	c := dial(t, p.Addr())
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(sent); err != nil {
			t.Error(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("got %d bytes (%v), want the %d that were sent and a clean end", len(got), err, len(sent))
	}
}

func TestProxyCutDropsAndRestores(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echoServer(t))
	c := dial(t, p.Addr())
	if err := exchange(c, "before", patience); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if err := exchange(c, "lost", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("on an open connection: %v, want it dropped", err)
	}
	if again, err := net.Dial("tcp", p.Addr()); err == nil {
		defer again.Close()
		if err := exchange(again, "lost", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("on a new connection: %v, want it dropped", err)
		}
	}
	p.Restore()
	if err := exchange(dial(t, p.Addr()), "after", patience); err != nil {
		t.Errorf("after Restore: %v", err)
	}
}

func TestProxySilenceHoldsBytesBack(t *testing.T) {
	t.Parallel()
	p := NewProxy(t, echoServer(t))
	c := dial(t, p.Addr())
	if err := exchange(c, "before", patience); err != nil {
		t.Fatal(err)
	}
	p.Silence()
	if err := exchange(c, "held", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("in silence: %v, want a timeout", err)
	}
	fresh := dial(t, p.Addr())
	if err := exchange(fresh, "new", 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("on a new connection in silence: %v, want a timeout", err)
	}
	p.Restore()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("held"))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "held" {
		t.Errorf("after Restore: %q (%v), want what was held", got, err)
	}
}

// What was held back when the connection was cut is lost, however soon the proxy carries again.
func TestProxyCutLosesWhatWasHeldBack(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := NewProxy(t, l.Addr().String())
	for range 20 {
		c := dial(t, p.Addr())
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "before"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len("before"))
		if _, err := io.ReadFull(server, got); err != nil {
			t.Fatal(err)
		}
		p.Silence()
		if err := exchange(c, "lost", 5*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("in silence: %v, want a timeout", err)
		}
		p.Cut()
		p.Restore()
		if err := server.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(server)
		if len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the server got %q (%v), want a dropped connection", rest, err)
		}
		server.Close()
	}
}

func TestProxyDelay(t *testing.T) {
	t.Parallel()
	const delay = 60 * time.Millisecond
	p := NewProxy(t, echoServer(t))
	p.Delay(delay)
	c := dial(t, p.Addr())
	began := time.Now()
	if err := exchange(c, "slow", patience); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 2*delay {
		t.Errorf("there and back took %s, want at least %s", took, 2*delay)
	}
	p.Cut()
	if err := exchange(c, "lost", patience); err == nil {
		t.Error("a delayed connection outlived Cut")
	}
}

// A server that is away is noticed by the client, and one that comes back is reached.
func TestProxyWithoutTarget(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := l.Addr().String()
	l.Close()
	p := NewProxy(t, target)
	if c, err := net.Dial("tcp", p.Addr()); err == nil {
		defer c.Close()
		if err := exchange(c, "lost", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("without a server: %v, want the connection dropped", err)
		}
	}
	l, err = net.Listen("tcp", target)
	if err != nil {
		t.Fatalf("take the port again: %v", err)
	}
	defer l.Close()
	dial(t, p.Addr())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
