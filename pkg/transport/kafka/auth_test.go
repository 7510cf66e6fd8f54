package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// clientTLS trusts the test servers; with cert it shows the client's certificate.
func clientTLS(t testing.TB, cert bool) *tls.Config {
	t.Helper()
	dir := services.TLSDir(t)
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	cfg := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if cert {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

// Each listener takes what it should, from Prepare to settlement, and refuses what it should with an error that helps.
func TestCredentials(t *testing.T) {
	t.Parallel()
	login := func(mechanism, password string) SASL {
		return SASL{Mechanism: mechanism, Username: services.User, Password: password}
	}
	trusted, shown := clientTLS(t, false), clientTLS(t, true)
	for _, c := range []struct {
		name     string
		listener string
		sasl     SASL
		tls      *tls.Config
		refused  string // part of the error; empty: accepted
		fickle   bool   // the refusal could be the broker's restart, so it is no permanent error
	}{
		{"scram 256", "SCRAM", login("SCRAM-SHA-256", services.Password), nil, "", false},
		{"scram 512", "SCRAM", login("SCRAM-SHA-512", services.Password), nil, "", false},
		{"scram wrong password", "SCRAM", login("SCRAM-SHA-512", "wrong"), nil, `SASL SCRAM-SHA-512 as user "job"`, false},
		{"scram listener by plain", "SCRAM", login("PLAIN", services.Password), nil, "SASL PLAIN", false},
		{"scram without sasl", "SCRAM", SASL{}, nil, "check sasl and tls", true},
		{"plain", "PLAIN", login("PLAIN", services.Password), nil, "", false},
		{"plain wrong password", "PLAIN", login("PLAIN", "wrong"), nil, `SASL PLAIN as user "job"`, false},
		{"tls", "TLS", SASL{}, trusted, "", false},
		{"tls unknown ca", "TLS", SASL{}, &tls.Config{}, "tls.ca", false},
		{"tls without tls", "TLS", SASL{}, nil, "tls", true},
		{"mtls", "MTLS", SASL{}, shown, "", false},
		{"mtls without certificate", "MTLS", SASL{}, trusted, "tls.cert", false},
		{"scram over tls", "SCRAM_TLS", login("SCRAM-SHA-512", services.Password), trusted, "", false},
		{"scram over tls wrong password", "SCRAM_TLS", login("SCRAM-SHA-512", "wrong"), trusted, "SASL SCRAM-SHA-512", false},
		{"tls to a plain port", "PLAIN", login("PLAIN", services.Password), trusted, "tls", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			topic := unique(t)
			cfg := config(t, []string{services.KafkaListener(t, c.listener)})
			cfg.SASL, cfg.TLS = c.sasl, c.tls
			tr := open(t, cfg)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if c.refused == "" {
				prepare(t, tr, topic)
				publish(t, tr, topic, "x")
				s := openSource(t, tr, topic)
				fetch(t, s, 1)[0].Ack()
				closeSource(t, s)
				if o, _ := offset(t, tr, topic); o != 1 {
					t.Errorf("committed %d", o)
				}
				return
			}
			err := tr.Prepare(ctx, transport.Subjects{Sources: []string{topic}})
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Fatalf("prepare: %v; want an error with %q", err, c.refused)
			}
			if got := transport.Permanent(err); got == c.fickle {
				t.Errorf("permanent is %v: %v", got, err)
			}
			s := openSource(t, tr, topic)
			began, errs := time.Now(), 0
			for time.Since(began) < 2*time.Second {
				fctx, cancel := context.WithTimeout(ctx, 2*time.Second-time.Since(began))
				_, err := s.Fetch(fctx, 1)
				if fctx.Err() == nil {
					errs++
					if err == nil || !strings.Contains(err.Error(), c.refused) {
						t.Errorf("fetch: %v; want an error with %q", err, c.refused)
					}
				}
				cancel()
			}
			if errs == 0 || errs > 50 {
				t.Errorf("fetch failed %d times in two seconds", errs)
			}
		})
	}
}

