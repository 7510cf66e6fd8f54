// files does with files what its input says, a verb and paths with a blank between them:
//   copy FROM TO   and answers with what was in it
//   fill FILE      until it may write no more, and gives up
//   hoard FILE     opens it until it may no more, and gives up
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char in[4096], buffer[4096];

static int failed(const char *what) {
  write(2, what, strlen(what));
  return 66;
}

int main(void) {
  ssize_t n = read(0, in, sizeof in - 1);
  if (n <= 0) return 65;
  char *from = strchr(in, ' ');
  if (!from) return 65;
  *from++ = 0;
  char *to = strchr(from, ' ');
  if (to) *to++ = 0;
  if (!strcmp(in, "copy")) {
    int a = open(from, O_RDONLY);
    if (a < 0) return failed("cannot read");
    int b = to ? open(to, O_WRONLY | O_CREAT | O_TRUNC, 0666) : 1;
    if (b < 0) return failed("cannot write");
    while ((n = read(a, buffer, sizeof buffer)) > 0) {
      write(b, buffer, n);
      write(1, buffer, n);
    }
    return 0; // and leaves them open
  }
  if (!strcmp(in, "fill")) {
    int f = open(from, O_WRONLY | O_CREAT, 0666);
    if (f < 0) abort();
    while (write(f, buffer, sizeof buffer) > 0)
      ;
    abort();
  }
  if (!strcmp(in, "hoard"))
    while (open(from, O_RDONLY) >= 0)
      ;
  abort();
}
