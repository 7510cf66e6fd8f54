package jetstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// tlsConfig trusts the tests' CA and shows the client's certificate if asked to.
func tlsConfig(t *testing.T, client bool) *tls.Config {
	t.Helper()
	dir := services.TLSDir(t)
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	c.RootCAs.AppendCertsFromPEM(pem)
	if client {
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	keys := services.NATSKeysDir(t)
	auth, mtls, creds := services.NATSAuth(t), services.NATSMTLS(t), services.NATSCreds(t)
	for name, c := range map[string]struct {
		cfg ConnectConfig
		err string // what refusal says; "" for none
	}{
		"password":           {ConnectConfig{URLs: []string{auth}, Username: "job", Password: "secret"}, ""},
		"wrong password":     {ConnectConfig{URLs: []string{auth}, Username: "job", Password: "wrong"}, "the server refuses the credentials"},
		"no password":        {ConnectConfig{URLs: []string{auth}}, "the server refuses the credentials"},
		"nkey":               {ConnectConfig{URLs: []string{auth}, NKeySeedFile: filepath.Join(keys, "user.nk")}, ""},
		"token":              {ConnectConfig{URLs: []string{auth}, Token: "guess"}, "the server refuses the credentials"},
		"password over TLS":  {ConnectConfig{URLs: []string{auth}, Username: "job", Password: "secret", TLS: tlsConfig(t, false)}, ""},
		"unknown authority":  {ConnectConfig{URLs: []string{auth}, Username: "job", Password: "secret", TLS: &tls.Config{MinVersion: tls.VersionTLS12}}, "certificate signed by unknown authority"},
		"client certificate": {ConnectConfig{URLs: []string{mtls}, TLS: tlsConfig(t, true)}, ""},
		"no certificate":     {ConnectConfig{URLs: []string{mtls}, TLS: tlsConfig(t, false)}, "tls"},
		"creds":              {ConnectConfig{URLs: []string{creds}, CredsFile: filepath.Join(keys, "user.creds")}, ""},
		"no creds":           {ConnectConfig{URLs: []string{creds}}, "the server refuses the credentials"},
		"creds not there":    {ConnectConfig{URLs: []string{creds}, CredsFile: "none.creds"}, "none.creds"},
		"nkey not there":     {ConnectConfig{URLs: []string{auth}, NKeySeedFile: "none.nk"}, "none.nk"},
		"two kinds":          {ConnectConfig{URLs: []string{auth}, Username: "job", Token: "x"}, "at most one"},
		"no URL":             {ConnectConfig{}, "no URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := func() error {
				nc, err := Connect(t.Context(), c.cfg)
				if err != nil {
					return err
				}
				nc.Close()
				tr := open(t, dial(t, c.cfg))
				return tr.Prepare(t.Context(), transport.Subjects{})
			}()
			switch {
			case c.err == "" && err != nil:
				t.Error(err)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("got %v, want %q", err, c.err)
			case c.err == "the server refuses the credentials" && !transport.Permanent(err):
				t.Errorf("%v: not permanent", err)
			}
		})
	}
}

// A forbidden publish is no error of the publish: the server tells the connection's error handler alone.
func TestPermissionDenied(t *testing.T) {
	t.Parallel()
	auth := services.NATSAuth(t)
	subject := "jobs." + services.UniqueName(t)
	owner := open(t, dial(t, ConnectConfig{URLs: []string{auth}, Username: "job", Password: "secret"}))
	prepare(t, owner, transport.Subjects{Sources: []string{subject}})
	t.Cleanup(func() { deleteStreams(owner, subject) })
	var log logBuffer
	nc := dial(t, ConnectConfig{URLs: []string{auth}, Username: "reader", Password: "secret", Log: slog.New(slog.NewTextHandler(&log, nil))})
	tr := open(t, nc)
	begun := time.Now()
	err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: subject, Body: []byte("x")})
	if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), subject) {
		t.Errorf("Publish: %v", err)
	}
	if took := time.Since(begun); took >= apiTimeout {
		t.Errorf("Publish took %v: it waited for an acknowledgement although the server had refused", took)
	}
	err = tr.Replier().Publish(t.Context(), &transport.Message{Subject: "jobs.core." + services.UniqueName(t), Body: []byte("x")})
	if !errors.Is(err, transport.ErrRejected) {
		t.Errorf("reply: %v", err)
	}
	await(t, "the log names the subject", func() bool {
		return strings.Contains(log.String(), "Permissions Violation for Publish to "+`\"`+subject)
	})
}

// What may not be asked of JetStream is named as well.
func TestPermissionDeniedOnAPI(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, `authorization: { users: [
		{ user: "few", password: "x", permissions: { publish: { deny: "$JS.API.STREAM.CREATE.>" } } } ] }`)
	tr := open(t, dial(t, ConnectConfig{URLs: []string{srv.Addr}, Username: "few", Password: "x"}))
	err := tr.Prepare(t.Context(), transport.Subjects{Sources: []string{"jobs"}})
	if !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), `"$JS.API.STREAM.CREATE.WASM_jobs"`) {
		t.Errorf("Prepare: %v", err)
	}
}

// Without its inbox a client hears no answer to anything.
func TestPermissionDeniedOnInbox(t *testing.T) {
	t.Parallel()
	srv := services.StartNATS(t, `authorization: { users: [
		{ user: "deaf", password: "x", permissions: { subscribe: { deny: "_INBOX.>" } } } ] }`)
	tr := open(t, dial(t, ConnectConfig{URLs: []string{srv.Addr}, Username: "deaf", Password: "x"}))
	if err := tr.Ping(t.Context()); !errors.Is(err, transport.ErrRejected) || !strings.Contains(err.Error(), "may not subscribe to _INBOX.>") {
		t.Errorf("Ping: %v", err)
	}
}
