package services

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// clockC puts the clock of a process forward.
const clockC = `#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *t) {
  int r = syscall(SYS_clock_gettime, id, t);
  if (r == 0 && id == CLOCK_REALTIME) t->tv_sec += SKEW;
  return r;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
`

// StartSkewedRedis starts a Redis whose clock is ahead of that of the tests, by whole seconds, or behind it. It needs a C compiler and
// redis-server itself, not its image.
func StartSkewedRedis(t testing.TB, ahead time.Duration, extraArgs ...string) *Server {
	t.Helper()
	s := newRedis(t, extraArgs...)
	if s.container != "" {
		t.Fatal("services: the clock of a container cannot be put forward; install redis-server")
	}
	source, library := filepath.Join(s.Dir, "clock.c"), filepath.Join(s.Dir, "clock.so")
	if err := os.WriteFile(source, []byte(clockC), 0o600); err != nil {
		t.Fatalf("services: %v", err)
	}
	skew := fmt.Sprintf("-DSKEW=(%d)", int(ahead.Seconds()))
	if out, err := exec.Command("cc", "-O1", "-shared", "-fPIC", skew, "-o", library, source).CombinedOutput(); err != nil {
		t.Fatalf("services: build the clock of a skewed Redis: %v\n%s", err, out)
	}
	s.env = []string{"LD_PRELOAD=" + library}
	s.Start()
	return s
}
