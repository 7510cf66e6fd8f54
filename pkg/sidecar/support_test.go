package sidecar_test

import (
	"net"
	"strings"
	"testing"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
)

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func natsURL(t *testing.T) string {
	t.Helper()
	addr := services.NATS(t)
	if strings.Contains(addr, "://") {
		return addr
	}
	return "nats://" + addr
}
