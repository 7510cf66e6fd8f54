// echo answers with its input and its input's Content-Type. With the setting "greeting" it says that first.
#include "wasmsidecar.h"

static u8 buffer[4096];

i32 EXPORT(handle)(void) {
  i32 n = config_get(LIT("greeting"), buffer, sizeof buffer);
  if (n > 0 && n <= (i32)sizeof buffer) {
    output(buffer, n);
    output(LIT(" "));
  }
  n = header_get(LIT("Content-Type"), buffer, sizeof buffer);
  if (n > 0 && n <= (i32)sizeof buffer) header_set(LIT("Content-Type"), buffer, n);

  u32 len = input_len();
  for (u32 at = 0; at < len;) {
    u32 got = input_read(buffer, at, sizeof buffer);
    output(buffer, got);
    at += got;
  }
  return 0;
}
