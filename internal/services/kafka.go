package services

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// kafkaCluster is the id that the data of a private broker is formatted with.
const kafkaCluster = "c2lkZWNhci10ZXN0LWtrYQ"

// StartKafka starts a Kafka broker that keeps its data under Dir, and waits until it answers, which takes some ten seconds. Clients
// that connect to Addr are sent to Addr. Each of advertise gets a listener of its own: it is told the listener's address, and clients
// are sent to the one that it returns, so that a Proxy stands between. The broker flushes every record to disk. It needs Java
// and a folder of jars: those of the shared broker, or in KAFKA_LIBS or KAFKA_HOME/libs.
func StartKafka(t testing.TB, advertise ...func(addr string) string) *Server {
	t.Helper()
	s := newServer(t, "kafka", "")
	controller := freeAddr(t)
	kafkaNode(t, s, 1, controller, "1@"+controller, 1, advertise)
	s.Start()
	return s
}

// StartKafkaCluster starts n brokers that replicate to one another. Losing less than half of them stops nothing that is replicated
// n times. It needs half a gigabyte for each.
func StartKafkaCluster(t testing.TB, n int) []*Server {
	t.Helper()
	nodes, controllers, voters := make([]*Server, n), make([]string, n), make([]string, n)
	for i := range nodes {
		nodes[i], controllers[i] = newServer(t, "kafka", ""), freeAddr(t)
		voters[i] = fmt.Sprintf("%d@%s", i+1, controllers[i])
	}
	var starting sync.WaitGroup
	for i, s := range nodes {
		kafkaNode(t, s, i+1, controllers[i], strings.Join(voters, ","), n, nil)
		starting.Go(s.Start) // none answers before most are there
	}
	starting.Wait()
	return nodes
}

// kafkaNode makes s one of n brokers: it writes its configuration and formats its data.
func kafkaNode(t testing.TB, s *Server, id int, controller, voters string, n int, advertise []func(addr string) string) {
	t.Helper()
	libs := kafkaLibs(t)
	java, err := exec.LookPath("java")
	if err != nil {
		t.Fatalf("services: java is not installed: %v", err)
	}
	s.binary = java
	listeners, advertised, protocols := "PLAINTEXT://"+s.Addr, "PLAINTEXT://"+s.Addr, "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"
	for i, f := range advertise {
		addr := freeAddr(t)
		listeners += fmt.Sprintf(",L%d://%s", i, addr)
		advertised += fmt.Sprintf(",L%d://%s", i, f(addr))
		protocols += fmt.Sprintf(",L%d:PLAINTEXT", i)
	}
	data, conf := filepath.Join(s.Dir, "data"), filepath.Join(s.Dir, "kafka.properties")
	text := fmt.Sprintf(`process.roles=broker,controller
node.id=%[6]d
controller.quorum.voters=%[7]s
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners=CONTROLLER://%[1]s,%[2]s
advertised.listeners=%[3]s
listener.security.protocol.map=%[4]s
log.dirs=%[5]s
log.flush.interval.messages=1
offsets.topic.replication.factor=%[8]d
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=%[8]d
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=%[8]d
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
min.insync.replicas=%[9]d
`, controller, listeners, advertised, protocols, data, id, voters, n, n/2+1)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatalf("services: write the configuration of kafka: %v", err)
	}
	quiet, path := "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", filepath.Join(libs, "*")
	if out, err := exec.Command(java, "-Xmx256m", quiet, "-cp", path, "kafka.tools.StorageTool", "format", "-t", kafkaCluster, "-c", conf).CombinedOutput(); err != nil {
		t.Fatalf("services: format the data folder of kafka: %v\n%s", err, out)
	}
	s.args = []string{"-Xmx512m", quiet, "-cp", path, "kafka.Kafka", conf}
	s.hello, s.patience = kafkaHello, 2*time.Minute
}

// kafkaLibs is a folder with a broker's jars.
func kafkaLibs(t testing.TB) string {
	t.Helper()
	known, err := lookup("KAFKA_LIBS")
	if err != nil {
		known = "" // the shared broker is not made of jars, or was started before
	}
	for _, dir := range []string{known, os.Getenv("KAFKA_LIBS"), filepath.Join(os.Getenv("KAFKA_HOME"), "libs")} {
		if found, err := filepath.Glob(filepath.Join(dir, "kafka_*.jar")); err == nil && len(found) > 0 {
			abs, err := filepath.Abs(dir)
			if err != nil {
				t.Fatalf("services: %v", err)
			}
			return abs
		}
	}
	t.Fatal("services: no jars of a Kafka broker: set KAFKA_LIBS to their folder, or KAFKA_HOME to an installation")
	return ""
}

// kafkaHello asks for the versions that the broker speaks, which it answers once it is up.
func kafkaHello(c net.Conn) error {
	const apiVersions, correlation = 18, 7
	req := binary.BigEndian.AppendUint32(nil, 10)
	req = binary.BigEndian.AppendUint16(req, apiVersions)
	req = binary.BigEndian.AppendUint16(req, 0) // version
	req = binary.BigEndian.AppendUint32(req, correlation)
	req = binary.BigEndian.AppendUint16(req, 0xffff) // no client id
	if _, err := c.Write(req); err != nil {
		return err
	}
	var head [8]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint32(head[4:]); got != correlation {
		return fmt.Errorf("it answers request %d", got)
	}
	return nil
}
