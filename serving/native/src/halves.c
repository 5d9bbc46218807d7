#include "halves.h"

#include <stdint.h>
#include <string.h>

/* IEEE 754: 1 bit of sign, 5 of exponent, 10 of fraction. Scaling by a power of 2 moves the
 * exponent, and makes subnormal numbers normal. */
static float from_float16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    if (bits >= 0x7c00u << 13) { /* infinite, or no number */
        bits |= 0x7f800000;
        memcpy(&value, &bits, sizeof value);
    } else {
        memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f;
        memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float from_bfloat16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define WIDEN(name, convert)                                                                       \
    void name(float *values, size_t count) {                                                       \
        const char *const halves = (const char *)values + count * sizeof(uint16_t);                \
        for (size_t i = 0; i < count; i++) {                                                       \
            uint16_t half;                                                                         \
            memcpy(&half, halves + i * sizeof half, sizeof half);                                  \
            const float value = convert(half);                                                     \
            memcpy(&values[i], &value, sizeof value);                                              \
        }                                                                                          \
    }

WIDEN(widen_float16, from_float16)
WIDEN(widen_bfloat16, from_bfloat16)
