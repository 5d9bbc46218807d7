/* Products of many rows of activations with tiles of weights that are unpacked first, lanes along
 * columns: 4 numbers of a row meet those of a vector of columns. */
#pragma once

#include <string.h>

#include "product.h"
#include "rounding.h"
#include "vectors.h"

#define TILE (2 * LANES) /* columns of a tile */
#define DEPTH 2048       /* numbers of a column that are unpacked at once */
#define REST_ROWS 4      /* rows that are multiplied at once where TILE_ROWS are too many */

/* Columns [TILE] of weights as signed bytes, DEPTH numbers of each. */
typedef struct {
    int32_t fours[DEPTH / 4][TILE];   /* four numbers in each */
    int32_t zeros[DEPTH / 16][TILE];  /* a block's zero point, in each of four bytes */
    int32_t starts[DEPTH / 16][TILE]; /* what takes the activations' offset out of a block */
    float scales[DEPTH / 16][TILE];
    int64_t run; /* numbers in a block here: a row of `zeros`, `starts` and `scales` */
} Tile;

/* The scales and zero points of `columns` columns from `column`, numbers from `from` of each. */
static inline void read_blocks(const Weights *weights, int64_t column, int64_t columns,
                               int64_t from, int64_t count, Tile *tile) {
    const int64_t blocks = blocks_of(weights);
    for (int64_t run = 0; run < count / tile->run; run++) {
        const int64_t block = (from + run * tile->run) >> __builtin_ctzll(weights->block);
        for (int64_t i = 0; i < columns; i++) {
            tile->scales[run][i] = weights->scales[(column + i) * blocks + block];
            tile->zeros[run][i] = 0x01010101 * zero_point(weights, column + i, block);
        }
    }
}

/* Words of LANES columns, from byte `start` of each row, to vectors of one word of every column. */
static inline void load_words(const Weights *weights, int64_t column, int64_t start, int64_t bytes,
                              Integers words[LANES]) {
    const int64_t row = padded_inputs(weights) * weights->bits / 8;
    Floats turned[LANES];
    for (int64_t i = 0; i < LANES; i++)
        turned[i] =
            as_floats(column + i < weights->outputs
                          ? integers_load_some(weights->numbers + (column + i) * row + start, bytes)
                          : integers_zero());
    transpose(turned);
    for (int i = 0; i < LANES; i++)
        words[i] = as_integers(turned[i]);
}

ALWAYS_INLINE void unpack_tile(const Product *product, int64_t column, int64_t from, int64_t count,
                               Tile *tile, int bits) {
    const Weights *weights = &product->weights;
    const int64_t bytes = count * bits / 8, numbers = 32 / bits; /* in a word */
    tile->run = smaller_of(weights->block, SPAN);
    read_blocks(weights, column, smaller_of(TILE, weights->outputs - column), from, count, tile);
    const int shift = __builtin_ctzll(tile->run);
    for (int64_t start = 0; start < bytes; start += VECTOR)
        for (int half = 0; half < TILE; half += LANES) {
            Integers words[LANES];
            load_words(weights, column + half, from * bits / 8 + start, bytes - start, words);
            for (int64_t i = 0; i < smaller_of(LANES, (bytes - start) / 4); i++) {
                const int64_t word = start / 4 + i;
                const Integers zeros = integers_load(tile->zeros[(word * numbers) >> shift] + half);
                int32_t (*fours)[TILE] = tile->fours + word * numbers / 4;
                if (bits == 8) {
                    integers_store(fours[0] + half, subtract_bytes(words[i], zeros));
                } else {
                    integers_store(fours[0] + half, subtract_bytes(low_nibbles(words[i]), zeros));
                    integers_store(fours[1] + half, subtract_bytes(high_nibbles(words[i]), zeros));
                }
            }
        }
    const int offset = offset_of(product);
    for (int64_t block = 0; block < count / tile->run; block++)
        for (int half = 0; half < TILE; half += LANES) {
            Integers sum = integers_zero();
            for (int64_t i = 0; offset && i < tile->run / 4; i++)
                sum = dot(sum, bytes_all(offset),
                          integers_load(tile->fours[block * tile->run / 4 + i] + half));
            integers_store(tile->starts[block] + half, subtract(integers_zero(), sum));
        }
}

/* Four numbers of every row of a group, for each four of a column. */
typedef const int32_t (*Fours)[TILE_ROWS];

/* Add products of `steps` fours to sums [rows][2]. */
ALWAYS_INLINE void dot_fours(Integers (*sums)[2], const int32_t (*weights)[TILE], Fours activations,
                             int64_t steps, int rows) {
    for (int64_t step = 0; step < steps; step++) {
        const Integers left = integers_load(weights[step]);
        const Integers right = integers_load(weights[step] + LANES);
        UNROLLED for (int r = 0; r < rows; r++) {
            const Integers four = bytes_repeat(activations[step] + r);
#ifdef KERNELS_AVX512
            sums[r][0] = dot(sums[r][0], four, left);
            sums[r][1] = dot(sums[r][1], four, right);
#else
            sums[r][0] = dot_signed(sums[r][0], left, four);
            sums[r][1] = dot_signed(sums[r][1], right, four);
#endif
        }
    }
}

