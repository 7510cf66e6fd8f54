package rediskv_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/rediskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// opened is a store that knows how it was opened, so that a second one can be opened on the same data.
type opened struct {
	store.Store
	opt    redis.Options
	prefix string
}

func open(t testing.TB, opt redis.Options, prefix string) *opened {
	t.Helper()
	client := redis.NewClient(&opt)
	t.Cleanup(func() { _ = client.Close() })
	s, err := rediskv.Open(t.Context(), client, rediskv.Config{Prefix: prefix})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &opened{Store: s, opt: opt, prefix: prefix}
}

func harness(opt redis.Options) storetest.Harness {
	return storetest.Harness{
		Open: func(t testing.TB) store.Store { return open(t, opt, prefix(t)) },
		Reopen: func(t testing.TB, s store.Store) store.Store {
			o := s.(*opened)
			return open(t, o.opt, o.prefix)
		},
		Cut: func(t testing.TB) (store.Store, *services.Proxy) {
			p := services.NewProxy(t, opt.Addr)
			cut := opt
			cut.Addr = p.Addr()
			return open(t, cut, prefix(t)), p
		},
		Features: storetest.Features{TTL: 100 * time.Millisecond},
	}
}

func prefix(t testing.TB) string { return "wasm:" + services.UniqueName(t) + ":" }

func TestStore(t *testing.T) {
	t.Parallel()
	h := harness(redis.Options{Addr: services.Redis(t)})
	h.Full = func(t testing.TB) store.Store {
		srv := services.StartRedis(t, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
		return open(t, redis.Options{Addr: srv.Addr}, "wasm:")
	}
	storetest.Run(t, h)
}

// rights are those that the errors of this package name, and no more.
func rights() []string {
	return strings.Fields("~wasm:* &wasm:* -@all +@string +@hash +@sortedset +@keyspace +@scripting +@pubsub +@connection +info +time")
}

// The same with a user who may do only what the store needs.
func TestStoreACL(t *testing.T) {
	t.Parallel()
	args := append([]string{"--user", "default", "off", "--user", services.User, "on", ">" + services.Password}, rights()...)
	srv := services.StartRedis(t, args...)
	storetest.Run(t, harness(redis.Options{Addr: srv.Addr, Username: services.User, Password: services.Password}))
}

func TestStoreTLS(t *testing.T) {
	t.Parallel()
	_, addr := services.RedisACL(t)
	h := harness(redis.Options{Addr: addr, Username: "admin", Password: "admin", TLSConfig: tlsConfig(t)})
	s := h.Open(t)
	r, err := s.Txn(t.Context(), store.Txn{Then: []store.Op{store.Put("p/a", []byte("v"), time.Minute)}})
	if err != nil || !r.Done {
		t.Fatalf("done %v, %v", r.Done, err)
	}
}

func tlsConfig(t testing.TB) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(services.TLSDir(t), "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in ca.crt")
	}
	return &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	acl, _ := services.RedisACL(t)
	client := func(t *testing.T, opt redis.Options) redis.UniversalClient {
		c := redis.NewClient(&opt)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	job := redis.Options{Addr: acl, Username: services.User, Password: services.Password}
	wrong := job
	wrong.Password = "wrong"
	for _, c := range []struct {
		name, prefix, want string
		opt                redis.Options
	}{
		{"braces in the prefix", "wasm:{x}", "braces", redis.Options{Addr: services.Redis(t)}},
		{"a prefix that the user may not use", "other:", "~<prefix>*", job},
		{"a wrong password", "wasm:", "WRONGPASS", wrong},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := rediskv.Open(t.Context(), client(t, c.opt), rediskv.Config{Prefix: c.prefix})
			if err == nil {
				_ = s.Close()
				t.Fatal("Open succeeded")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %q does not say %q", err, c.want)
			}
		})
	}
}

func BenchmarkTxn(b *testing.B) {
	storetest.Bench(b, func(t testing.TB) store.Store {
		return open(t, redis.Options{Addr: services.Redis(t)}, prefix(t))
	})
}
