// echo-drasm answers with the payload it was given, under the type name "Echo". It logs a line.
#include "drasm.h"

void IMPORT(log)(const char *text, u32 len);

u64 EXPORT(handle)(const u8 *in, u32 n) {
  struct text payload = payload_of(in, n);
  if (!payload.p) return answer(LIT("Error"), (const u8 *)LIT("{\"error\":\"bad envelope: no payload\"}"));
  log(LIT("echo"));
  return answer(LIT("Echo"), payload.p, payload.n);
}
