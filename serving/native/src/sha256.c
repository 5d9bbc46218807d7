#include "sha256.h"

#include "sha256_blocks.h"

#include <string.h>

void sha256_begin(Sha256 *hash) {
    static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(hash->state, initial, sizeof initial);
    hash->bytes = 0;
}

void sha256_add(Sha256 *hash, const void *data, size_t bytes) {
    const unsigned char *input = data;
    const size_t held = hash->bytes % 64;
    hash->bytes += bytes;
    if (held) {
        const size_t taken = bytes < 64 - held ? bytes : 64 - held;
        memcpy(hash->block + held, input, taken);
        input += taken, bytes -= taken;
        if (held + taken < 64)
            return;
        sha256_blocks(hash->state, hash->block, 1);
    }
    sha256_blocks(hash->state, input, bytes / 64);
    memcpy(hash->block, input + bytes / 64 * 64, bytes % 64);
}

void sha256_end(Sha256 *hash, unsigned char digest[SHA256_BYTES]) {
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)(hash->bytes * 8 >> (56 - 8 * i));
    static const unsigned char padding[64] = {0x80};
    const size_t held = hash->bytes % 64;
    sha256_add(hash, padding, held < 56 ? 56 - held : 120 - held);
    sha256_add(hash, length, sizeof length);
    for (int i = 0; i < SHA256_BYTES; i++)
        digest[i] = (unsigned char)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}
