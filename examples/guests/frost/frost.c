// frost answers with how many jobs it believes to have had and its input; an input that begins with ! names another end.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int jobs;
static char in[1 << 17];

static int deep(int n) {
  volatile char room[64];
  room[0] = n;
  return n == 0 ? room[0] : deep(n - 1) + room[0];
}

int main(int argc, char **argv) {
  char *early = malloc(1000); // so that there is a heap to be kept
  strcpy(early, "early");
  if (argc > 1 && !strcmp(argv[1], "print")) fputs("early ", stdout), fflush(stdout);
  if (argc > 1 && !strcmp(argv[1], "random")) getentropy(early + 10, 8);
  if (argc > 1 && !strcmp(argv[1], "clock")) early[10] = time(NULL);
  size_t n = fread(in, 1, sizeof in - 1, stdin);
  if (!strcmp(in, "!trap")) __builtin_trap();
  if (!strcmp(in, "!exit65")) return 65;
  if (!strcmp(in, "!exit0")) exit(0);
  if (!strcmp(in, "!loop")) for (volatile int i = 0;; i++) {}
  if (!strcmp(in, "!deep")) jobs += deep(400) & 1;
  if (!strcmp(in, "!grow")) memset(malloc(1 << 20), 7, 1 << 20);
  putchar('0' + ++jobs);
  fputs(strcmp(early, "early") ? " late " : " ", stdout);
  early[0]++;
  fwrite(in, 1, n, stdout);
  return 0;
}
