// upper-c is a program as any other: it writes its input in upper case.
#include <ctype.h>
#include <stdio.h>

int main(void) {
  int c;
  while ((c = getchar()) != EOF) putchar(toupper(c));
  return ferror(stdin) || fflush(stdout) ? 75 : 0;
}
