package redisstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func trust(t testing.TB, file string) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(services.TLSDir(t), file))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("%s holds no certificate", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// Credentials and TLS: what is right gets a job through, what is wrong is named at start.
func TestAccess(t *testing.T) {
	t.Parallel()
	plain, secure := services.RedisACL(t)
	name := services.UniqueName(t)
	stream, sink := "jobs:"+name, "jobs:"+name+":results"
	subjects := transport.Subjects{Sources: []string{stream}, Sinks: []string{sink}}
	job := ClientConfig{Addrs: []string{plain}, Username: services.User, Password: services.Password}
	with := func(mend func(*ClientConfig)) ClientConfig {
		c := job
		mend(&c)
		return c
	}
	for _, tc := range []struct {
		name     string
		cfg      ClientConfig
		subjects transport.Subjects
		want     error // nil for one that is let in
		text     string
	}{
		{"password", job, subjects, nil, ""},
		{"password over TLS", with(func(c *ClientConfig) { c.Addrs, c.TLS = []string{secure}, trust(t, "ca.crt") }), subjects, nil, ""},
		{"wrong password", with(func(c *ClientConfig) { c.Password = "wrong" }), subjects, transport.ErrRejected, "password"},
		{"no password", with(func(c *ClientConfig) { c.Username, c.Password = "", "" }), subjects, transport.ErrRejected, "password"},
		{"unknown authority", with(func(c *ClientConfig) { c.Addrs, c.TLS = []string{secure}, &tls.Config{MinVersion: tls.VersionTLS12} }),
			subjects, transport.ErrRejected, "certificate"},
		{"source that the ACL forbids", job, transport.Subjects{Sources: []string{"other"}}, transport.ErrRejected, `"other"`},
		{"sink that the ACL forbids", job, transport.Subjects{Sinks: []string{"other"}}, transport.ErrRejected, "~other"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tr := open(t, newClient(t, tc.cfg))
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := tr.Prepare(ctx, tc.subjects)
			if tc.want != nil {
				if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("got %v, want %v and %q", err, tc.want, tc.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			stream := stream + ":" + strings.ReplaceAll(tc.name, " ", "-")
			src := openSource(t, tr, stream, time.Minute)
			publish(t, tr, msg(stream, "a"))
			if err := fetch(t, src, 1)[0].Retry(ctx, 10*time.Millisecond, msg(stream, "b")); err != nil {
				t.Fatal(err)
			}
			fetch(t, src, 1)[0].Ack()
			publish(t, tr, msg(sink, "result"))
			if err := tr.Publisher().Publish(ctx, msg("other", "x")); !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), "grant") {
				t.Errorf("publish where the ACL forbids it: %v", err)
			}
		})
	}
}

