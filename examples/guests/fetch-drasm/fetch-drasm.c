// fetch-drasm hands its payload to http_request and answers with the reply, under the type name "Reply".
#include "drasm.h"

u64 IMPORT(http_request)(const u8 *request, u32 len);

u64 EXPORT(handle)(const u8 *in, u32 n) {
  struct text payload = payload_of(in, n);
  if (!payload.p) return answer(LIT("Error"), (const u8 *)LIT("{\"error\":\"bad envelope: no payload\"}"));
  u64 reply = http_request(payload.p, payload.n);
  return answer(LIT("Reply"), (const u8 *)(u32)reply, reply >> 32);
}
