// probe calls host functions with whatever its input says, so that tests can be as rude as a guest can be. Its input is a list
// of records: the function's number and eight parameters, each a little-endian 32-bit word.
#include "wasmsidecar.h"

#define HTTP "wasmsidecar_http"
#define WASI "wasi_snapshot_preview1"
i32 IMPORT_FROM(HTTP, request)(u32, u32, u32, u32, u32, u32, u32, u32);
u32 IMPORT_FROM(HTTP, response_len)(i32);
u32 IMPORT_FROM(HTTP, response_read)(i32, u32, u32, u32);
i32 IMPORT_FROM(HTTP, response_header)(u32, u32, u32, u32);
u32 IMPORT_FROM(WASI, fd_write)(u32, u32, u32, u32);
u32 IMPORT_FROM(WASI, fd_read)(u32, u32, u32, u32);
u32 IMPORT_FROM(WASI, poll_oneoff)(u32, u32, u32, u32);
u32 IMPORT_FROM(WASI, random_get)(u32, u32);
u32 IMPORT_FROM(WASI, environ_get)(u32, u32);
u32 IMPORT_FROM(WASI, args_get)(u32, u32);

i32 EXPORT(handle)(void) {
  u32 r[9];
  for (u32 at = 0; input_read(r, at, sizeof r) == sizeof r; at += sizeof r) {
    void *a = (void *)r[1], *c = (void *)r[3];
    switch (r[0] % 21) {
    case 0: input_len(); break;
    case 1: input_read(a, r[2], r[3]); break;
    case 2: output(a, r[2]); break;
    case 3: header_get(a, r[2], c, r[4]); break;
    case 4: header_set(a, r[2], c, r[4]); break;
    case 5: fail(a, r[2]); break;
    case 6: retry((i64)r[3] << 32 | r[4], a, r[2]); break;
    case 7: log(r[3], a, r[2]); break;
    case 8: config_get(a, r[2], c, r[4]); break;
    case 9: next(); break;
    case 10: request(r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8]); break;
    case 11: response_len(r[1]); break;
    case 12: response_read(r[1], r[2], r[3], r[4]); break;
    case 13: response_header(r[1], r[2], r[3], r[4]); break;
    case 14: fd_write(r[1], r[2], r[3], r[4]); break;
    case 15: fd_read(r[1], r[2], r[3], r[4]); break;
    case 16: poll_oneoff(r[1], r[2], r[3], r[4]); break;
    case 17: random_get(r[1], r[2]); break;
    case 18: environ_get(r[1], r[2]); break;
    case 19: args_get(r[1], r[2]); break;
    case 20: return r[1];
    }
  }
  return 0;
}