// An ACL that lacks one of the commands that are needed later is found at start.
func TestRightsAreTried(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t)
	admin := client(t, srv.Addr)
	for _, tc := range []struct{ rule, text string }{
		{"-xack", "xack"}, {"-xdel", "xdel"}, {"-xclaim", "xclaim"}, {"-@scripting", "eval"}, {"-zrangebyscore", "sortedset"}, {"-time", "+time"}, {"-xadd", "xadd"},
		{"-xgroup", "xgroup"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			user := "u" + strings.Trim(tc.rule, "-@")
			if err := admin.Do(t.Context(), "acl", "setuser", user, "on", ">p", "~*", "+@all", tc.rule).Err(); err != nil {
				t.Fatal(err)
			}
			tr := open(t, newClient(t, ClientConfig{Addrs: []string{srv.Addr}, Username: user, Password: "p"}))
			err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs"}, Sinks: []string{"results"}})
			if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t, "--maxmemory-policy", "allkeys-lru", "--proto-max-bulk-len", "2mb")
	c := client(t, srv.Addr)
	var log logged
	tr := open(t, c, func(cfg *Config) { cfg.CreateStreams, cfg.Log = false, log.logger() })
	if err := c.Set(t.Context(), "text", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	xadd(t, c, "jobs", "body", "old")
	xadd(t, c, "results", "body", "old")
	err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs", "missing-jobs", "text"}, Sinks: []string{"results", "missing-results", "text"}})
	if !errors.Is(err, transport.ErrRejected) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{`stream "missing-jobs" does not exist`, `stream "missing-results" does not exist`,
		`make group of stream "text"`, `prepare stream "text"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not said in: %v", want, err)
		}
	}
	if err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs"}, Sinks: []string{"results"}}); err != nil {
		t.Fatal(err)
	}
	if n := c.XLen(t.Context(), "results").Val(); n != 1 {
		t.Errorf("prepare wrote to the results: %d entries", n)
	}
	if !strings.Contains(log.String(), "allkeys-lru") {
		t.Errorf("the policy that evicts was not warned of: %s", log.String())
	}
	if n := tr.Publisher().MaxBytes(); n < 1<<20 || n >= 2<<20 {
		t.Errorf("MaxBytes is %d where the server takes two megabytes", n)
	}
	// What was there before the group is a job.
	if got := bodies(fetch(t, openSource(t, tr, "jobs", time.Minute), 1)); got[0] != "old" {
		t.Errorf("got %q", got)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		version string
		ok      bool
	}{{"6.0.16", false}, {"5.0", false}, {"6.2.0", true}, {"7.0.15", true}, {"10.1", true}, {"unknown", true}, {"", true}} {
		tr := open(t, client(t, "127.0.0.1:1"))
		err := tr.judge(parseInfo("# Server\r\nredis_version:" + tc.version + "\r\n"))
		if (err == nil) != tc.ok || err != nil && (!errors.Is(err, transport.ErrUnsupported) ||
			!strings.Contains(err.Error(), tc.version) || !strings.Contains(err.Error(), needVersion)) {
			t.Errorf("%s: %v", tc.version, err)
		}
	}
}

func TestRefusedConfigurations(t *testing.T) {
	t.Parallel()
	a := []string{"a:1"}
	for _, tc := range []struct {
		cfg  ClientConfig
		text string
	}{
		{ClientConfig{}, "no address"},
		{ClientConfig{Addrs: []string{""}}, "empty address"},
		{ClientConfig{Addrs: []string{"redis://a:1"}}, "scheme"},
		{ClientConfig{Addrs: []string{"a:1", "b:1"}}, "several addresses"},
		{ClientConfig{Addrs: a, Cluster: true, MasterName: "m"}, "exclude"},
		{ClientConfig{Addrs: a, Cluster: true, DB: 1}, "database 0"},
		{ClientConfig{Addrs: a, PoolSize: -1}, "negative"},
		{ClientConfig{Addrs: a, ReadTimeout: -1}, "negative"},
		{ClientConfig{Addrs: a, SentinelPassword: "x"}, "Sentinel"},
	} {
		if _, err := NewClient(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%+v: %v", tc.cfg, err)
		}
	}
	c := client(t, "127.0.0.1:1")
	for _, cfg := range []Config{{Group: "g"}, {Client: c}, {Client: c, Group: "g", Lease: -1}, {Client: c, Group: "g", MaxLen: -1}} {
		if _, err := Open(t.Context(), cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	short := newClient(t, ClientConfig{Addrs: a, ReadTimeout: 200 * time.Millisecond})
	if tr := open(t, short); tr.cfg.Block > 100*time.Millisecond {
		t.Errorf("a read waits for %v where the client waits for 200 ms", tr.cfg.Block)
	}
	tr := open(t, c)
	for _, cfg := range []transport.SourceConfig{{Limit: 1}, {Subject: "a"}, {Subject: "a b", Limit: 1}, {Subject: "a", Limit: 1, Lease: -1}} {
		if _, err := tr.Source(t.Context(), cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// A server that is not there is a transient error, at start and later.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	tr := open(t, newClient(t, ClientConfig{Addrs: []string{"127.0.0.1:1"}, DialTimeout: time.Second}))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, errSource := tr.Source(ctx, transport.SourceConfig{Subject: "jobs", Limit: 1})
	_, errTail := tr.Tail(ctx, "jobs", true)
	_, errBacklog := tr.Backlog(ctx, "jobs")
	for i, err := range []error{
		tr.Prepare(ctx, transport.Subjects{Sources: []string{"jobs"}}), tr.Ping(ctx),
		tr.Publisher().Publish(ctx, msg("jobs", "x")), errSource, errTail, errBacklog,
	} {
		if err == nil || transport.Permanent(err) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("call %d: %v", i, err)
		}
	}
}
