// env is a program that lists its arguments and its environment, a line each.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static void line(const char *s) {
  write(1, s, strlen(s));
  write(1, "\n", 1);
}

int main(int argc, char **argv) {
  for (int i = 0; i < argc; i++) line(argv[i]);
  for (char **e = environ; e && *e; e++) line(*e);
  return 0;
}
