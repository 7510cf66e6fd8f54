// Netprobe does for scripts/services what a shell cannot do portably: it finds free ports and waits until a server answers in
// its own protocol.
//
//	netprobe ports N                       prints N free loopback ports, one a line
//	netprobe wait KIND ADDRESS TIMEOUT     KIND is kafka, redis, nats or tcp; TIMEOUT is a Go duration
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "netprobe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "ports":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return fmt.Errorf("read the number of ports %q: %w", args[1], err)
		}
		return printPorts(n)
	case len(args) == 4 && args[0] == "wait":
		timeout, err := time.ParseDuration(args[3])
		if err != nil {
			return fmt.Errorf("read the timeout: %w", err)
		}
		return wait(args[1], args[2], timeout)
	}
	return errors.New("usage: netprobe ports N | netprobe wait kafka|redis|nats|tcp ADDRESS TIMEOUT")
}

// printPorts picks below the range from which systems take the ports of outgoing connections, so that a server which is
// stopped for a while finds its port free again.
func printPorts(n int) error {
	const low, high = 20000, 32000
	held := make(map[int]bool, n)
	for try := 0; len(held) < n; try++ {
		if try > 100*n {
			return fmt.Errorf("find %d free ports between %d and %d", n, low, high)
		}
		port := low + rand.IntN(high-low)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer l.Close()
		if !held[port] {
			held[port] = true
			fmt.Println(port)
		}
	}
	return nil
}

func wait(kind, addr string, timeout time.Duration) error {
	probe := map[string]func(net.Conn) error{
		"kafka": probeKafka, "redis": probeRedis, "nats": probeNATS, "tcp": func(net.Conn) error { return nil },
	}[kind]
	if probe == nil {
		return fmt.Errorf("unknown kind %q", kind)
	}
	deadline := time.Now().Add(timeout)
	for {
		err := once(addr, probe)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no answer from %s at %s within %s: %w", kind, addr, timeout, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func once(addr string, probe func(net.Conn) error) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	return probe(c)
}

// probeKafka asks for the metadata of no topic. A broker accepts connections before it may serve; once it may, it lists itself.
func probeKafka(c net.Conn) error {
	request := []byte{
		0, 0, 0, 14, // size
		0, 3, 0, 1, // Metadata, version 1
		0, 0, 0, 1, // correlation id
		0xff, 0xff, // no client id
		0, 0, 0, 0, // no topics
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	var answer [12]byte // size, correlation id, number of brokers
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(answer[8:]) == 0 {
		return errors.New("the broker is not in its own cluster yet")
	}
	return nil
}

// probeRedis takes a server that asks for a password for ready.
func probeRedis(c net.Conn) error {
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "+PONG") && !strings.HasPrefix(line, "-NOAUTH") {
		return fmt.Errorf("it says %q", strings.TrimSpace(line))
	}
	return nil
}

func probeNATS(c net.Conn) error {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "INFO ") {
		return fmt.Errorf("it says %q", strings.TrimSpace(line))
	}
	return nil
}
