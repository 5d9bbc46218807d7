/* The rounds of SHA-256, with the processor's instructions for them where it has any. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Add `count` blocks of 64 bytes to the state. */
void sha256_blocks(uint32_t state[8], const unsigned char *data, size_t count);
