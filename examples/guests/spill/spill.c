// spill writes to its result until it is stopped, and never looks whether that went well.
#include <unistd.h>

int main(void) {
  static char page[64 << 10];
  for (;;) write(1, page, sizeof page);
}