#ifndef KERNELS_AVX512
/* The same for weights of 4 bits: four sums of two products each fit into 16 bits. */
ALWAYS_INLINE void dot_small_fours(Integers (*sums)[2], const int32_t (*weights)[TILE],
                                   Fours activations, int64_t steps, int rows) {
    const __m256i one = _mm256_set1_epi16(1);
    for (int64_t step = 0; step < steps; step += 4) {
        Integers pairs[TILE_ROWS][2];
        UNROLLED for (int r = 0; r < rows; r++) pairs[r][0] = pairs[r][1] = integers_zero();
        UNROLLED for (int i = 0; i < 4; i++) {
            const Integers left = integers_load(weights[step + i]);
            const Integers right = integers_load(weights[step + i] + LANES);
            UNROLLED for (int r = 0; r < rows; r++) {
                const Integers four = bytes_repeat(activations[step + i] + r);
                pairs[r][0] = _mm256_add_epi16(pairs[r][0], _mm256_maddubs_epi16(four, left));
                pairs[r][1] = _mm256_add_epi16(pairs[r][1], _mm256_maddubs_epi16(four, right));
            }
        }
        UNROLLED for (int r = 0; r < rows; r++) for (int half = 0; half < 2; half++) sums[r][half] =
            _mm256_add_epi32(sums[r][half], _mm256_madd_epi16(pairs[r][half], one));
    }
}
#endif

/* Add products of one block to sums [rows][2]. */
ALWAYS_INLINE void dot_block(Integers (*sums)[2], const int32_t (*weights)[TILE], Fours activations,
                             int64_t steps, int rows, int bits) {
#ifndef KERNELS_AVX512
    if (bits == 4) {
        dot_small_fours(sums, weights, activations, steps, rows);
        return;
    }
#endif
    (void)bits;
    dot_fours(sums, weights, activations, steps, rows);
}

/* `rows` rows from `row`, a count known when compiling, times the tile; to results [rows][TILE]. */
ALWAYS_INLINE void multiply_rows(const Product *product, const Tile *tile, int64_t column,
                                 int64_t row, int rows, int64_t from, int64_t count,
                                 float (*results)[TILE], int bits) {
    const int64_t spans = spans_of(&product->weights);
    const int64_t group = row / TILE_ROWS * spans * SPAN + from;
    const Fours activations = (Fours)(product->rounded + group * TILE_ROWS + 4 * (row % TILE_ROWS));
    const float *scales = product->row_scales + row * spans;
    UNROLLED for (int r = 0; r < rows; r++) {
        const float *out = (const float *)product->result +
                           smaller_of(row + r, product->rows - 1) * product->weights.outputs +
                           column;
        for (int c = 0; c < TILE; c += 16)
            __builtin_prefetch(out + c, 1);
        memset(results[r], 0, sizeof results[r]);
    }
    for (int64_t start = 0; start < count; start += tile->run) {
        const int64_t block = start / tile->run;
        Integers sums[TILE_ROWS][2];
        UNROLLED for (int r = 0; r < rows; r++) for (int half = 0; half < 2; half++) sums[r][half] =
            integers_load(tile->starts[block] + half * LANES);
        dot_block(sums, tile->fours + start / 4, activations + start / 4, tile->run / 4, rows,
                  bits);
        for (int half = 0; half < 2; half++) {
            const Floats weight_scale = floats_load(tile->scales[block] + half * LANES);
            UNROLLED for (int r = 0; r < rows; r++) {
                float *result = results[r] + half * LANES;
                const Floats scale =
                    multiply(weight_scale, floats_all(scales[r * spans + (from + start) / SPAN]));
                floats_store(result,
                             multiply_add(to_floats(sums[r][half]), scale, floats_load(result)));
            }
        }
    }
}

static void add_results(const Product *product, int64_t row, int rows, int64_t column, int64_t from,
                        float (*results)[TILE]) {
    const int columns = (int)smaller_of(TILE, product->weights.outputs - column);
    for (int r = 0; r < smaller_of(rows, product->rows - row); r++) {
        float *total = product->result + (row + r) * product->weights.outputs + column;
        for (int c = 0; c < columns; c++)
            total[c] = (from            ? total[c]
                        : product->bias ? product->bias[column + c]
                                        : 0) +
                       results[r][c];
    }
}

ALWAYS_INLINE void multiply_columns(const Product *product, int64_t column, int bits) {
    Tile tile;
    const int64_t inputs = padded_inputs(&product->weights);
    for (int64_t from = 0; from < inputs; from += DEPTH) {
        const int64_t count = smaller_of(DEPTH, inputs - from);
        unpack_tile(product, column, from, count, &tile, bits);
        float results[TILE_ROWS][TILE];
        int64_t row = 0;
        for (; row + TILE_ROWS <= product->rows; row += TILE_ROWS) {
            multiply_rows(product, &tile, column, row, TILE_ROWS, from, count, results, bits);
            add_results(product, row, TILE_ROWS, column, from, results);
        }
        for (; row < product->rows; row += REST_ROWS) {
            multiply_rows(product, &tile, column, row, REST_ROWS, from, count, results, bits);
            add_results(product, row, REST_ROWS, column, from, results);
        }
    }
}

static void multiply_tile(void *data, size_t part) {
    const Product *product = data;
    if (product->weights.bits == 4)
        multiply_columns(product, part * TILE, 4);
    else
        multiply_columns(product, part * TILE, 8);
}
