// sum adds up the integers in a JSON document, wherever they stand, and answers with {"sum":N}. It refuses a document without any.
#include "wasmsidecar.h"

static u8 buffer[2048];
static u8 answer[40] = "{\"sum\":";

i32 EXPORT(handle)(void) {
  long long sum = 0, number = 0;
  i32 digits = 0, any = 0, quoted = 0, minus = 0;
  u32 len = input_len();
  for (u32 at = 0; at < len;) {
    u32 got = input_read(buffer, at, sizeof buffer);
    for (u32 i = 0; i < got; i++) {
      u8 c = buffer[i];
      if (c >= '0' && c <= '9' && !quoted) {
        number = number * 10 + (c - '0');
        digits = any = 1;
        continue;
      }
      if (digits) sum += minus ? -number : number;
      number = digits = 0;
      minus = c == '-';
      if (c == '"') quoted = !quoted;
    }
    at += got;
  }
  if (digits) sum += minus ? -number : number;
  if (!any) {
    fail(LIT("there is no number to add up"));
    return 0;
  }
  u8 *end = answer + sizeof answer, *p = end;
  *--p = '}';
  i32 negative = sum < 0;
  unsigned long long rest = negative ? -(unsigned long long)sum : (unsigned long long)sum;
  do *--p = '0' + rest % 10;
  while (rest /= 10);
  if (negative) *--p = '-';
  u32 n = end - p;
  for (u32 i = 0; i < n; i++) answer[7 + i] = p[i];
  output(answer, 7 + n);
  return 0;
}
