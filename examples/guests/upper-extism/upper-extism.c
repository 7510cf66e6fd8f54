// upper-extism is an Extism plug-in with one function: it answers its input in upper case and refuses an empty one.
#include "extism.h"

i32 EXPORT(shout)(void) {
  u64 n = input_length();
  if (n == 0) {
    error_set(text("nothing to do"));
    return 1;
  }
  u64 out = alloc(n);
  for (u64 at = 0; at < n; at += 8) {
    u64 left = n - at < 8 ? n - at : 8;
    union {
      u64 word;
      u8 byte[8];
    } x = {input_load_u64(at)};
    for (u32 i = 0; i < 8; i++)
      if (x.byte[i] >= 'a' && x.byte[i] <= 'z') x.byte[i] -= 'a' - 'A';
    if (left == 8) store_u64(out + at, x.word);
    else
      for (u32 i = 0; i < left; i++) store_u8(out + at + i, x.byte[i]);
  }
  output_set(out, n);
  return 0;
}
