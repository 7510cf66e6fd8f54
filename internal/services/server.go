package services

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTimeout and stopTimeout bound how long a private server may take; generous, because machines that test are busy.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 15 * time.Second
)

// Server is a server process of one test, which the test may stop, kill and start again on the same port with the same data. It
// ends with the test. Its methods fail the test when they cannot do what they say; one goroutine at a time may call them.
type Server struct {
	// Addr is host:port and stays the same through restarts.
	Addr string
	// Dir holds the server's data and configuration.
	Dir string

	t         testing.TB
	name      string
	binary    string
	args      []string
	env       []string // beside the test's own
	container string   // its name, where the server is one and binary is docker
	answer    string   // what the server says first, to a PING if it waits for one
	ping      string
	hello     func(net.Conn) error // in place of both; nil for none
	patience  time.Duration        // to start

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// StartRedis starts a Redis that keeps nothing on disk unless extraArgs say so ("--appendonly", "yes", "--appendfsync", "always"),
// and waits until it answers. extraArgs are arguments of redis-server and win over the defaults. Where redis-server is not
// installed and scripts/services runs Redis in a container, this one is a container too, with Dir as its own /data.
func StartRedis(t testing.TB, extraArgs ...string) *Server {
	t.Helper()
	s := newRedis(t, extraArgs...)
	s.Start()
	return s
}

func newRedis(t testing.TB, extraArgs ...string) *Server {
	t.Helper()
	var image string
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if image, _ = lookup("REDIS_IMAGE"); image == "" {
			t.Fatalf("services: redis-server is not installed: %v; run scripts/services start", err)
		}
		binary = "docker"
	}
	s := newServer(t, "redis-server", binary)
	s.ping, s.answer = "PING\r\n", "+PONG"
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatalf("services: %v", err)
	}
	bind, data := "127.0.0.1", s.Dir
	if image != "" {
		bind, data = "0.0.0.0", "/data"
		s.container = "wasmsidecar-" + UniqueName(t)
		s.args = []string{"run", "--rm", "--name", s.container, "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()),
			"-p", s.Addr + ":" + port, "-v", s.Dir + ":/data", "--entrypoint", "redis-server", image, "--protected-mode", "no"}
	}
	s.args = append(s.args, "--bind", bind, "--port", port, "--dir", data, "--save", "", "--appendonly", "no")
	s.args = append(s.args, extraArgs...)
	if asksPassword(extraArgs) {
		s.answer = "-NOAUTH"
	}
	return s
}

func asksPassword(args []string) bool {
	for _, a := range args {
		if a == "--requirepass" || a == "--aclfile" || a == "--user" {
			return true
		}
	}
	return false
}

// StartNATS starts a NATS server with JetStream in files under Dir and waits until it answers. conf is added to its
// configuration file and may have a jetstream block of its own, but no listen line.
func StartNATS(t testing.TB, conf string) *Server {
	t.Helper()
	s := newServer(t, "nats-server", natsBinary(t))
	s.answer = "INFO "
	text := fmt.Sprintf("listen: %q\n", s.Addr)
	if !strings.Contains(conf, "jetstream") {
		text += fmt.Sprintf("jetstream: { store_dir: %q }\n", filepath.Join(s.Dir, "jetstream"))
	}
	file := filepath.Join(s.Dir, "nats.conf")
	if err := os.WriteFile(file, []byte(text+conf+"\n"), 0o600); err != nil {
		t.Fatalf("services: write the configuration of nats-server: %v", err)
	}
	s.args = []string{"-c", file}
	s.Start()
	return s
}

// natsBinary is the one that scripts/services built, else one on PATH.
func natsBinary(t testing.TB) string {
	t.Helper()
	if file, err := envFile(); err == nil {
		binary := filepath.Join(filepath.Dir(file), "bin", "nats-server")
		if _, err := os.Stat(binary); err == nil {
			return binary
		}
	}
	binary, err := exec.LookPath("nats-server")
	if err != nil {
		t.Fatalf("services: nats-server is not built: %v; run scripts/services start", err)
	}
	return binary
}

