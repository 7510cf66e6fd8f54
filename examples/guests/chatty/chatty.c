// chatty floods the log and then answers "done".
#include "wasmsidecar.h"

i32 EXPORT(handle)(void) {
  for (i32 i = 0; i < 100000; i++) log(LOG_INFO, LIT("the quick brown fox jumps over the lazy dog, and there is no end to it"));
  output(LIT("done"));
  return 0;
}
