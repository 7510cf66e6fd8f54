package sidecar

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
)

// tlsConfig reads the files that c names; nil where TLS is not wanted.
func tlsConfig(section string, c config.TLS) (*tls.Config, error) {
	if !c.Enabled {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.InsecureSkipVerify}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("%s.tls.ca: %w", section, err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s.tls.ca: %s holds no PEM certificate", section, c.CA)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("%s.tls.cert and key: %w", section, err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
