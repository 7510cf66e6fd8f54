// oob hands the host a pointer that leads out of its memory.
#include "wasmsidecar.h"

i32 EXPORT(handle)(void) {
  output((void *)0xfffffff0, 0x7fffffff);
  return 0;
}
