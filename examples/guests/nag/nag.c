// nag asks the host the same question as often as its input says, or without end where it says nothing.
#include "wasmsidecar.h"

i32 EXPORT(handle)(void) {
  u32 times = 0;
  input_read(&times, 0, sizeof times);
  for (u32 i = 1; i != times; i++) input_len(); // input_read was the first
  return 0;
}
