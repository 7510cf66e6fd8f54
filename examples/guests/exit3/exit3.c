// exit3 is a program that ends with the exit code that its input holds, or 3, and says so on stderr first.
#include <stdlib.h>
#include <unistd.h>

int main(void) {
  char in[16] = "";
  int code = read(0, in, sizeof in - 1) > 0 ? atoi(in) : 3;
  static const char words[] = "leaving\n";
  write(2, words, sizeof words - 1);
  exit(code);
}
