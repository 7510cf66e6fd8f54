// fetch asks over http what its input says: a line "METHOD URL", lines of headers, an empty line, the body. It answers with
// the status, the response's headers, an empty line and the body; with "error", a number and a text where there is no response.
// With the setting "crash" it does not handle errors but traps; with "again" it asks until there is one.
#include "wasmsidecar.h"

i32 IMPORT_FROM("wasmsidecar_http", request)(const u8 *method, u32 mlen, const u8 *url, u32 ulen, const u8 *headers, u32 hlen,
                                             const u8 *body, u32 blen);
u32 IMPORT_FROM("wasmsidecar_http", response_len)(i32 part);
u32 IMPORT_FROM("wasmsidecar_http", response_read)(i32 part, void *dst, u32 offset, u32 len);
i32 IMPORT_FROM("wasmsidecar_http", response_header)(const char *name, u32 nlen, void *dst, u32 cap);

enum { BODY, HEADERS, ERROR };

static u8 in[64 << 10], part[4096];

static void number(u32 v) {
  u8 digits[10], *p = digits + sizeof digits;
  do *--p = '0' + v % 10;
  while (v /= 10);
  output(p, digits + sizeof digits - p);
}

static void copy(i32 which) {
  u32 len = response_len(which);
  for (u32 at = 0; at < len;) {
    u32 got = response_read(which, part, at, sizeof part);
    output(part, got);
    at += got;
  }
}

static u32 upto(u32 from, u32 n, u8 c) {
  while (from < n && in[from] != c) from++;
  return from;
}

i32 EXPORT(handle)(void) {
  u32 n = input_read(in, 0, sizeof in);
  u32 method = upto(0, n, ' ');
  u32 url = upto(method + 1, n, '\n');
  u32 headers = url < n ? url + 1 : n, body = headers;
  while (body < n && in[body] != '\n') body = upto(body, n, '\n') + 1;
  u32 hlen = body - headers;
  if (body < n) body++;

  i32 status;
  do status = request(in, method, in + method + 1, url - method - 1, in + headers, hlen, in + body, n - body);
  while (status >= 0 && config_get(LIT("again"), 0, 0) >= 0);
  if (status < 0) {
    if (config_get(LIT("crash"), 0, 0) >= 0) __builtin_trap();
    output(LIT("error "));
    number(-status);
    output(LIT("\n"));
    copy(ERROR);
    return 0;
  }
  number(status);
  output(LIT("\n"));
  copy(HEADERS);
  output(LIT("\n"));
  copy(BODY);
  i32 type = response_header(LIT("content-type"), part, sizeof part);
  if (type >= 0 && type <= (i32)sizeof part) header_set(LIT("Content-Type"), part, type);
  return 0;
}
