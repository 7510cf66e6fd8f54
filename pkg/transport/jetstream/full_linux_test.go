package jetstream

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// fileLimitEnv marks the process of TestEmbedFileTooLarge in which files may not grow.
const fileLimitEnv = "JETSTREAM_TEST_FILE_LIMIT"

// outOfRoom fills a server until it refuses, makes room, and wants it to go on by itself with all that it acknowledged.
func outOfRoom(t *testing.T, dir string, fill, makeRoom func(), want string) {
	t.Helper()
	s := embed(t, EmbedConfig{Dir: dir, Listen: "127.0.0.1:0", Log: logTo(t)})
	url := s.ClientURL()
	tr := open(t, dial(t, s.ConnectConfig()), func(c *Config) { c.Health = s.Err })
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	publish(t, tr, "jobs", "0")
	fill()
	body := make([]byte, 256<<10)
	kept := 1
	for end := time.Now().Add(within); ; kept++ {
		if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: "jobs", Body: append(fmt.Appendf(nil, "%d ", kept), body...)}); err != nil {
			if transport.Permanent(err) {
				t.Errorf("a full disk is no fault of the message: %v", err)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("never full")
		}
	}
	await(t, "the trouble is noticed", func() bool { return s.Err() != nil })
	await(t, "the error says what to do", func() bool {
		err := tr.Ping(t.Context())
		return err != nil && strings.Contains(err.Error(), dir) && strings.Contains(err.Error(), want)
	})
	if err := tr.Publisher().Publish(t.Context(), &transport.Message{Subject: "jobs"}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Publish without room: %v", err)
	}
	makeRoom()
	await(t, "the server goes on", func() bool { return tr.Ping(t.Context()) == nil })
	if got := s.ClientURL(); got != url {
		t.Errorf("listens on %s, before on %s", got, url)
	}
	eventually(t, tr, "jobs", "last")
	src := consume(t, tr, transport.SourceConfig{})
	got := make(map[string]bool)
	for !got["last"] || len(got) < kept+1 {
		for _, d := range fetch(t, src, 1, 16) {
			name, _, _ := strings.Cut(string(d.Message().Body), " ")
			got[name] = true
			d.Ack()
		}
	}
	for i := range kept {
		if !got[fmt.Sprint(i)] {
			t.Errorf("message %d was acknowledged and is gone", i)
		}
	}
}

// A full disk is told by name, and when there is room again the server goes on by itself.
func TestEmbedFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mountSmall(t, dir); err != nil {
		t.Logf("no small file system can be mounted here (%v); TestEmbedFileTooLarge stands for it", err)
		return
	}
	ballast := filepath.Join(dir, "ballast")
	outOfRoom(t, dir, func() {
		if err := os.WriteFile(ballast, make([]byte, 12<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}, func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}, "is full")
}

// What this process writes leaves some of the disk free, so that the state's stream never meets a full one: nats-server 2.15.2 would
// count up to its sequences, in memory.
func TestEmbedKeepsRoom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := mountSmall(t, dir); err != nil {
		t.Logf("no small file system can be mounted here (%v)", err)
		return
	}
	s := embed(t, EmbedConfig{Dir: dir, Log: logTo(t)})
	tr := open(t, dial(t, s.ConnectConfig()), func(c *Config) { c.Health = s.Err })
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	m := &transport.Message{Subject: "jobs", Body: make([]byte, 200<<10)}
	written, err := 0, error(nil)
	for ; written < 200 && err == nil; written++ {
		err = tr.Publisher().Publish(t.Context(), m)
	}
	free, total := space(dir)
	if !errors.Is(err, syscall.ENOSPC) || written < 20 || free < kept(total)/2 || free > 2*kept(total) {
		t.Fatalf("%d written, %d of %d bytes free, then %v", written, free, total, err)
	}
	if err := s.Err(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the server says %v", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=48m"); err != nil { // an operator makes room
		t.Fatal(err)
	}
	await(t, "the server goes on", func() bool { return tr.Publisher().Publish(t.Context(), m) == nil })
}

func TestKept(t *testing.T) {
	t.Parallel()
	for total, want := range map[uint64]uint64{0: 0, 1 << 20: 4 << 20, 80 << 20: 10 << 20, 1 << 40: 256 << 20} {
		if got := kept(total); got != want {
			t.Errorf("of %d bytes %d stay free, want %d", total, got, want)
		}
	}
}

// Writes that fail for another reason, in a process of its own: a limit on the size of files, which is lifted later.
func TestEmbedFileTooLarge(t *testing.T) {
	if os.Getenv(fileLimitEnv) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestEmbedFileTooLarge$", "-test.v")
		cmd.Env = append(os.Environ(), fileLimitEnv+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	limit := func(n uint64) {
		var l syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
		l.Cur = min(n, l.Max)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
	}
	outOfRoom(t, t.TempDir(), func() { limit(1 << 20) }, func() { limit(1 << 30) }, "file too large")
}

// The bound on all streams is none of the disk's: jobs are refused, what is there is read, and room in a stream is enough to go on.
func TestEmbedMaxStore(t *testing.T) {
	t.Parallel()
	s := embed(t, EmbedConfig{MaxStore: 2 << 20})
	tr := open(t, dial(t, s.ConnectConfig()), func(c *Config) { c.Health = s.Err })
	prepare(t, tr, transport.Subjects{Sources: []string{"jobs"}})
	m := &transport.Message{Subject: "jobs", Body: make([]byte, 128<<10)}
	var err error
	kept := 0
	for ; err == nil && kept < 100; kept++ {
		err = tr.Publisher().Publish(t.Context(), m)
	}
	if err == nil || transport.Permanent(err) || errors.Is(err, transport.ErrRejected) {
		t.Fatalf("after %d messages: %v", kept, err)
	}
	t.Log(err)
	src := consume(t, tr, transport.SourceConfig{})
	for _, d := range fetch(t, src, kept-1, 16) {
		d.Ack()
	}
	await(t, "all are settled", func() bool {
		n, err := tr.Backlog(t.Context(), "r")
		return err == nil && n == 0
	})
	eventually(t, tr, "jobs", "next")
	if d := fetch(t, src, 1, 1)[0]; string(d.Message().Body) != "next" {
		t.Errorf("got %q", d.Message().Body)
	}
	if err := s.Err(); err != nil {
		t.Errorf("the server was taken for broken: %v", err)
	}
}

// mountSmall mounts 24 MiB of memory on dir until the test ends.
func mountSmall(t *testing.T, dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		return err
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return nil
}
