package sidecar_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// patient is a route that does its jobs in its own time, on a broker that a test makes ill.
type patient struct {
	*line
	n       int
	missing map[string]bool // jobs that the broker has taken and that have no result yet
}

// admit runs a sidecar of the configuration; client, if it is not empty, is how the test itself reaches the broker.
func admit(t *testing.T, head, route, client string) *patient {
	t.Helper()
	l := open(t, head, route, map[string]job.Runner{"m": job.RunnerFunc(func(_ context.Context, j *job.Job) (*job.Result, error) {
		return &job.Result{Body: j.Body}, nil
	})})
	if client != "" {
		l.dial(client)
	}
	p := &patient{line: l, missing: map[string]bool{}}
	p.send(5)
	p.healthy()
	return p
}

// send submits jobs; it tries each until the broker takes it.
func (p *patient) send(n int) {
	p.t.Helper()
	for range n {
		p.n++
		id := fmt.Sprint("job", p.n)
		m := &transport.Message{
			Subject: p.cfg.Routes[0].From, Body: []byte(id), Header: job.Header{{Name: transport.HeaderJobID, Value: id}},
		}
		var err error
		p.await("a job is taken", func() bool {
			ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
			defer cancel()
			err = p.client.Publisher().Publish(ctx, m)
			return err == nil
		})
		p.missing[id] = true
	}
}

// ails waits until /readyz says words, in any of its checks.
func (p *patient) ails(words ...string) {
	p.t.Helper()
	page := ""
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		page = p.get("/readyz")
		found := strings.Contains(page, `"ready": false`)
		for _, w := range words {
			found = found && strings.Contains(page, w)
		}
		if found {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("readiness does not say %q:\n%s\n%s", words, page, p.log)
		}
	}
}

// healthy waits until every job has a result and the sidecar is ready. What failed is no result.
func (p *patient) healthy() {
	p.t.Helper()
	for len(p.missing) > 0 {
		m := p.next(p.results, fmt.Sprintf("a result; missing are %v", p.missing))
		if m.Header.Get(transport.HeaderOK) != "true" {
			p.t.Fatalf("a job failed: %s", m.Body)
		}
		delete(p.missing, m.Header.Get(transport.HeaderResultOf))
	}
	p.await("ready", func() bool { return strings.Contains(p.get("/readyz"), `"ready": true`) })
	p.noMore(p.dead, "dead letter", 50*time.Millisecond)
}

// A server that ends, in good order or not, takes no job with it, and the sidecar goes on when it is back.
func TestServerRestarts(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) (*services.Server, string){
		"redis": func(t *testing.T) (*services.Server, string) {
			s := services.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
			return s, fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", s.Addr)
		},
		"nats": func(t *testing.T) (*services.Server, string) {
			s := services.StartNATS(t, "")
			return s, fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\"}\n", s.Addr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, head := start(t)
			p := admit(t, head, ", lease: 2s", "")
			for _, end := range []func(){s.Stop, s.Kill} {
				p.send(20)
				end()
				p.ails(`"broker `)
				s.Start()
				p.send(20)
				p.healthy()
			}
		})
	}
}

// A broker that falls silent, as behind a cable that was pulled, or that is cut off: the same.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]func(addr string) string{
		"redis": func(addr string) string { return fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", addr) },
		"nats": func(addr string) string {
			return fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\", group: g%d}\n", addr, freePort(t))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := services.Redis(t)
			if name == "nats" {
				target = strings.TrimPrefix(services.NATS(t), "nats://")
			}
			proxy := services.NewProxy(t, target)
			p := admit(t, head(proxy.Addr()), ", lease: 2s", head(target))
			for _, harm := range []func(){proxy.Silence, proxy.Cut} {
				harm()
				p.send(20)
				p.ails(`"broker `)
				proxy.Restore()
				p.healthy()
			}
		})
	}
}

