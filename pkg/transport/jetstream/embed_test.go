package jetstream

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

func TestEmbedStartsFastAndKeepsMessages(t *testing.T) {
	dir := t.TempDir()
	s := embed(t, EmbedConfig{Dir: dir})
	if s.ClientURL() != "" {
		t.Errorf("listens on %q without being asked", s.ClientURL())
	}
	tr := open(t, dial(t, s.ConnectConfig()))
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	publish(t, tr, "jobs", "kept")
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	s = embed(t, EmbedConfig{Dir: dir})
	took := time.Since(start)
	t.Logf("started in %v", took)
	if took > 5*time.Second { // some 10 ms on a machine that has nothing else to do
		t.Errorf("start took %v", took)
	}
	src := consume(t, open(t, dial(t, s.ConnectConfig())), transport.SourceConfig{})
	d := fetch(t, src, 1, 1)[0]
	if string(d.Message().Body) != "kept" || !d.Redelivered() {
		t.Errorf("got %q, redelivered %v; the server cannot know who had it before it stopped", d.Message().Body, d.Redelivered())
	}
	d.Ack()
}

func prepare(t testing.TB, tr *Transport, s transport.Subjects) {
	t.Helper()
	if err := tr.Prepare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func TestEmbedRefuses(t *testing.T) {
	t.Parallel()
	busy := embed(t, EmbedConfig{})
	for name, c := range map[string]struct {
		cfg  EmbedConfig
		want string
	}{
		"no directory":       {EmbedConfig{}, "no data directory"},
		"directory in use":   {EmbedConfig{Dir: busy.cfg.Dir}, fmt.Sprintf("in use by process %d; stop it", os.Getpid())},
		"no port":            {EmbedConfig{Dir: t.TempDir(), Listen: "127.0.0.1"}, "want host:port"},
		"bad port":           {EmbedConfig{Dir: t.TempDir(), Listen: "127.0.0.1:http"}, `"http" is no port`},
		"open to the world":  {EmbedConfig{Dir: t.TempDir(), Listen: ":0"}, "needs a user name and a password"},
		"open to a network":  {EmbedConfig{Dir: t.TempDir(), Listen: "0.0.0.0:0", Username: "u"}, "needs a user name and a password"},
		"directory a file":   {EmbedConfig{Dir: "embed_test.go"}, "data directory"},
		"address not ours":   {EmbedConfig{Dir: t.TempDir(), Listen: "192.0.2.1:0", Username: "u", Password: "p"}, "192.0.2.1"},
		"user without a use": {EmbedConfig{Dir: t.TempDir(), Listen: "[::]:0", Password: "p"}, "needs a user name and a password"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Embed(c.cfg)
			if err == nil {
				_ = s.Shutdown(context.Background())
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

func TestEmbedListens(t *testing.T) {
	t.Parallel()
	s := embed(t, EmbedConfig{Listen: "0.0.0.0:0", Username: "job", Password: "secret"})
	tr := open(t, dial(t, s.ConnectConfig()))
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	if _, err := nats.Connect(s.ClientURL()); err == nil {
		t.Error("takes clients without a password")
	}
	nc, err := nats.Connect(s.ClientURL(), nats.UserInfo("job", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.Publish("jobs", []byte("from outside")); err != nil {
		t.Fatal(err)
	}
	if d := fetch(t, consume(t, tr, transport.SourceConfig{}), 1, 1)[0]; string(d.Message().Body) != "from outside" {
		t.Errorf("got %q", d.Message().Body)
	}
}

// A child process holds a directory or fills a stream until it is killed; see TestMain.
const childEnv = "JETSTREAM_TEST_CHILD"

func child() {
	ctx := context.Background()
	s, err := Embed(EmbedConfig{Dir: os.Getenv(childEnv)})
	if err == nil {
		var nc *nats.Conn
		if nc, err = Connect(ctx, s.ConnectConfig()); err == nil {
			var tr *Transport
			if tr, err = Open(ctx, Config{Conn: nc, Group: "test", CreateStreams: true}); err == nil {
				err = tr.Prepare(ctx, transport.Subjects{Sources: []string{"jobs"}})
			}
			for i := 0; err == nil; i++ {
				if err = tr.Publisher().Publish(ctx, &transport.Message{Subject: "jobs", Body: fmt.Append(nil, i)}); err == nil {
					fmt.Println(i)
				}
			}
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// A server in a process that is killed has every message that it acknowledged, and its directory is free again.
func TestEmbedSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() && acknowledged < 500 {
		acknowledged++
		if lines.Text() != fmt.Sprint(acknowledged-1) {
			t.Fatal(lines.Text())
		}
	}
	if acknowledged < 500 {
		t.Fatalf("the child ended after %d messages: %v %v", acknowledged, lines.Err(), cmd.Wait())
	}
	if _, err := Embed(EmbedConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", cmd.Process.Pid)) {
		t.Errorf("a second process on the directory: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	src := consume(t, open(t, dial(t, embed(t, EmbedConfig{Dir: dir}).ConnectConfig())), transport.SourceConfig{})
	for i, d := range fetch(t, src, acknowledged, 100) {
		if i < acknowledged && string(d.Message().Body) != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, d.Message().Body)
		}
		d.Ack()
	}
}
