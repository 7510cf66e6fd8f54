// grow takes all the memory it can get, touches it and traps when there is no more.
#include "wasmsidecar.h"

i32 EXPORT(handle)(void) {
  for (;;) {
    u32 page = __builtin_wasm_memory_grow(0, 1);
    if (page == (u32)-1) __builtin_trap();
    *(volatile u8 *)(page << 16) = 1;
  }
}
