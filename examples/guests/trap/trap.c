// trap crashes.
#include "wasmsidecar.h"

i32 EXPORT(handle)(void) { __builtin_trap(); }