func newServer(t testing.TB, name, binary string) *Server {
	t.Helper()
	s := &Server{Addr: freeAddr(t), Dir: t.TempDir(), t: t, name: name, binary: binary, patience: startTimeout}
	t.Cleanup(func() { s.signal(syscall.SIGKILL) })
	return s
}

// freeAddr finds a free loopback address and lets it go; another process may take it before a server does, and then the start fails
// by name.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		t.Fatalf("services: find a free port: %v", err)
	}
	return l.Addr().String()
}

// Start starts the server again after Stop or Kill and waits until it answers.
func (s *Server) Start() {
	s.t.Helper()
	s.mu.Lock()
	running := s.cmd != nil
	s.mu.Unlock()
	if running {
		s.t.Fatalf("services: %s at %s runs already", s.name, s.Addr)
	}
	logFile := filepath.Join(s.Dir, "server.log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatalf("services: %v", err)
	}
	defer log.Close()
	cmd := exec.Command(s.binary, s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), s.env...)
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("services: start %s: %v", s.name, err)
	}
	exited := make(chan struct{})
	go func() {
		// How it ended is in its log; the tests end servers in every way there is.
		_ = cmd.Wait()
		close(exited)
	}()
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()

	deadline := time.Now().Add(s.patience)
	for {
		err := s.probe()
		if err == nil {
			return
		}
		select {
		case <-exited:
			s.t.Fatalf("services: %s ended before it was ready; its log:\n%s", s.name, tail(logFile))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("services: no answer from %s at %s within %s: %v; its log:\n%s", s.name, s.Addr, s.patience, err, tail(logFile))
		}
	}
}

// PID is the number of the server's process while it runs; where it is a container, that of the client that waits for it.
func (s *Server) PID() int {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		s.t.Fatalf("services: %s at %s does not run", s.name, s.Addr)
	}
	return s.cmd.Process.Pid
}

// Stop ends the server in good order and returns when it has ended.
func (s *Server) Stop() {
	s.t.Helper()
	if !s.signal(syscall.SIGTERM) {
		s.t.Fatalf("services: %s at %s did not end within %s", s.name, s.Addr, stopTimeout)
	}
}

// Kill ends the server as a power cut would (SIGKILL) and returns when it has ended.
func (s *Server) Kill() {
	s.t.Helper()
	if !s.signal(syscall.SIGKILL) {
		s.t.Fatalf("services: %s at %s was killed and did not end within %s", s.name, s.Addr, stopTimeout)
	}
}

// signal reports whether the server has ended.
func (s *Server) signal(sig syscall.Signal) bool {
	s.mu.Lock()
	cmd, exited := s.cmd, s.exited
	s.mu.Unlock()
	if cmd == nil {
		return true
	}
	if s.container != "" {
		// A client that is killed would leave its container behind. An error means that it has ended already, or shows below.
		_ = exec.Command(s.binary, "kill", "--signal", strconv.Itoa(int(sig)), s.container).Run()
	} else {
		// The only error is that it has ended already.
		_ = cmd.Process.Signal(sig)
	}
	select {
	case <-exited:
	case <-time.After(stopTimeout):
		return false
	}
	s.mu.Lock()
	s.cmd = nil
	s.mu.Unlock()
	return true
}

func (s *Server) probe() error {
	c, err := net.DialTimeout("tcp", s.Addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if s.hello != nil {
		return s.hello(c)
	}
	if _, err := c.Write([]byte(s.ping)); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, s.answer) {
		return fmt.Errorf("it says %q", strings.TrimSpace(line))
	}
	return nil
}

func tail(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(b) > 4096 {
		b = b[len(b)-4096:]
	}
	return string(b)
}
