/* Rounding rows of activations to 8 bits. */
#pragma once

#include <string.h>

#include "product.h"
#include "vectors.h"

/* A tiled product has rows in groups of so many, the same 4 numbers of each side by side. */
#ifdef KERNELS_AVX512
#define TILE_ROWS 12
#else
#define TILE_ROWS 4
#endif

/* What unsigned activations are higher by. Products of unsigned with signed numbers are the fast
 * ones, but sums of two would overflow where AVX2 multiplies 8 bits with 8 bits. */
static inline int offset_of(const Product *product) {
    return product->is_tiled && (LANES == 16 || product->weights.bits == 4) ? 128 : 0;
}

/* Round SPAN numbers to 8 bits and return their scale. */
static inline float round_span(const float *numbers, int32_t *rounded) {
    Floats most = floats_all(0);
    for (int i = 0; i < SPAN; i += LANES)
        most = larger(most, magnitude(floats_load(numbers + i)));
    const float largest = largest_of(most);
    const Floats factor = floats_all(largest > 0 ? 127 / largest : 0);
    for (int i = 0; i < SPAN; i += LANES)
        integers_store(rounded + i, to_integers(multiply(floats_load(numbers + i), factor)));
    return largest / 127;
}

/* Narrow SPAN integers to bytes, each run of 2 * half in the order of unpacked nibbles: first the
 * even ones. A half of SPAN leaves the order alone. */
static inline void narrow_span(const int32_t *integers, int offset, int half, int8_t *bytes) {
    if (half == SPAN) {
        for (int i = 0; i < SPAN; i++)
            bytes[i] = (int8_t)(integers[i] + offset);
        return;
    }
    for (int run = 0; run < SPAN; run += 2 * half)
        for (int i = 0; i < half; i++) {
            bytes[run + i] = (int8_t)(integers[run + 2 * i] + offset);
            bytes[run + half + i] = (int8_t)(integers[run + 2 * i + 1] + offset);
        }
}

static void round_row(void *data, size_t row) {
    const Product *product = data;
    const Weights *weights = &product->weights;
    const int64_t spans = spans_of(weights);
    const int half = weights->bits == 8 ? SPAN : product->is_tiled ? 4 : VECTOR;
    for (int64_t span = 0; span < spans; span++) {
        float numbers[SPAN] = {0};
        int32_t integers[SPAN];
        int8_t bytes[SPAN];
        const int64_t left = weights->inputs - span * SPAN;
        if (left > 0)
            memcpy(numbers, product->source + row * weights->inputs + span * SPAN,
                   smaller_of(left, SPAN) * sizeof(float));
        product->row_scales[row * spans + span] = round_span(numbers, integers);
        narrow_span(integers, offset_of(product), half, bytes);
        if (!product->is_tiled) {
            memcpy(product->rounded + (row * spans + span) * SPAN, bytes, SPAN);
            continue;
        }
        const int64_t group = (row / TILE_ROWS * spans + span) * SPAN * TILE_ROWS;
        for (int i = 0; i < SPAN / 4; i++)
            memcpy(product->rounded + group + 4 * (i * TILE_ROWS + row % TILE_ROWS), bytes + 4 * i,
                   4);
    }
}
