// Testkeys makes the throw-away keys of the test servers.
//
//	testkeys tls DIR     a CA, a server certificate for localhost and 127.0.0.1 and a client certificate CN=client, all PEM
//	testkeys nats DIR    an nkey user, and an operator with one account with JetStream and one user
package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "testkeys:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: testkeys tls|nats DIR")
	}
	if err := os.MkdirAll(args[1], 0o700); err != nil {
		return err
	}
	var files map[string][]byte
	var err error
	switch args[0] {
	case "tls":
		files, err = tlsFiles()
	case "nats":
		files, err = natsFiles()
	default:
		err = fmt.Errorf("unknown kind %q", args[0])
	}
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(args[1], name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// tlsFiles has, for each name, NAME.crt, NAME.key and NAME.pem, which is both in one file as Kafka wants it.
func tlsFiles() (map[string][]byte, error) {
	files := make(map[string][]byte)
	now := time.Now()
	add := func(serial int64, name string, parent *x509.Certificate, parentKey crypto.Signer, c *x509.Certificate) (crypto.Signer, error) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, fmt.Errorf("make the key of %s: %w", name, err)
		}
		c.SerialNumber = big.NewInt(serial)
		c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.AddDate(1, 0, 0)
		c.BasicConstraintsValid = true
		if parent == nil {
			parent, parentKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
		if err != nil {
			return nil, fmt.Errorf("sign the certificate of %s: %w", name, err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encode the key of %s: %w", name, err)
		}
		crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
		files[name+".crt"], files[name+".key"] = crt, keyPEM
		files[name+".pem"] = append(append([]byte(nil), keyPEM...), crt...)
		return key, nil
	}

	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	caKey, err := add(1, "ca", nil, nil, ca)
	if err != nil {
		return nil, err
	}
	for i, name := range []string{"server", "client"} {
		leaf := &x509.Certificate{
			Subject:     pkix.Name{CommonName: name},
			DNSNames:    []string{"localhost"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if _, err := add(int64(i+2), name, ca, caKey, leaf); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// natsFiles has user.nk and user.pub for the server with users, and operator.jwt, resolver.conf and user.creds for the one in
// operator mode.
func natsFiles() (map[string][]byte, error) {
	var failed error
	keep := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	pair := func(create func() (nkeys.KeyPair, error)) (kp nkeys.KeyPair, public string, seed []byte) {
		kp, err := create()
		if err != nil {
			keep(err)
			return nil, "", nil
		}
		public, err = kp.PublicKey()
		keep(err)
		seed, err = kp.Seed()
		keep(err)
		return kp, public, seed
	}
	_, nkeyPublic, nkeySeed := pair(nkeys.CreateUser)
	operator, operatorPublic, _ := pair(nkeys.CreateOperator)
	_, systemPublic, _ := pair(nkeys.CreateAccount)
	account, accountPublic, _ := pair(nkeys.CreateAccount)
	_, userPublic, userSeed := pair(nkeys.CreateUser)
	if failed != nil {
		return nil, fmt.Errorf("make the NATS keys: %w", failed)
	}

	oc := jwt.NewOperatorClaims(operatorPublic)
	oc.Name, oc.SystemAccount = "test", systemPublic
	operatorJWT, err := oc.Encode(operator)
	keep(err)
	sc := jwt.NewAccountClaims(systemPublic)
	sc.Name = "SYS"
	systemJWT, err := sc.Encode(operator)
	keep(err)
	ac := jwt.NewAccountClaims(accountPublic)
	ac.Name = "JOBS"
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	accountJWT, err := ac.Encode(operator)
	keep(err)
	uc := jwt.NewUserClaims(userPublic)
	uc.Name = "job"
	userJWT, err := uc.Encode(account)
	keep(err)
	creds, err := jwt.FormatUserConfig(userJWT, userSeed)
	keep(err)
	if failed != nil {
		return nil, fmt.Errorf("sign the NATS claims: %w", failed)
	}
	return map[string][]byte{
		"user.nk":      nkeySeed,
		"user.pub":     []byte(nkeyPublic),
		"operator.jwt": []byte(operatorJWT),
		"resolver.conf": fmt.Appendf(nil, "resolver: MEMORY\nresolver_preload: {\n  %s: %s\n  %s: %s\n}\n",
			systemPublic, systemJWT, accountPublic, accountJWT),
		"user.creds": creds,
	}, nil
}
