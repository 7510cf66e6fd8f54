package rediskv_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/store"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/rediskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/storetest"
)

// clustered gives the suite's stores a cluster client.
type clustered struct {
	store.Store
	prefix string
}

// A cluster refuses a script whose keys lie on several slots.
func TestStoreCluster(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t, "--cluster-enabled", "yes")
	admin := redis.NewClient(&redis.Options{Addr: srv.Addr})
	defer admin.Close()
	if err := admin.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for !strings.Contains(admin.ClusterInfo(t.Context()).Val(), "cluster_state:ok") {
		if time.Now().After(deadline) {
			t.Fatal("the cluster does not come up")
		}
		time.Sleep(10 * time.Millisecond)
	}
	open := func(t testing.TB, prefix string) store.Store {
		client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{srv.Addr}})
		t.Cleanup(func() { _ = client.Close() })
		s, err := rediskv.Open(t.Context(), client, rediskv.Config{Prefix: prefix})
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return &clustered{Store: s, prefix: prefix}
	}
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{srv.Addr}})
	defer c.Close()
	endings(t, c, open)
	storetest.Run(t, storetest.Harness{
		Open:     func(t testing.TB) store.Store { return open(t, prefix(t)) },
		Reopen:   func(t testing.TB, s store.Store) store.Store { return open(t, s.(*clustered).prefix) },
		Features: storetest.Features{TTL: 100 * time.Millisecond},
	})
}

// The client sends a pipeline again whose reply was cut off. The transaction then knows its own nonce.
func TestRepeatedByTheClient(t *testing.T) {
	t.Parallel()
	p := services.NewProxy(t, services.Redis(t))
	opt := redis.Options{Addr: p.Addr(), MaxRetries: 5}
	s := open(t, opt, prefix(t))
	for name, txn := range map[string]store.Txn{
		"short": {If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("v"), time.Minute)}, Read: []string{"p/a"}},
		"long":  {If: []store.Cond{{Key: "p/b"}}, Then: []store.Op{store.Put("p/b", []byte("v"), time.Minute), store.Add("p/s", "m", 1)}},
	} {
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The request arrives after one delay; the reply is cut off on its way back.
		p.Delay(400 * time.Millisecond)
		cut := time.AfterFunc(600*time.Millisecond, func() {
			p.Cut()
			p.Delay(0)
			p.Restore()
		})
		r, err := s.Txn(t.Context(), txn)
		cut.Stop()
		if err != nil || !r.Done {
			t.Fatalf("%s: done %v, %v", name, r.Done, err)
		}
		kv, err := store.Get(t.Context(), s, txn.Then[0].Key)
		if err != nil || kv.Revision != r.Revision {
			t.Fatalf("%s: revision %d, %v; want %d", name, kv.Revision, err, r.Revision)
		}
	}
}

// along is an ending as redisstream makes them.
type along struct{ stream, id, results, add string }

func (a along) Entry() (stream, group, id, counts string) {
	return a.stream, "g", a.id, "wasm:{" + a.stream + "}:count"
}
func (a along) Add() (stream, args string) { return a.results, a.add }

// addOne is XADD's "* a b" as a MessagePack list.
const addOne = "\x93\xa1*\xa1a\xa1b"

// jobIn writes an entry to a stream and has it delivered.
func jobIn(t *testing.T, c redis.UniversalClient, stream string) string {
	t.Helper()
	if err := c.XGroupCreateMkStream(t.Context(), stream, "g", "0").Err(); err != nil && !strings.Contains(err.Error(), "BUSYGROUP") {
		t.Fatal(err)
	}
	id, err := c.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: []string{"body", "b"}}).Result()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{stream, ">"}}).Err(); err != nil {
		t.Fatal(err)
	}
	return id
}

// A transaction that the client repeats with its ending publishes once, and does not claim to know that it did.
func TestEndingRepeatedByTheClient(t *testing.T) {
	t.Parallel()
	p := services.NewProxy(t, services.Redis(t))
	s := open(t, redis.Options{Addr: p.Addr(), MaxRetries: 5}, prefix(t))
	c := redis.NewClient(&redis.Options{Addr: services.Redis(t)})
	defer c.Close()
	stream := services.UniqueName(t)
	id := jobIn(t, c, stream)
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Delay(400 * time.Millisecond)
	cut := time.AfterFunc(600*time.Millisecond, func() {
		p.Cut()
		p.Delay(0)
		p.Restore()
	})
	defer cut.Stop()
	r, err := s.Txn(t.Context(), store.Txn{
		If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("v"), time.Minute)},
		Along: along{stream, id, stream + "-results", addOne},
	})
	if err != nil || !r.Done || r.Along {
		t.Fatalf("answer %+v, %v", r, err)
	}
	if n, left := c.XLen(t.Context(), stream+"-results").Val(), c.XLen(t.Context(), stream).Val(); n != 1 || left != 0 {
		t.Errorf("%d results, %d entries left", n, left)
	}
}

