package sidecar_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// A full disk under the embedded server holds up jobs, and nothing more: with room again all that were taken have a result.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Logf("no small file system can be mounted here (%v); the tests of package jetstream do without", err)
		return
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	full := make(chan struct{}) // until then jobs stay where they are, and fill the disk
	head := fmt.Sprintf("transport: embedded\nembedded: {dir: %q, listen: \"127.0.0.1:%d\"}\n", dir, freePort(t))
	l := open(t, head, ", lease: 3s", map[string]job.Runner{"m": job.RunnerFunc(func(ctx context.Context, j *job.Job) (*job.Result, error) {
		if len(j.Body) > 100 {
			select {
			case <-full:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return &job.Result{Body: []byte("done")}, nil
	})})
	l.submit("first", "x")
	l.next(l.results, "the first result")
	if err := os.WriteFile(ballast, make([]byte, 14<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	body := bytes.Repeat([]byte("y"), 256<<10)
	for i := 0; ; i++ {
		id := fmt.Sprint("job", i)
		m := &transport.Message{
			Subject: l.cfg.Routes[0].From, Body: body, Header: job.Header{{Name: transport.HeaderJobID, Value: id}},
		}
		if err := l.client.Publisher().Publish(t.Context(), m); err != nil {
			break
		}
		missing[id] = true
		if i == 1000 {
			t.Fatal("the disk is never full") // ten megabytes are free, and a job has a quarter of one
		}
	}
	for end := time.Now().Add(patience); !strings.Contains(l.log.String(), "is full"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the log does not say that the disk is full")
		}
	}
	close(full)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	last := &transport.Message{
		Subject: l.cfg.Routes[0].From, Body: []byte("last"), Header: job.Header{{Name: transport.HeaderJobID, Value: "last"}},
	}
	missing["last"] = true
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := l.client.Publisher().Publish(t.Context(), last)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no job is taken: %v", err)
		}
	}
	for len(missing) > 0 {
		m := l.next(l.results, fmt.Sprintf("a result; %d are missing", len(missing)))
		if m.Header.Get(transport.HeaderOK) != "true" {
			t.Errorf("a job failed: %s", m.Body)
		}
		delete(missing, m.Header.Get(transport.HeaderResultOf))
	}
	l.noMore(l.dead, "dead letter", 200*time.Millisecond)
}
