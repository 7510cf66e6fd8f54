package host

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Policy is the list of hosts that a module may ask. The zero Policy denies all.
type Policy struct{ rules []rule }

type rule struct {
	host     string // lower case, no trailing dot; an address in its shortest form
	wildcard bool   // any name below host
	port     string // empty: 443 for https and 80 for http
}

// ParsePolicy reads allow.http entries: host, host:port, *.domain, *.domain:port, an address, address:port or
// [address]:port. Without a port an entry allows the default port of the URL's scheme. An address of a private network and
// "localhost" are reached only where an entry names them themselves; a name never leads to one.
func ParsePolicy(entries []string) (Policy, error) {
	var p Policy
	for _, e := range entries {
		r, err := parseRule(e)
		if err != nil {
			return Policy{}, fmt.Errorf("allow.http %q: %w", e, err)
		}
		p.rules = append(p.rules, r)
	}
	return p, nil
}

func parseRule(e string) (rule, error) {
	if strings.Contains(e, "://") || strings.ContainsAny(e, "/@?# \t") {
		return rule{}, fmt.Errorf("want host or host:port, without scheme, path or user")
	}
	if a, err := netip.ParseAddr(e); err == nil { // IPv6 without brackets has no port
		return addressRule(a, "")
	}
	host, port := e, ""
	if i := strings.LastIndexByte(e, ':'); i >= 0 && !strings.HasSuffix(e, "]") {
		host, port = e[:i], e[i+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return rule{}, fmt.Errorf("port %q is not a number from 1 to 65535", port)
		}
		port = strconv.FormatUint(n, 10)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		if !closed || err != nil {
			return rule{}, fmt.Errorf("%s is not an address in brackets", host)
		}
		return addressRule(a, port)
	}
	r := rule{host: canonicalHost(host), port: port}
	if rest, ok := strings.CutPrefix(r.host, "*."); ok {
		r.host, r.wildcard = rest, true
		if !strings.Contains(rest, ".") {
			return rule{}, fmt.Errorf("a wildcard must name a domain, as in *.example.com")
		}
	}
	if r.host == "" || strings.ContainsAny(r.host, "*:[]") || strings.HasPrefix(r.host, ".") {
		return rule{}, fmt.Errorf("want a host name, an address or *.domain")
	}
	return r, nil
}

func addressRule(a netip.Addr, port string) (rule, error) {
	if a.Zone() != "" {
		return rule{}, fmt.Errorf("an address may not name an interface (%%%s)", a.Zone())
	}
	return rule{host: a.Unmap().String(), port: port}, nil
}

// canonicalHost brings a host name or address into the form in which they are compared.
func canonicalHost(h string) string {
	h = strings.TrimSuffix(strings.ToLower(h), ".")
	if a, err := netip.ParseAddr(h); err == nil {
		return a.Unmap().String()
	}
	return h
}

// Empty says whether p denies all.
func (p Policy) Empty() bool { return len(p.rules) == 0 }

// Check says whether u may be asked.
func (p Policy) Check(u *url.URL) error {
	var std string
	switch u.Scheme {
	case "https":
		std = "443"
	case "http":
		std = "80"
	default:
		return fmt.Errorf("scheme %q: only http and https are known", u.Scheme)
	}
	if u.User != nil {
		return fmt.Errorf("a URL may not carry a user")
	}
	host, port := canonicalHost(u.Hostname()), u.Port()
	if host == "" {
		return fmt.Errorf("the URL has no host")
	}
	if port == "" {
		port = std
	}
	_, notName := netip.ParseAddr(host)
	for _, r := range p.rules {
		want := r.port
		if want == "" {
			want = std
		}
		if port != want {
			continue
		}
		if host == r.host && !r.wildcard {
			return nil
		}
		if r.wildcard && notName != nil && strings.HasSuffix(host, "."+r.host) {
			return nil
		}
	}
	return fmt.Errorf("host %s:%s is not granted; add it to the module's allow.http", host, port)
}

// public says whether a is an address of the public internet: not private, loopback, link-local, carrier-grade NAT,
// multicast, documentation or unspecified, and no form of IPv6 that wraps an IPv4 address (mapped, NAT64, 6to4, Teredo).
func public(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
		return false
	}
	in := reserved4[:]
	if a.Is6() {
		if !globalUnicast6.Contains(a) {
			return false
		}
		in = reserved6[:]
	}
	for _, p := range in {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

var globalUnicast6 = netip.MustParsePrefix("2000::/3")

// From the IANA special-purpose address registries.
var reserved4 = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
}

var reserved6 = [...]netip.Prefix{
	netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("3fff::/20"),
}