// A user who may only write to the results has them published step by step.
func TestEndingDenied(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t)
	c := redis.NewClient(&redis.Options{Addr: srv.Addr})
	defer c.Close()
	user := []any{"acl", "setuser", services.User, "on", ">" + services.Password, "~jobs", "%W~results"}
	for _, r := range rights() {
		user = append(user, r)
	}
	user = append(user, "+@stream")
	if err := c.Do(t.Context(), user...).Err(); err != nil {
		t.Fatal(err)
	}
	s := open(t, redis.Options{Addr: srv.Addr, Username: services.User, Password: services.Password}, "wasm:")
	id := jobIn(t, c, "jobs")
	end := func(key, results string) store.Reply {
		t.Helper()
		r, err := s.Txn(t.Context(), store.Txn{
			If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, []byte("v"), time.Minute)}, Along: along{"jobs", id, results, addOne},
		})
		if err != nil || !r.Done {
			t.Fatalf("answer %+v, %v", r, err)
		}
		return r
	}
	if !end("p/a", "jobs").Along {
		t.Error("allowed, it was not taken along")
	}
	for _, key := range []string{"p/b", "p/c"} {
		if end(key, "results").Along {
			t.Error("it was taken along although the user may not read there")
		}
	}
}

// In a cluster an ending is taken along where all lies on one slot.
func endings(t *testing.T, c redis.UniversalClient, open func(testing.TB, string) store.Store) {
	s := open(t, "wasm:")
	for _, e := range []struct {
		part, stream, results string
		along                 bool
	}{
		{"jobs", "jobs", "{jobs}results", true},
		{"plain", "plain", "", true},
		{"work", "work", "results", false},
		{"{work}", "{work}", "{work}results", false}, // the store's own keys are elsewhere
	} {
		id := jobIn(t, c, e.stream)
		a := along{stream: e.stream, id: id}
		if e.results != "" {
			a.results, a.add = e.results, addOne
		}
		key := store.Key(e.part, "claim", id)
		r, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, []byte("v"), time.Minute)}, Along: a})
		if err != nil || !r.Done || r.Along != e.along {
			t.Errorf("%+v is answered with %+v, %v", e, r, err)
		}
	}
}

// Revisions grow even over a flush, which takes the counter with it, and watchers are told to look again.
func TestFlush(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t)
	s := open(t, redis.Options{Addr: srv.Addr}, "wasm:")
	admin := redis.NewClient(&redis.Options{Addr: srv.Addr})
	defer admin.Close()
	put := func() int64 {
		r, err := s.Txn(t.Context(), store.Txn{If: []store.Cond{{Key: "p/a"}}, Then: []store.Op{store.Put("p/a", []byte("v"), time.Minute)}})
		if err != nil || !r.Done {
			t.Fatalf("done %v, %v", r.Done, err)
		}
		return r.Revision
	}
	before := put()
	w, err := s.Watch(t.Context(), "p/")
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := admin.ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case c := <-w.Changes():
			if !c.Resync {
				continue
			}
		case <-time.After(30 * time.Second):
			t.Fatal("no Resync after the flush")
		}
		break
	}
	after := put()
	if after <= before {
		t.Fatalf("revision %d after the flush, %d before", after, before)
	}
	if c := <-w.Changes(); c.KV.Revision != after {
		t.Fatalf("change %+v, want revision %d", c, after)
	}
}

// Revisions grow when the server's clock goes back.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	opt := redis.Options{Addr: services.Redis(t)}
	s := open(t, opt, prefix(t))
	admin := redis.NewClient(&opt)
	defer admin.Close()
	ahead := time.Now().Add(24 * time.Hour).UnixMicro()
	if err := admin.Set(t.Context(), s.prefix+"{p}r", ahead, time.Minute).Err(); err != nil {
		t.Fatal(err)
	}
	for i := range int64(3) {
		txn := store.Txn{Then: []store.Op{store.Put("p/a", nil, time.Minute), store.Add("p/s", "m", 1)}[:1+i%2]}
		r, err := s.Txn(t.Context(), txn)
		if err != nil || r.Revision != ahead+1+i {
			t.Fatalf("revision %d, %v; want %d", r.Revision, err, ahead+1+i)
		}
	}
}

func TestOpenWarnsOfEviction(t *testing.T) {
	t.Parallel()
	srv := services.StartRedis(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	client := redis.NewClient(&redis.Options{Addr: srv.Addr})
	defer client.Close()
	var log bytes.Buffer
	s, err := rediskv.Open(t.Context(), client, rediskv.Config{Prefix: "wasm:", Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Evicts() != "allkeys-lru" || !strings.Contains(log.String(), "noeviction") {
		t.Fatalf("Evicts is %q, logged %q", s.Evicts(), log.String())
	}
}

// An old server is refused by name and number.
func TestOpenRefusesOldServer(t *testing.T) {
	t.Parallel()
	addr := fakeRedis(t, "redis_version:6.0.16\r\n")
	client := redis.NewClient(&redis.Options{Addr: addr, Protocol: 2, DisableIdentity: true, MaxRetries: -1})
	defer client.Close()
	_, err := rediskv.Open(t.Context(), client, rediskv.Config{Prefix: "wasm:"})
	if err == nil || !strings.Contains(err.Error(), "6.0.16") || !strings.Contains(err.Error(), "6.2") {
		t.Fatalf("error %v, want one that names 6.0.16 and 6.2", err)
	}
}

// fakeRedis knows one command, INFO, and answers it with text.
func fakeRedis(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			buf := make([]byte, 4096)
			for {
				n, err := c.Read(buf)
				if err != nil {
					break
				}
				reply := "-ERR unknown command\r\n"
				if bytes.Contains(bytes.ToLower(buf[:n]), []byte("info")) {
					reply = "$" + strconv.Itoa(len(text)) + "\r\n" + text + "\r\n"
				}
				if _, err := c.Write([]byte(reply)); err != nil {
					break
				}
			}
			stop()
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}
