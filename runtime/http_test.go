package runtime_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/runtime"
)

// site is a local server that counts its requests.
type site struct {
	*httptest.Server
	hits atomic.Int64
}

func (s *site) host() string { return strings.TrimPrefix(s.URL, "http://") }
func (s *site) port() string { return s.host()[strings.LastIndexByte(s.host(), ':')+1:] }

func serve(t *testing.T, h http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// resolve makes a Resolver that knows the given names.
func resolve(names map[string]string) func(*runtime.Config) {
	return func(c *runtime.Config) {
		c.Resolver = func(_ context.Context, host string) ([]netip.Addr, error) {
			var addrs []netip.Addr
			for _, s := range strings.Fields(names[host]) {
				addrs = append(addrs, netip.MustParseAddr(s))
			}
			if addrs == nil {
				return nil, errors.New("no such host")
			}
			return addrs, nil
		}
	}
}

func allow(hosts ...string) func(*runtime.ModuleConfig) {
	return func(c *runtime.ModuleConfig) { c.Allow.HTTP = hosts }
}

// D-04: the native function returns status, headers and body, and sends what it is given.
func TestHTTP(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "text/x-test")
		w.Header().Add("X-Two", "1")
		w.Header().Add("X-Two", "2")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s host=%s x=%s len=%d body=%s agent=%s", r.Method, r.URL, r.Host, r.Header.Get("X-In"), r.ContentLength, body, r.UserAgent())
	})
	e, _ := open(t)
	m := load(t, e, "fetch", allow(s.host()))
	r, err := m.Run(t.Context(), newJob("POST "+s.URL+"/a?b=c\nX-In: yes\nHost: evil\nContent-Length: 99\nConnection: close\n\nhello"))
	if err != nil {
		t.Fatal(err)
	}
	body := string(r.Body)
	for _, want := range []string{"418\n", "Content-Type: text/x-test\n", "X-Two: 1\nX-Two: 2\n",
		"\n\nPOST /a?b=c host=" + s.host() + " x=yes len=5 body=hello agent=wasmsidecar"} {
		if !strings.Contains(body, want) {
			t.Errorf("answer %q lacks %q", body, want)
		}
	}
	if got := r.Header.Get("Content-Type"); got != "text/x-test" {
		t.Errorf("content type %q", got)
	}
}

// D-04: http_request as DRASM has it: the body alone when it is JSON, else status and body; _error when there is none.
func TestHTTPDRASM(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/json":
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprintf(w, `{"method":%q,"body":%q,"type":%q}`, r.Method, body, r.Header.Get("Content-Type"))
		case "/text":
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, "not \xff here")
		case "/cut":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "short")
		}
	})
	e, _ := open(t)
	m := load(t, e, "fetch-drasm", allow(s.host()))
	tests := []struct{ name, request, want string }{
		{"json", `{"url":"URL/json"}`, `{"method":"GET","body":"","type":""}`},
		{"post", `{"url":"URL/json","method":"POST","body":{"a":1}}`, `{"method":"POST","body":"{\"a\":1}","type":"application/json"}`},
		{"raw body", `{"url":"URL/json","method":"PUT","body":"x","headers":{"Content-Type":"text/plain"}}`, `{"method":"PUT","body":"x","type":"text/plain"}`},
		{"text", `{"url":"URL/text"}`, `{"body":"not \ufffd here","status":404}`},
		{"cut off", `{"url":"URL/cut"}`, `"status":200`},
		{"denied", `{"url":"http://169.254.169.254/latest/meta-data/"}`, `{"_error":"host 169.254.169.254:80 is not granted`},
		{"no url", `{"method":"GET"}`, `{"_error":"request has no url"}`},
		{"no json", `nonsense`, `{"_error":"request is not as expected`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := m.Run(t.Context(), newJob(strings.ReplaceAll(tt.request, "URL", s.URL)))
			if err != nil {
				t.Fatal(err)
			}
			if r.TypeName != "Reply" || !json.Valid(r.Body) || !strings.Contains(strings.ReplaceAll(string(r.Body), "\uFFFD", `\ufffd`), tt.want) {
				t.Errorf("answer %s of type %s, want %s", r.Body, r.TypeName, tt.want)
			}
		})
	}
}