// Redis without memory refuses writes: jobs wait, and the error names the remedy.
func TestRedisOutOfMemory(t *testing.T) {
	t.Parallel()
	s := services.StartRedis(t, "--maxmemory", "32mb", "--maxmemory-policy", "noeviction")
	r := redisClient(t, s.Addr)
	p := admit(t, fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", s.Addr), ", concurrency: 4, lease: 2s", "")
	p.send(20)
	go func() { // while jobs flow
		if err := r.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
			t.Error(err)
		}
	}()
	p.ails("store redis", "OOM")
	if err := r.ConfigSet(t.Context(), "maxmemory", "32mb").Err(); err != nil {
		t.Fatal(err)
	}
	p.send(20)
	p.healthy()
}

// A Redis that may evict keys is named at the start.
func TestEvictingRedis(t *testing.T) {
	t.Parallel()
	s := services.StartRedis(t, "--maxmemory", "32mb", "--maxmemory-policy", "allkeys-lru")
	p := admit(t, fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", s.Addr), "", "")
	if !strings.Contains(p.log.String(), "redis may evict keys") {
		t.Error("the log does not name it")
	}
}

// A result stream that is full and keeps what it has: the route pauses and goes on when there is room.
func TestFullResultStream(t *testing.T) {
	t.Parallel()
	s := services.StartNATS(t, "")
	js := jetStream(t, s.Addr)
	p := admit(t, fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\"}\n", s.Addr), "", "")
	st, err := js.Stream(t.Context(), streamOf(t, js, p.cfg.Routes[0].To))
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	cfg.MaxMsgs, cfg.Discard = 5, jetstream.DiscardNew // as many as there are
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	p.send(20)
	p.ails("paused (publish)", "maximum messages exceeded")
	cfg.MaxMsgs = 1000
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	p.healthy()
}

