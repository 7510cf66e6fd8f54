package host

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// D-13: what is asked for by name.
func TestPolicy(t *testing.T) {
	t.Parallel()
	p, err := ParsePolicy([]string{
		"api.example.com:443", "Plain.Example.COM", "*.wild.example.com:8443", "*.any.example.com", "localhost:8080",
		"127.0.0.1:9000", "[::1]:9000", "10.1.2.3", "2001:db8::1", "xn--bcher-kva.example:443", "dot.example.com.:443", "[::ffff:192.0.2.1]:80",
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		url string
		ok  bool
	}{
		{"https://api.example.com/x?y#z", true},
		{"https://API.example.com:443/", true},
		{"https://api.example.com./", true},
		{"http://api.example.com/", false},
		{"https://api.example.com:8443/", false},
		{"http://api.example.com:443/", true},
		{"https://plain.example.com/", true},
		{"http://plain.example.com/", true},
		{"http://plain.example.com:443/", false},
		{"http://plain.example.com:8080/", false},
		{"https://a.wild.example.com:8443/", true},
		{"https://a.b.wild.example.com:8443/", true},
		{"https://wild.example.com:8443/", false},
		{"https://evilwild.example.com:8443/", false},
		{"https://a.wild.example.com/", false},
		{"https://a.any.example.com/", true},
		{"https://a.any.example.com.evil.com/", false},
		{"http://localhost:8080/", true},
		{"http://LOCALHOST:8080/", true},
		{"http://localhost/", false},
		{"http://a.localhost:8080/", false},
		{"http://127.0.0.1:9000/", true},
		{"http://[::ffff:127.0.0.1]:9000/", true},
		{"http://127.0.0.2:9000/", false},
		{"http://127.1:9000/", false},
		{"http://2130706433:9000/", false},
		{"http://0x7f.0.0.1:9000/", false},
		{"http://[::1]:9000/", true},
		{"http://[0:0:0:0:0:0:0:1]:9000/", true},
		{"http://[::1%25lo]:9000/", false},
		{"https://10.1.2.3/", true},
		{"https://[2001:db8::1]/", true},
		{"http://192.0.2.1/", true},
		{"https://dot.example.com/", true},
		{"https://xn--bcher-kva.example/", true},
		{"https://user:secret@api.example.com/", false},
		{"https://api.example.com@evil.com/", false},
		{"https://evil.com/api.example.com:443", false},
		{"ftp://api.example.com:443/", false},
		{"file:///etc/passwd", false},
		{"https:///x", false},
		{"api.example.com", false},
		{"//api.example.com/", false},
	}
	for _, tt := range tests {
		u, err := url.Parse(tt.url)
		if err == nil {
			err = p.Check(u)
		}
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok %t", tt.url, err, tt.ok)
		}
		if err == nil {
			if err := (Policy{}).Check(u); err == nil {
				t.Errorf("%s: the zero policy lets it through", tt.url)
			}
		}
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	t.Parallel()
	for _, e := range []string{
		"", "*", "*.com", "*:443", "https://x", "x/y", "u@x", "x:0", "x:70000", "x:http", "a.*.com", "**.example.com", ":443", "x y", ".example.com", "[::1", "a:b:443",
	} {
		if _, err := ParsePolicy([]string{"ok.example.com", e}); err == nil || !strings.Contains(err.Error(), "allow.http") {
			t.Errorf("%q: %v, want an error", e, err)
		}
	}
}

// D-13: where a name may lead.
func TestPublic(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		addr string
		want bool
	}{
		{"8.8.8.8", true}, {"1.1.1.1", true}, {"172.15.255.255", true}, {"172.32.0.1", true}, {"100.63.0.1", true}, {"100.128.0.1", true},
		{"2606:4700::1111", true}, {"2a00:1450::1", true},
		{"127.0.0.1", false}, {"127.255.0.1", false}, {"10.0.0.1", false}, {"172.16.0.1", false}, {"172.31.255.255", false}, {"192.168.1.1", false},
		{"169.254.169.254", false}, {"100.64.0.1", false}, {"100.100.100.200", false}, {"0.0.0.0", false}, {"0.1.2.3", false}, {"224.0.0.1", false},
		{"255.255.255.255", false}, {"240.0.0.1", false}, {"192.0.0.192", false}, {"198.18.0.1", false}, {"192.0.2.1", false}, {"203.0.113.9", false},
		{"::", false}, {"::1", false}, {"::ffff:8.8.8.8", false}, {"::ffff:127.0.0.1", false}, {"::8.8.8.8", false},
		{"64:ff9b::8.8.8.8", false}, {"64:ff9b::7f00:1", false}, {"64:ff9b:1::1", false}, {"2002:7f00:1::", false}, {"2001:0:1::1", false},
		{"fc00::1", false}, {"fd00:ec2::254", false}, {"fe80::1", false}, {"fe80::1%eth0", false}, {"fec0::1", false}, {"ff02::1", false}, {"2001:db8::1", false},
		{"100::1", false}, {"3fff::1", false}, {"5f00::1", false},
	} {
		if got := public(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("public(%s) = %t, want %t", tt.addr, got, tt.want)
		}
	}
	if public(netip.Addr{}) {
		t.Error("the zero address is public")
	}
}

// FuzzPolicy: no entry and no URL makes the policy panic, and what one entry lets through is what it names.
func FuzzPolicy(f *testing.F) {
	f.Add("api.example.com:443", "https://api.example.com/")
	f.Add("*.example.com", "http://a.example.com:80/")
	f.Add("[::1]:80", "http://[::1]/")
	f.Add("10.0.0.1", "http://10.0.0.1@evil.com/")
	f.Fuzz(func(t *testing.T, entry, raw string) {
		p, err := ParsePolicy([]string{entry})
		if err != nil {
			return
		}
		u, err := url.Parse(raw)
		if err != nil || p.Check(u) != nil {
			return
		}
		r := p.rules[0]
		if h := canonicalHost(u.Hostname()); h != r.host && (!r.wildcard || !strings.HasSuffix(h, "."+r.host)) {
			t.Errorf("entry %q lets %q through", entry, raw)
		}
	})
}