// D-13: everything that is refused, and nothing of it reaches a server.
func TestHTTPDenied(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") })
	e, _ := open(t, resolve(map[string]string{
		"rebind.example.com":  "127.0.0.1",
		"mapped.example.com":  "::ffff:127.0.0.1",
		"nat64.example.com":   "64:ff9b::7f00:1",
		"meta.example.com":    "169.254.169.254",
		"private.example.com": "10.0.0.1 192.168.0.1 fd00::1 ::1 0.0.0.0",
		"localhost":           "10.0.0.1",
	}))
	ports := ":" + s.port()
	tests := []struct {
		name  string
		allow []string
		url   string
		text  string
	}{
		{"nothing granted", nil, s.URL, "module has no allow.http"},
		{"another host", []string{"api.example.com"}, s.URL, "is not granted"},
		{"another port", []string{"127.0.0.1:1"}, s.URL, "is not granted"},
		{"another address", []string{"127.0.0.2" + ports}, s.URL, "is not granted"},
		{"another scheme", []string{"127.0.0.1" + ports}, "gopher://" + s.host(), "only http and https"},
		{"a user", []string{"127.0.0.1" + ports}, "http://u:p@" + s.host(), "may not carry a user"},
		{"a name that leads here", []string{"*.example.com" + ports}, "http://rebind.example.com" + ports, "127.0.0.1" + ports + " of rebind.example.com is not on the public internet"},
		{"an IPv4 address in IPv6", []string{"mapped.example.com" + ports}, "http://mapped.example.com" + ports, "is not on the public internet"},
		{"an IPv4 address behind NAT64", []string{"nat64.example.com" + ports}, "http://nat64.example.com" + ports, "is not on the public internet"},
		{"a metadata service", []string{"meta.example.com"}, "http://meta.example.com/", "is not on the public internet"},
		{"private addresses", []string{"private.example.com" + ports}, "http://private.example.com" + ports, "is not on the public internet"},
		{"localhost elsewhere", []string{"localhost" + ports}, "http://localhost" + ports, "is not on the public internet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := load(t, e, "fetch", allow(tt.allow...)).Run(t.Context(), newJob("GET "+tt.url+"\n\n"))
			if err != nil {
				t.Fatal(err)
			}
			if got := string(r.Body); !strings.HasPrefix(got, "error 1\n") || !strings.Contains(got, tt.text) {
				t.Errorf("answer %q, want error 1 and %q", got, tt.text)
			}
			// A guest that does not handle the refusal ends as denied rather than as crashed.
			_, err = load(t, e, "fetch", allow(tt.allow...), func(c *runtime.ModuleConfig) { c.Config = map[string]string{"crash": ""} }).
				Run(t.Context(), newJob("GET "+tt.url+"\n\n"))
			wantKind(t, err, job.KindDenied, tt.text, "not handled by the guest", "unreachable")
		})
	}
	t.Cleanup(func() {
		if n := s.hits.Load(); n != 0 {
			t.Errorf("the server was asked %d times", n)
		}
	})
}