// OAUTHBEARER's token file is read at each login; AWS_MSK_IAM signs with its keys. The broker is asked what it was sent.
func TestTokens(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		sasl SASL
		want []string // parts of what is sent
	}{
		{"token", SASL{Mechanism: "OAUTHBEARER", Token: "given"}, []string{"auth=Bearer given\x01"}},
		{"token file", SASL{Mechanism: "OAUTHBEARER", TokenFile: file}, []string{"auth=Bearer first\x01"}},
		{"aws", SASL{Mechanism: "AWS_MSK_IAM", AccessKey: "AKIA", SecretKey: "secret", SessionToken: "session"},
			[]string{"kafka-cluster:Connect", "AKIA", "session", "x-amz-signature"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cluster, brokers := fake(t)
			var mu sync.Mutex
			var mechanism, sent string
			cluster.ControlKey(kmsg.SASLHandshake.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				mu.Lock()
				mechanism = req.(*kmsg.SASLHandshakeRequest).Mechanism
				mu.Unlock()
				resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
				resp.SupportedMechanisms = []string{c.sasl.Mechanism}
				return resp, nil, true
			})
			cluster.ControlKey(kmsg.SASLAuthenticate.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				mu.Lock()
				sent = string(req.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes)
				mu.Unlock()
				resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
				if c.sasl.Mechanism == "AWS_MSK_IAM" {
					resp.SASLAuthBytes, _ = json.Marshal(map[string]string{"version": "2020_10_22", "request-id": "x"})
				}
				return resp, nil, true
			})
			cfg := config(t, brokers)
			cfg.SASL = c.sasl
			if c.sasl.Mechanism == "AWS_MSK_IAM" { // the region is in the broker's name
				cfg.Brokers = []string{"b-1.test.kafka.eu-west-1.amazonaws.com:9098"}
				cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, brokers[0])
				}
			}
			tr := open(t, cfg)
			if err := tr.Ping(t.Context()); err != nil {
				t.Fatalf("ping: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if mechanism != c.sasl.Mechanism {
				t.Errorf("the mechanism is %q", mechanism)
			}
			for _, w := range c.want {
				if !strings.Contains(sent, w) {
					t.Errorf("%q was not sent in %q", w, sent)
				}
			}
			if c.sasl.TokenFile == "" {
				return
			}
			if err := os.WriteFile(file, []byte("second"), 0o600); err != nil {
				t.Fatal(err)
			}
			if a, err := cfg.SASL.oauth(t.Context()); err != nil || a.Token != "second" {
				t.Errorf("the token after the file was replaced: %q, %v", a.Token, err)
			}
		})
	}
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	good := Config{Brokers: []string{"localhost:1"}, Group: "g"}
	for name, edit := range map[string]func(*Config){
		"no brokers":                func(c *Config) { c.Brokers = nil },
		"no group":                  func(c *Config) { c.Group = "" },
		"unknown group protocol":    func(c *Config) { c.Protocol = "share" },
		"unknown SASL mechanism":    func(c *Config) { c.SASL.Mechanism = "GSSAPI" },
		"without a mechanism":       func(c *Config) { c.SASL.Username = "u" },
		"needs a username":          func(c *Config) { c.SASL = SASL{Mechanism: "PLAIN", Username: "u"} },
		"needs a token":             func(c *Config) { c.SASL = SASL{Mechanism: "OAUTHBEARER"} },
		"and not both":              func(c *Config) { c.SASL = SASL{Mechanism: "OAUTHBEARER", Token: "t", TokenFile: "f"} },
		"needs an access key":       func(c *Config) { c.SASL = SASL{Mechanism: "AWS_MSK_IAM", AccessKey: "a"} },
		"unknown compression":       func(c *Config) { c.Compression = "brotli" },
		"largest message":           func(c *Config) { c.MaxMessageBytes = 10 },
		"session timeout is":        func(c *Config) { c.SessionTimeout = -1 },
		"not below the session":     func(c *Config) { c.HeartbeatInterval = time.Minute },
		"partitions and replic":     func(c *Config) { c.Partitions = -2 },
		"set another delay prefix":  func(c *Config) { c.Delays, c.Group = true, "a b" },
		"let Dial speak TLS itself": func(c *Config) { c.TLS, c.Dial = &tls.Config{}, newCut().dial },
	} {
		cfg := good
		edit(&cfg)
		if _, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	tr := open(t, good) // no broker is there, and none is needed
	if tr.Name() != "kafka" || tr.Replier() != tr.Publisher() {
		t.Error("name or replier")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := tr.Ping(ctx); err == nil || transport.Permanent(err) {
		t.Errorf("ping of nobody: %v", err)
	}
	if err := tr.Prepare(ctx, transport.Subjects{Sources: []string{"a"}}); err == nil || transport.Permanent(err) {
		t.Errorf("prepare without a broker: %v", err)
	}
	if _, err := tr.Source(ctx, transport.SourceConfig{Subject: "a.*", Limit: 1}); !errors.Is(err, transport.ErrRejected) {
		t.Errorf("a source of a wildcard: %v", err)
	}
}
