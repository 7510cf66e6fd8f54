// fail refuses every job for good, in the words of its input.
#include "wasmsidecar.h"

static char buffer[1024];

i32 EXPORT(handle)(void) {
  u32 n = input_read(buffer, 0, sizeof buffer);
  if (n)
    fail(buffer, n);
  else
    fail(LIT("refused"));
  return 0;
}