// A name may change its mind between two requests: each dial looks anew, and at the address itself. D-13.
func TestHTTPRebinding(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") })
	var asked atomic.Int64
	e, _ := open(t, func(c *runtime.Config) {
		c.Resolver = func(context.Context, string) ([]netip.Addr, error) {
			if asked.Add(1) == 1 {
				return nil, errors.New("no such host, yet")
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
	})
	m := load(t, e, "fetch", allow("api.example.com:"+s.port()))
	for i, want := range []string{"error 4\n", "error 1\n", "error 1\n"} {
		r, err := m.Run(t.Context(), newJob("GET http://api.example.com:"+s.port()+"/\n\n"))
		if err != nil || !strings.HasPrefix(string(r.Body), want) {
			t.Errorf("request %d: %v, %v; want %q", i, r, err, want)
		}
	}
	if asked.Load() != 3 || s.hits.Load() != 0 {
		t.Errorf("resolved %d times, asked %d times; want 3 and 0", asked.Load(), s.hits.Load())
	}
}

// D-13: redirects are followed within the policy and no further than five.
func TestHTTPRedirects(t *testing.T) {
	t.Parallel()
	other := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "other") })
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Query().Get("to") != "":
			http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
		case len(r.URL.Path) > 1:
			if n, _ := strconv.Atoi(r.URL.Path[1:]); n > 0 {
				http.Redirect(w, r, fmt.Sprintf("/%d", n-1), http.StatusFound)
				return
			}
			fmt.Fprint(w, "arrived")
		}
	})
	to := func(u string) string { return s.URL + "/?to=" + url.QueryEscape(u) }
	e, _ := open(t, resolve(map[string]string{"rebind.example.com": "127.0.0.1", "localhost": "127.0.0.1"}))
	m := load(t, e, "fetch", allow(s.host(), "rebind.example.com:"+other.port(), "localhost:"+s.port()))
	tests := []struct{ name, url, want string }{
		{"five", s.URL + "/5", "200\n"},
		{"six", s.URL + "/6", "error 4\n"},
		{"to another host", to(other.URL), "error 1\n"},
		{"to a metadata service", to("http://169.254.169.254/"), "error 1\n"},
		{"to a name that leads here", to("http://rebind.example.com:" + other.port() + "/"), "error 1\n"},
		{"to a file", to("file:///etc/passwd"), "error 1\n"},
		{"to a granted name", to("http://localhost:" + s.port() + "/0"), "200\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := m.Run(t.Context(), newJob("GET "+tt.url+"\n\n"))
			if err != nil || !strings.HasPrefix(string(r.Body), tt.want) {
				t.Errorf("answer %v, %v; want %q", r, err, tt.want)
			}
		})
	}
	t.Cleanup(func() {
		if n := other.hits.Load(); n != 0 {
			t.Errorf("the other server was asked %d times", n)
		}
	})
}

