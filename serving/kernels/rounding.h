/* Rounding rows of activations to 8 bits. */
#pragma once

#include <string.h>

#include "product.h"
#include "round_span.h"

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

/* Nibbles are unpacked to the even numbers of a run and then the odd ones: part runs of 8 alike. */
static inline void part_eights(int8_t *bytes) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    for (int i = 0; i < SPAN; i += 16) {
        const __m128i run = _mm_loadu_si128((const __m128i *)(bytes + i));
        _mm_storeu_si128((__m128i *)(bytes + i), _mm_shuffle_epi8(run, order));
    }
}

/* The same for runs of two vectors. */
static inline void part_vectors(int8_t *bytes) {
    int8_t parted[SPAN];
    for (int run = 0; run < SPAN; run += 2 * VECTOR)
        for (int i = 0; i < VECTOR; i++) {
            parted[run + i] = bytes[run + 2 * i];
            parted[run + VECTOR + i] = bytes[run + 2 * i + 1];
        }
    memcpy(bytes, parted, SPAN);
}

/* Round the numbers of one row that are in one span. */
static inline void round_part(const Product *product, int64_t row, int64_t span) {
    const Weights *weights = &product->weights;
    const int64_t spans = spans_of(weights), left = weights->inputs - span * SPAN;
    const float *numbers = product->source + row * weights->inputs + span * SPAN;
    float padded[SPAN] = {0};
    int8_t bytes[SPAN];
    if (left < SPAN)
        numbers = memcpy(padded, numbers, left > 0 ? left * sizeof(float) : 0);
    product->row_scales[row * spans + span] = round_span(numbers, offset_of(product), bytes);
    if (weights->bits == 4 && product->is_tiled)
        part_eights(bytes);
    else if (weights->bits == 4)
        part_vectors(bytes);
    if (!product->is_tiled) {
        memcpy(product->rounded + (row * spans + span) * SPAN, bytes, SPAN);
        return;
    }
    const int64_t group = (row / TILE_ROWS * spans + span) * SPAN * TILE_ROWS;
    int8_t *fours = product->rounded + group + 4 * (row % TILE_ROWS);
    for (int i = 0; i < SPAN / 4; i++)
        memcpy(fours + 4 * i * TILE_ROWS, bytes + 4 * i, 4);
}

static void round_group(void *data, size_t group) {
    const Product *product = data;
    const int64_t first = group * TILE_ROWS, last = smaller_of(first + TILE_ROWS, product->rows);
    for (int64_t span = 0; span < spans_of(&product->weights); span++)
        for (int64_t row = first; row < last; row++)
            round_part(product, row, span);
}
