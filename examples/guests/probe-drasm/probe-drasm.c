// probe-drasm is as rude as a DRASM guest can be. Tests find "WILDWILD" in its bytes and write what it is to do behind it.
#define DRASM_OWN_ALLOC
#include "drasm.h"

void IMPORT(log)(u32 text, u32 len);
u64 IMPORT(http_request)(u32 request, u32 len);

static volatile struct {
  char magic[8];
  u32 mode; // 1: alloc returns wild.alloc; 2: log; 4: http_request; 8: handle returns wild.handle; 16: alloc calls http_request
  u32 alloc, log_at, log_len, request_at, request_len;
  u64 handle;
} wild = {"WILDWILD", 0, 1, 1, 1, 1, 1, 1};

u8 *EXPORT(alloc)(u32 n) {
  if (wild.mode & 16) http_request(wild.request_at, wild.request_len);
  return wild.mode & 1 ? (u8 *)wild.alloc : room(n);
}

u64 EXPORT(handle)(const u8 *in, u32 n) {
  if (wild.mode & 2) log(wild.log_at, wild.log_len);
  if (wild.mode & 4) http_request(wild.request_at, wild.request_len);
  if (wild.mode & 8) return wild.handle;
  struct text payload = payload_of(in, n);
  return answer(LIT("Echo"), payload.p, payload.n);
}