func TestHTTPLimits(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/large":
			fmt.Fprint(w, strings.Repeat("x", 2000))
		case "/endless":
			for {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		case "/headers":
			for i := range 100 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
			}
		case "/slow":
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case "/fits":
			fmt.Fprint(w, strings.Repeat("x", 1000))
		case "/elsewhere":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}
	})
	t.Cleanup(func() { close(release) })
	gone := serve(t, nil)
	gone.Close()
	e, _ := open(t)
	tests := []struct {
		name, request, want string
		kind                job.Kind // of a guest that does not handle it
		change              func(*runtime.Limits)
	}{
		{"response that fits", "GET URL/fits\n\n", "200\n", job.KindOK, nil},
		{"large response", "GET URL/large\n\n", "error 3\n", job.KindLimit, nil},
		{"endless response", "GET URL/endless\n\n", "error 3\n", job.KindLimit, nil},
		{"large headers", "GET URL/headers\n\n", "error 4\n", job.KindUpstream, nil},
		{"large request", "POST URL/\n\n" + strings.Repeat("x", 1001), "error 3\n", job.KindLimit, nil},
		{"slow response", "GET URL/slow\n\n", "error 5\n", job.KindUpstream, func(l *runtime.Limits) { l.HTTPTime = 50 * time.Millisecond }},
		{"too many requests", "GET URL/fits\n\n", "error 3\n", job.KindLimit, func(l *runtime.Limits) { l.HTTPCalls = 0 }},
		{"request over the total", "POST URL/\n\n" + strings.Repeat("x", 900), "error 3\n", job.KindLimit, func(l *runtime.Limits) { l.HTTPTotal = 900 }},
		{"response over the total", "GET URL/fits\n\n", "error 3\n", job.KindLimit, func(l *runtime.Limits) { l.HTTPTotal = 1000 }},
		{"redirects over the total", "POST URL/elsewhere\n\n" + strings.Repeat("x", 900), "error 3\n", job.KindLimit, func(l *runtime.Limits) { l.HTTPTotal = 4000 }},
		{"within the total", "POST URL/fits\n\n" + strings.Repeat("x", 900), "200\n", job.KindOK, func(l *runtime.Limits) { l.HTTPTotal = 2500 }},
		{"nobody there", "GET " + gone.URL + "\n\n", "error 4\n", job.KindUpstream, nil},
		{"method", "TRACE URL/\n\n", "error 2\n", job.KindTrap, nil},
		{"long url", "GET URL/" + strings.Repeat("x", 9000) + "\n\n", "error 2\n", job.KindTrap, nil},
		{"bad url", "GET http://[::1\n\n", "error 2\n", job.KindTrap, nil},
		{"header without colon", "GET URL/\nX\n\n", "error 2\n", job.KindTrap, nil},
		{"header with spaces", "GET URL/\nX Y: z\n\n", "error 2\n", job.KindTrap, nil},
		{"header with NUL", "GET URL/\nX: \x00\n\n", "error 2\n", job.KindTrap, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			change := func(c *runtime.ModuleConfig) {
				c.Allow.HTTP = []string{s.host(), gone.host()}
				c.Limits.HTTPBytes = 1000
				if tt.change != nil {
					tt.change(&c.Limits)
				}
			}
			in := strings.ReplaceAll(tt.request, "URL", s.URL)
			r, err := load(t, e, "fetch", change).Run(t.Context(), newJob(in))
			if err != nil || !strings.HasPrefix(string(r.Body), tt.want) {
				t.Errorf("answer %v, %v; want %q", r, err, tt.want)
			}
			_, err = load(t, e, "fetch", change, func(c *runtime.ModuleConfig) { c.Config = map[string]string{"crash": ""} }).Run(t.Context(), newJob(in))
			wantKind(t, err, tt.kind)
		})
	}
	// The job's own time is over while it waits: that is a timeout of the job.
	m := load(t, e, "fetch", allow(s.host()), func(c *runtime.ModuleConfig) { c.Limits.Time = 100 * time.Millisecond })
	_, err := m.Run(t.Context(), newJob("GET "+s.URL+"/slow\n\n"))
	wantKind(t, err, job.KindTimeout)
}

// A guest that asks again and again is held to a total of bytes, the module's or the route's, in each job anew.
func TestHTTPTotal(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 10_000)) })
	e, _ := open(t)
	greedy := func(c *runtime.ModuleConfig) {
		c.Config = map[string]string{"again": "", "crash": ""}
		c.Limits.HTTPCalls = 1000
	}
	tight := runtime.DefaultLimits()
	tight.HTTPCalls, tight.HTTPTotal = 1000, 45_000
	module := load(t, e, "fetch", allow(s.host()), greedy, func(c *runtime.ModuleConfig) { c.Limits.HTTPTotal = 45_000 })
	route := load(t, e, "fetch", allow(s.host()), greedy).Within(tight)
	for i, r := range []job.Runner{module, module, route} {
		_, err := r.Run(t.Context(), newJob("POST "+s.URL+"\n\n"+strings.Repeat("y", 1000)))
		wantKind(t, err, job.KindLimit, "over the limit of 45000 bytes per job", "limits.http_total")
		if hits := s.hits.Load(); hits != int64(i+1)*4 {
			t.Errorf("job %d: %d requests, want the 4 that fit for each", i, hits)
		}
	}
}

// A proxy of the environment would see what guests ask for, and would dial for them; it is not used.
func TestHTTPNoProxy(t *testing.T) {
	proxy := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "proxied") })
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	e, _ := open(t, resolve(map[string]string{"api.example.com": "10.255.255.1"}))
	r, err := load(t, e, "fetch", allow("api.example.com")).Run(t.Context(), newJob("GET http://api.example.com/\n\n"))
	if err != nil || !strings.HasPrefix(string(r.Body), "error 1\n") || proxy.hits.Load() != 0 {
		t.Errorf("answer %v, %v; the proxy was asked %d times", r, err, proxy.hits.Load())
	}
}
