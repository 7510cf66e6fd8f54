// Extism's guest ABI for C: a plug-in exports functions without parameters, which return 0 for success. Addresses are those of
// blocks that the host keeps; 0 is none. docs/guests.md says more.
#ifndef EXTISM_H
#define EXTISM_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;

#define IMPORT(name) __attribute__((import_module("extism:host/env"), import_name(#name))) name
#define EXPORT(name) __attribute__((export_name(#name))) name

u64 IMPORT(alloc)(u64 len);
void IMPORT(free)(u64 at);
u64 IMPORT(length)(u64 at);
u64 IMPORT(length_unsafe)(u64 at);
u32 IMPORT(load_u8)(u64 at);
u64 IMPORT(load_u64)(u64 at);
void IMPORT(store_u8)(u64 at, u32 value);
void IMPORT(store_u64)(u64 at, u64 value);
u64 IMPORT(memory_bytes)(void);
void IMPORT(reset)(void);
void IMPORT(input_set)(u64 at, u64 len);
u64 IMPORT(input_length)(void);
u64 IMPORT(input_offset)(void);
u32 IMPORT(input_load_u8)(u64 offset);
u64 IMPORT(input_load_u64)(u64 offset);
void IMPORT(output_set)(u64 at, u64 len);
u64 IMPORT(output_length)(void);
u64 IMPORT(output_offset)(void);
void IMPORT(error_set)(u64 at);
u64 IMPORT(error_get)(void);
u64 IMPORT(config_get)(u64 name);
u64 IMPORT(var_get)(u64 name);
void IMPORT(var_set)(u64 name, u64 value);
u64 IMPORT(http_request)(u64 request, u64 body);
i32 IMPORT(http_status_code)(void);
u64 IMPORT(http_headers)(void);
i32 IMPORT(get_log_level)(void);
void IMPORT(log_trace)(u64 text);
void IMPORT(log_debug)(u64 text);
void IMPORT(log_info)(u64 text);
void IMPORT(log_warn)(u64 text);
void IMPORT(log_error)(u64 text);

// text makes a block of a string.
static inline u64 text(const char *s) {
  u64 n = 0, at;
  while (s[n]) n++;
  at = alloc(n);
  for (u64 i = 0; i < n; i++) store_u8(at + i, s[i]);
  return at;
}

#endif
