// The native guest ABI for C: declare what you use and export handle. Build freestanding:
//   clang --target=wasm32 -Os -ffreestanding -fno-builtin -nostdlib -Wl,--no-entry -Wl,-s -o guest.wasm guest.c
// docs/guests.md says what each function does.
#ifndef WASMSIDECAR_H
#define WASMSIDECAR_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef int i32;
typedef long long i64;

#define IMPORT_FROM(module, name) __attribute__((import_module(module), import_name(#name))) name
#define EXPORT(name) __attribute__((export_name(#name))) name

u32 IMPORT_FROM("wasmsidecar", input_len)(void);
u32 IMPORT_FROM("wasmsidecar", input_read)(void *dst, u32 offset, u32 len);
void IMPORT_FROM("wasmsidecar", output)(const void *src, u32 len);
i32 IMPORT_FROM("wasmsidecar", header_get)(const char *name, u32 nlen, void *dst, u32 cap);
void IMPORT_FROM("wasmsidecar", header_set)(const char *name, u32 nlen, const void *value, u32 vlen);
void IMPORT_FROM("wasmsidecar", fail)(const char *text, u32 len);
void IMPORT_FROM("wasmsidecar", retry)(i64 after_ms, const char *text, u32 len);
void IMPORT_FROM("wasmsidecar", log)(i32 level, const char *text, u32 len);
i32 IMPORT_FROM("wasmsidecar", config_get)(const char *name, u32 nlen, void *dst, u32 cap);
u32 IMPORT_FROM("wasmsidecar", next)(void);

enum { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

// A string literal as pointer and length.
#define LIT(s) (s), sizeof(s) - 1

#endif
