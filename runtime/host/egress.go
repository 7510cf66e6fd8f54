package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Resolver finds the addresses of a host name.
type Resolver func(ctx context.Context, host string) ([]netip.Addr, error)

// maxRedirects is how many redirects a request follows; each is checked against the policy anew.
const maxRedirects = 5

// Egress carries the requests of guests out. It decides by address: a name must lead to the public internet at the moment of
// dialling, whatever it led to before, and only "localhost" and literal addresses, which a policy must name themselves, may
// lead elsewhere. No proxy of the environment is used. An Egress may be used by many goroutines.
type Egress struct {
	resolve   Resolver
	transport *http.Transport
}

// NewEgress returns an Egress that resolves names by r, or by the system's resolver when r is nil.
func NewEgress(r Resolver) *Egress {
	if r == nil {
		r = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	e := &Egress{resolve: r}
	e.transport = &http.Transport{
		Proxy:                  nil,
		DialContext:            e.dial,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    8,
		MaxConnsPerHost:        64,
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return e
}

// Close ends the connections that are kept for later requests.
func (e *Egress) Close() { e.transport.CloseIdleConnections() }

// errDenied is in the chain of every refusal by policy.
var errDenied = errors.New("denied")

// dial connects to addr if policy lets it. Connections are shared between modules by host and port: what may be dialled
// depends on these alone, and a module's own policy was checked before.
func (e *Egress) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var may func(netip.Addr) bool
	var addrs []netip.Addr
	host = canonicalHost(host)
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap()
		addrs, may = []netip.Addr{a}, func(b netip.Addr) bool { return b == a }
	} else {
		may = public
		if host == "localhost" {
			may = netip.Addr.IsLoopback
		}
		if addrs, err = e.resolve(ctx, host); err != nil {
			return nil, fmt.Errorf("resolve %s: %w", host, err)
		}
	}
	d := net.Dialer{
		Timeout: 10 * time.Second,
		// The last word, on the address that is really dialled.
		Control: func(_, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil || !may(ap.Addr().Unmap()) {
				return fmt.Errorf("%w: address %s of %s is not on the public internet", errDenied, address, host)
			}
			return nil
		},
	}
	err = fmt.Errorf("resolve %s: no address", host)
	for _, a := range addrs {
		if a.Is4In6() && !may(a) {
			// Dialled it would be an IPv4 address; as an answer to a name it is a trick.
			err = fmt.Errorf("%w: address %s of %s is not on the public internet", errDenied, a, host)
			continue
		}
		var c net.Conn
		if c, err = d.DialContext(ctx, strings.TrimRight(network, "46"), net.JoinHostPort(a.String(), port)); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// client returns a client that follows redirects only where p allows.
func (e *Egress) client(p Policy) *http.Client {
	return &http.Client{
		Transport: e.transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("%d redirects", len(via))
			}
			if err := p.Check(req.URL); err != nil {
				return fmt.Errorf("%w: redirect: %w", errDenied, err)
			}
			return nil
		},
	}
}
