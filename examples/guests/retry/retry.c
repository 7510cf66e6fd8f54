// retry asks to be tried again until the attempt that its input names; without one it never succeeds. The setting "after" is
// how many milliseconds it wants to wait.
#include "wasmsidecar.h"

static u8 buffer[32];

static i64 number(i32 n) {
  i64 v = 0;
  for (i32 i = 0; i < n && buffer[i] >= '0' && buffer[i] <= '9'; i++) v = v * 10 + (buffer[i] - '0');
  return v;
}

static i32 fit(i32 n) { return n > (i32)sizeof buffer ? (i32)sizeof buffer : n; }

i32 EXPORT(handle)(void) {
  i64 want = number(input_read(buffer, 0, sizeof buffer));
  i64 attempt = number(fit(header_get(LIT("Wasm-Attempt"), buffer, sizeof buffer)));
  i64 after = number(fit(config_get(LIT("after"), buffer, sizeof buffer)));
  if (want && attempt >= want)
    output(LIT("at last"));
  else
    retry(after, LIT("not yet"));
  return 0;
}
