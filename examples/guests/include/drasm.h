// DRASM's guest ABI for C: the host asks alloc for room, writes an envelope there and calls handle, which answers another.
// {"type_name": "...", "payload": [1, 2, 3]}
#ifndef DRASM_H
#define DRASM_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef int i32;
typedef long long i64;
typedef unsigned long long u64;

#define IMPORT(name) __attribute__((import_module("env"), import_name(#name))) name
#define EXPORT(name) __attribute__((export_name(#name))) name
#define LIT(s) (s), sizeof(s) - 1

extern u8 __heap_base;
static u8 *top = &__heap_base;

// room takes from the end of memory; an instance runs one job, so nothing is ever given back.
static u8 *room(u32 n) {
  u8 *p = top;
  u32 end = (u32)p + n + 15 & ~15u;
  u32 have = __builtin_wasm_memory_size(0) << 16;
  if (end < (u32)p) __builtin_trap();
  if (end > have && __builtin_wasm_memory_grow(0, (end - have + 65535) >> 16) == (u32)-1) __builtin_trap();
  top = (u8 *)end;
  return p;
}

#ifndef DRASM_OWN_ALLOC
u8 *EXPORT(alloc)(u32 n) { return room(n); }
#endif
void EXPORT(dealloc)(u8 *p, u32 n) {}

static u64 pack(const u8 *p, u32 n) { return (u64)n << 32 | (u32)p; }

struct text {
  u8 *p;
  u32 n;
};

// find returns where the value of a member of a flat JSON object begins, or 0.
static const u8 *find(const u8 *p, u32 n, const char *name, u32 len) {
  for (u32 i = 0; i + len + 2 < n; i++) {
    if (p[i] != '"' || p[i + len + 1] != '"') continue;
    u32 k = 0;
    while (k < len && p[i + 1 + k] == (u8)name[k]) k++;
    if (k < len) continue;
    u32 j = i + len + 2;
    while (j < n && p[j] <= ' ') j++;
    if (j == n || p[j] != ':') continue;
    do j++;
    while (j < n && p[j] <= ' ');
    return j < n ? p + j : 0;
  }
  return 0;
}

// payload_of reads an envelope's payload; p is 0 when there is none.
static struct text payload_of(const u8 *in, u32 n) {
  struct text out = {0, 0};
  const u8 *end = in + n, *p = find(in, n, LIT("payload"));
  if (!p || *p != '[') return out;
  out.p = room(n);
  u32 value = 0, digits = 0;
  for (p++; p < end; p++) {
    if (*p >= '0' && *p <= '9') {
      value = value * 10 + (*p - '0');
      digits++;
    } else if (*p == ',' || *p == ']') {
      if (digits) out.p[out.n++] = value;
      value = digits = 0;
      if (*p == ']') return out;
    }
  }
  out.p = 0;
  return out;
}

// answer makes an envelope.
static u64 answer(const char *type, u32 len, const u8 *payload, u32 n) {
  u8 *out = room(len + 4 * n + 64), *p = out;
  const char *s = "{\"type_name\":\"";
  while (*s) *p++ = *s++;
  for (u32 i = 0; i < len; i++) *p++ = type[i];
  s = "\",\"payload\":[";
  while (*s) *p++ = *s++;
  for (u32 i = 0; i < n; i++) {
    if (i) *p++ = ',';
    if (payload[i] >= 100) *p++ = '0' + payload[i] / 100;
    if (payload[i] >= 10) *p++ = '0' + payload[i] / 10 % 10;
    *p++ = '0' + payload[i] % 10;
  }
  *p++ = ']';
  *p++ = '}';
  return pack(out, p - out);
}

#endif
