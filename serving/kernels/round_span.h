/* Rounding the activations that share a scale to 8 bits. */
#pragma once

#include "product.h"
#include "vectors.h"

/* Round SPAN numbers to 8 bits, `offset` higher, and return their scale. */
static inline float round_span(const float *numbers, int offset, int8_t *rounded) {
    Floats most = floats_all(0);
    for (int i = 0; i < SPAN; i += LANES)
        most = larger(most, magnitude(floats_load(numbers + i)));
    const float largest = largest_of(most);
    const Floats factor = floats_all(largest > 0 ? 127 / largest : 0);
    for (int i = 0; i < SPAN; i += LANES) {
        const Integers nearest = to_integers(multiply(floats_load(numbers + i), factor));
        narrow_store(rounded + i, add_all(nearest, offset));
    }
    return largest / 127;
}
