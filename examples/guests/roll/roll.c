// roll posts its input to the address that its setting "url" names and answers with what comes back. It holds a capability, so
// whoever is asked can count how often a job runs.
#include "wasmsidecar.h"

i32 IMPORT_FROM("wasmsidecar_http", request)(const char *method, u32 mlen, const u8 *url, u32 ulen, const u8 *headers, u32 hlen,
                                             const u8 *body, u32 blen);
u32 IMPORT_FROM("wasmsidecar_http", response_read)(i32 part, void *dst, u32 offset, u32 len);

static u8 in[1024], url[256], answer[256];

i32 EXPORT(handle)(void) {
  i32 len = config_get(LIT("url"), url, sizeof url);
  if (len < 0 || len > (i32)sizeof url) {
    fail(LIT("the setting url is missing or too long"));
    return 0;
  }
  u32 n = input_read(in, 0, sizeof in);
  if (request(LIT("POST"), url, len, 0, 0, in, n) != 200) {
    retry(0, LIT("no answer"));
    return 0;
  }
  output(answer, response_read(0, answer, 0, sizeof answer));
  return 0;
}
