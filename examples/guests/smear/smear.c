// smear is a program that leaves stains wherever it can, and tells what it finds of earlier ones: how often it has run, how many
// secrets lie in memory, how large memory is. The first byte of its input says how it ends.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile int runs;
static char hidden[256];
static char *volatile kept;

// The secret is nowhere in the program itself.
static void secret(volatile char *to) {
	for (int i = 0; i < 16; i++) to[i] = (char)(i * 37 + 91) ^ 0x5a;
}

static int is_secret(const volatile char *p) {
	for (int i = 0; i < 16; i++)
		if (p[i] != (char)((char)(i * 37 + 91) ^ 0x5a)) return 0;
	return 1;
}

static volatile int depth;
static int recurse(int n) {
	volatile char frame[64];
	secret(frame);
	depth++;
	return recurse(n + 1) + frame[n & 15];
}

int main(void) {
	char in[16] = {0};
	if (read(0, in, sizeof in) < 1) return 1;
	unsigned pages = __builtin_wasm_memory_size(0), secrets = 0;
	for (const volatile char *p = (const char *)1024; p < (const char *)(pages * 65536 - 16); p++) secrets += is_secret(p);
	unsigned found[4] = {runs, secrets, pages, kept != 0};
	write(1, found, sizeof found);

	runs++;
	for (unsigned i = 0; i + 16 <= sizeof hidden; i += 16) secret(hidden + i);
	volatile char stack[128];
	secret(stack);
	kept = malloc(300000);
	for (int i = 0; kept && i + 16 < 300000; i += 4096) secret(kept + i);
	switch (in[0]) {
	case 1: __builtin_trap();
	case 2: for (;;) depth++;
	case 3: exit(0);
	case 4: exit(65);
	case 5: return recurse(0);
	case 6: return *(volatile int *)0xfffffff0u;
	case 7:
		while (__builtin_wasm_memory_grow(0, 1) != (unsigned long)-1)
			secret((char *)(__builtin_wasm_memory_size(0) * 65536 - 64));
		return 0;
	case 8: free(kept);
	}
	return 0;
}
