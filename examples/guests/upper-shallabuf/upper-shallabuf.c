// upper-shallabuf is a core module as Shallabuf's builders make them: a WASI program whose main is never called, and a function
// run that takes a string of JSON and returns another. It answers {"text": …} by {"result": …} in upper case, without looking
// at escapes, and refuses anything else. Inputs that begin with # are for tests.
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned jobs;

// room takes memory of its own.
static char *room(unsigned long n) { return (char *)(__builtin_wasm_memory_grow(0, (n + 65535) >> 16) << 16); }

__attribute__((export_name("run"))) const char *run(const char *in) {
  const char *begin = strstr(in, "\"text\""), *end;
  if (in[0] == '#') switch (in[1]) {
    case 't': __builtin_trap();
    case 'a': return strcpy(malloc(strlen(in) + 1), in);
    case 'e': return in;                                                  // an echo
    case 'o': return (const char *)-1;                                    // out of bounds
    case 'm': return (const char *)(__builtin_wasm_memory_size(0) << 16); // likewise
    case 'n': return memset(room(65536), 'x', 65536);                     // no end
    case 'l': return memset(room(3000000), 'x', 2999999);                 // too long
    case 'c': {                                                           // how often it was called
      char *p = room(16);
      strcpy(p, "0");
      *p += ++jobs % 10;
      return p;
    }
    }
  if (!begin || !(begin = strchr(begin + 6, '"')) || !(end = strchr(begin + 1, '"'))) {
    fputs("no text in the input\n", stderr);
    return 0;
  }
  char *out = room(end - begin + 16), *p = out + strlen(strcpy(out, "{\"result\":\""));
  while (++begin < end) *p++ = toupper(*begin);
  strcpy(p, "\"}");
  return out;
}

int main(void) {
  puts("main was called");
  abort();
}
