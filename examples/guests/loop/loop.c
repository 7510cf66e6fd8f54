// loop says so and never ends.
#include "wasmsidecar.h"

i32 EXPORT(handle)(void) {
  log(LOG_DEBUG, LIT("looping"));
  for (volatile u32 i = 0;; i++)
    ;
}