// Somebody deletes what jobs travel over: it is made again, and jobs that are sent from then on are done.
func TestDeleted(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(t *testing.T, p *patient){
		"redis stream": func(t *testing.T, p *patient) {
			if err := redisClient(t, services.Redis(t)).Del(t.Context(), p.cfg.Routes[0].From).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"redis group": func(t *testing.T, p *patient) {
			if err := redisClient(t, services.Redis(t)).XGroupDestroy(t.Context(), p.cfg.Routes[0].From, p.cfg.Redis.Group).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"nats stream": func(t *testing.T, p *patient) {
			js := jetStream(t, services.NATS(t))
			if err := js.DeleteStream(t.Context(), streamOf(t, js, p.cfg.Routes[0].From)); err != nil {
				t.Fatal(err)
			}
		},
		"nats consumer": func(t *testing.T, p *patient) {
			js := jetStream(t, services.NATS(t))
			stream := streamOf(t, js, p.cfg.Routes[0].From)
			s, err := js.Stream(t.Context(), stream)
			if err != nil {
				t.Fatal(err)
			}
			for name := range s.ConsumerNames(t.Context()).Name() {
				if err := s.DeleteConsumer(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		},
		"kafka topic": func(t *testing.T, p *patient) {
			cl, err := kgo.NewClient(kgo.SeedBrokers(services.Kafka(t)))
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			adm, topic := kadm.NewClient(cl), p.cfg.Routes[0].From
			if _, err := adm.DeleteTopic(t.Context(), topic); err != nil {
				t.Fatal(err)
			}
			p.await("the topic can be made again", func() bool {
				_, err := adm.CreateTopic(t.Context(), 1, 1, nil, topic)
				return err == nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, b := range brokers {
				if strings.HasPrefix(name, b.name) {
					p := admit(t, b.yaml(t), ", lease: 2s", "")
					harm(t, p)
					p.await("it is noticed", func() bool {
						p.send(1) // Redis and NATS: to have it made again
						return strings.Contains(p.get("/metrics"), `wasmsidecar_remade_total{transport="`+b.name+`"}`) &&
							!p.metric(`wasmsidecar_remade_total{transport="`+b.name+`"} 0`)
					})
					if b.name == "kafka" {
						clear(p.missing) // Kafka deletes in the background, and may have taken these into the old topic
					}
					p.send(20)
					p.healthy()
				}
			}
		})
	}
}

// Messages that Kafka dropped before they were read are counted, never passed over in silence.
func TestKafkaGap(t *testing.T) {
	t.Parallel()
	head := brokers[3].yaml(t)
	p := admit(t, head, "", "")
	p.stop()
	p.send(30)
	cl, err := kgo.NewClient(kgo.SeedBrokers(services.Kafka(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	topic := p.cfg.Routes[0].From
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: topic, Partition: 0, At: 25}) // five were done, twenty of the thirty go
	if _, err := kadm.NewClient(cl).DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	for i := 6; i <= 25; i++ {
		delete(p.missing, fmt.Sprint("job", i))
	}
	p.restart()
	p.healthy()
	p.await("the gap is counted", func() bool { return p.metric(`wasmsidecar_gap_messages_total{transport="kafka"} 20`) })
	if !strings.Contains(p.log.String(), "raise the topic's retention") {
		t.Error("the log does not tell of the gap")
	}
}

// Credentials that are changed on the server: readiness names them, and the sidecar goes on when they are good again.
func TestRotatedCredentials(t *testing.T) {
	t.Parallel()
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		s := services.StartRedis(t)
		r := redisClient(t, s.Addr)
		user := func(rules ...string) {
			t.Helper()
			args := []any{"ACL", "SETUSER", "job"}
			for _, rule := range rules {
				args = append(args, rule)
			}
			if err := r.Do(t.Context(), args...).Err(); err != nil {
				t.Fatal(err)
			}
			r.Do(t.Context(), "CLIENT", "KILL", "USER", "job") // none may be connected
		}
		user("on", ">one", "~*", "&*", "+@all")
		head := fmt.Sprintf("transport: redis\nredis: {addr: %q, username: job, password: one}\n", s.Addr)
		p := admit(t, head, ", lease: 2s", fmt.Sprintf("transport: redis\nredis: {addr: %q}\n", s.Addr))
		user("resetpass", ">two")
		p.send(20)
		p.ails("WRONGPASS")
		user(">one")
		p.healthy()
		user("-xreadgroup") // a right that is taken away
		p.send(20)
		p.ails("paused (fetch)", "xreadgroup")
		user("+xreadgroup")
		p.healthy()
	})
	t.Run("nats", func(t *testing.T) {
		t.Parallel()
		accounts := func(password string) string {
			return fmt.Sprintf("authorization { users = [ {user: job, password: %s}, {user: test, password: test} ] }\n", password)
		}
		s := services.StartNATS(t, accounts("one"))
		file := filepath.Join(s.Dir, "nats.conf")
		rotate := func(from, to string) {
			t.Helper()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(strings.Replace(string(b), accounts(from), accounts(to), 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			s.Stop()
			s.Start()
		}
		p := admit(t, fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\", username: job, password: one}\n", s.Addr), ", lease: 2s",
			fmt.Sprintf("transport: nats\nnats: {url: \"nats://%s\", username: test, password: test}\n", s.Addr))
		rotate("one", "two")
		p.send(20)
		p.ails("refuses the credentials")
		rotate("two", "one")
		p.healthy()
	})
}

func redisClient(t *testing.T, addr string) *redis.Client {
	t.Helper()
	r := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { r.Close() })
	return r
}

func jetStream(t *testing.T, addr string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect("nats://" + strings.TrimPrefix(addr, "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func streamOf(t *testing.T, js jetstream.JetStream, subject string) string {
	t.Helper()
	name, err := js.StreamNameBySubject(t.Context(), subject)
	if err != nil {
		t.Fatal(err)
	}
	return name
}
