// loop never ends.
#include "wasmsidecar.h"

i32 EXPORT(handle)(void) {
  for (volatile u32 i = 0;; i++)
    ;
}
