// slow sleeps for as many milliseconds as its input says, then answers with its input. After "spin " it computes instead.
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

int main(void) {
  char in[64] = "";
  ssize_t n = read(0, in, sizeof in - 1);
  if (n <= 0) return 65;
  if (strncmp(in, "spin ", 5) == 0) {
    for (long long end = now() + atol(in + 5); now() < end;)
      ;
  } else {
    long ms = atol(in);
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
  }
  return write(1, in, n) == n ? 0 : 75;
}
