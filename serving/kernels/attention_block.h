/* A block of rows of attention, and its products with a block of keys or values: a few rows' with
 * the lanes along a row, for many rows with keys that are transposed first. */
#pragma once

#include <string.h>

#include "attention.h"
#include "vectors.h"

#define BLOCK_KEYS 64
#define AHEAD 32     /* keys that are fetched ahead of their use */
#define WIDE 4       /* vectors of a product that are summed up at once */
#define MANY_ROWS 12 /* rows from which it pays to transpose keys */

#ifdef KERNELS_AVX512
#define GROUP 6 /* rows of many that are multiplied at once, half a divisor of BLOCK_ROWS */
#else
#define GROUP 3
#endif

typedef struct {
    int64_t first, count; /* rows of the key head */
    int64_t size, stride; /* numbers of a head, and from row to row here: whole vectors */
    float queries[BLOCK_ROWS * MOST_HEAD_SIZE]; /* scaled; zero behind the head's size */
    float scores[BLOCK_ROWS][BLOCK_KEYS];
    float sums[BLOCK_ROWS * MOST_HEAD_SIZE];       /* of values */
    float largest[BLOCK_ROWS], totals[BLOCK_ROWS]; /* of the scores, and of their exponentials */
} Rows;

/* ---- Few rows ---- */

/* Numbers that are needed soon: one token reads its keys and values once, at the memory's speed. */
static inline void fetch(const float *numbers, int64_t count) {
    for (int64_t i = 0; i < count; i += 16)
        __builtin_prefetch(numbers + i);
}

/* Scores of all rows with `count` keys; those of up to three more are left undefined. */
static inline void score_few(Rows *rows, const float *keys, const float *values, int64_t count) {
    const int64_t size = rows->size;
    for (int64_t key = 0; key < count; key += 4) {
        fetch(keys + (key + AHEAD) * size, 4 * size);
        fetch(values + key * size, 4 * size);
        const float *four[4];
        for (int i = 0; i < 4; i++)
            four[i] = keys + smaller_of(key + i, count - 1) * size;
        for (int64_t r = 0; r < rows->count; r += 2) {
            const float *one_row = rows->queries + r * rows->stride;
            const float *other_row = one_row + rows->stride;
            Floats products[2][4];
            UNROLLED for (int i = 0; i < 4; i++) products[0][i] = products[1][i] = floats_all(0);
            int64_t d = 0;
            for (; d + LANES <= size; d += LANES) {
                const Floats one = floats_load(one_row + d);
                const Floats other = floats_load(other_row + d);
                UNROLLED for (int i = 0; i < 4; i++) {
                    const Floats numbers = floats_load(four[i] + d);
                    products[0][i] = multiply_add(one, numbers, products[0][i]);
                    products[1][i] = multiply_add(other, numbers, products[1][i]);
                }
            }
            if (d < size)
                UNROLLED for (int i = 0; i < 4; i++) {
                    const Floats numbers = floats_load_some(four[i] + d, size - d);
                    const Floats one = floats_load(one_row + d);
                    const Floats other = floats_load(other_row + d);
                    products[0][i] = multiply_add(one, numbers, products[0][i]);
                    products[1][i] = multiply_add(other, numbers, products[1][i]);
                }
            for (int half = 0; half < 2; half++)
                store_sums(rows->scores[r + half] + key, products[half][0], products[half][1],
                           products[half][2], products[half][3]);
        }
    }
}

/* Add two rows' weighted values, `vectors` vectors of each, a number known when compiling. */
ALWAYS_INLINE void add_values(Rows *rows, int64_t r, const float *values, int64_t count, int64_t d,
                              int vectors) {
    float *one_sum = rows->sums + r * rows->stride, *other_sum = one_sum + rows->stride;
    const int64_t size = rows->size, left = size - d;
    Floats sums[2][WIDE];
    UNROLLED for (int i = 0; i < vectors; i++) {
        sums[0][i] = floats_load(one_sum + d + i * LANES);
        sums[1][i] = floats_load(other_sum + d + i * LANES);
    }
    for (int64_t key = 0; key < count; key++) {
        const Floats one = floats_all(rows->scores[r][key]);
        const Floats other = floats_all(rows->scores[r + 1][key]);
        UNROLLED for (int i = 0; i < vectors; i++) {
            const float *from = values + key * size + d + i * LANES;
            const Floats numbers =
                vectors == WIDE ? floats_load(from) : floats_load_some(from, left);
            sums[0][i] = multiply_add(one, numbers, sums[0][i]);
            sums[1][i] = multiply_add(other, numbers, sums[1][i]);
        }
    }
    UNROLLED for (int i = 0; i < vectors; i++) {
        floats_store(one_sum + d + i * LANES, sums[0][i]);
        floats_store(other_sum + d + i * LANES, sums[1][i]);
    }
}

static inline void add_few(Rows *rows, const float *values, int64_t count) {
    for (int64_t r = 0; r < rows->count; r += 2) {
        int64_t d = 0;
        for (; d + WIDE * LANES <= rows->size; d += WIDE * LANES)
            add_values(rows, r, values, count, d, WIDE);
        for (; d < rows->size; d += LANES)
            add_values(rows, r, values, count, d, 1);
    }
}

/* ---- Many rows ---- */

/* Keys [count][size] to [size][BLOCK_KEYS], zero behind the last one. */
static inline void transpose_keys(const float *keys, int64_t count, int64_t size,
                                  float (*transposed)[BLOCK_KEYS]) {
    for (int64_t d = 0; d < size; d += LANES)
        for (int64_t key = 0; key < BLOCK_KEYS; key += LANES) {
            Floats block[LANES];
            for (int i = 0; i < LANES; i++)
                block[i] = key + i < count ? floats_load_some(keys + (key + i) * size + d, size - d)
                                           : floats_all(0);
            transpose(block);
            for (int i = 0; i < smaller_of(LANES, size - d); i++)
                floats_store(transposed[d + i] + key, block[i]);
        }
}

/* GROUP rows of numbers [count], times `vectors` vectors of each of as many rows of a panel, are
 * added to results, or are them. `left` numbers of a row of the panel may be read where it is read
 * one vector at a time. */
ALWAYS_INLINE void multiply_panel(const float *numbers, int64_t number_stride, const float *panel,
                                  int64_t panel_stride, int64_t count, int64_t left, bool adds,
                                  float *results, int64_t result_stride, int vectors) {
    Floats sums[GROUP][WIDE];
    UNROLLED for (int r = 0; r < GROUP; r++) UNROLLED for (int i = 0; i < vectors; i++) sums[r][i] =
        adds ? floats_load(results + r * result_stride + i * LANES) : floats_all(0);
    for (int64_t k = 0; k < count; k++) {
        const float *from = panel + k * panel_stride;
        Floats row[WIDE];
        UNROLLED for (int i = 0; i < vectors; i++) row[i] =
            vectors == WIDE ? floats_load(from + i * LANES) : floats_load_some(from, left);
        UNROLLED for (int r = 0; r < GROUP; r++) {
            const Floats number = floats_all(numbers[r * number_stride + k]);
            UNROLLED for (int i = 0; i < vectors; i++) sums[r][i] =
                multiply_add(number, row[i], sums[r][i]);
        }
    }
    UNROLLED for (int r = 0; r < GROUP; r++) UNROLLED for (int i = 0; i < vectors; i++)
        floats_store(results + r * result_stride + i * LANES, sums[r][i]);
}

static inline void score_many(Rows *rows, const float *keys, int64_t count) {
    float transposed[MOST_HEAD_SIZE][BLOCK_KEYS];
    transpose_keys(keys, count, rows->size, transposed);
    for (int64_t r = 0; r < rows->count; r += GROUP)
        for (int64_t key = 0; key < count; key += WIDE * LANES)
            multiply_panel(rows->queries + r * rows->stride, rows->stride, transposed[0] + key,
                           BLOCK_KEYS, rows->size, BLOCK_KEYS, false, rows->scores[r] + key,
                           BLOCK_KEYS, WIDE);
}

static inline void add_many(Rows *rows, const float *values, int64_t count) {
    const int64_t size = rows->size;
    for (int64_t r = 0; r < rows->count; r += GROUP) {
        float *sums = rows->sums + r * rows->stride;
        int64_t d = 0;
        for (; d + WIDE * LANES <= size; d += WIDE * LANES)
            multiply_panel(rows->scores[r], BLOCK_KEYS, values + d, size, count, size - d, true,
                           sums + d, rows->stride, WIDE);
        for (; d < size; d += LANES)
            multiply_panel(rows->scores[r], BLOCK_KEYS, values + d, size, count, size - d, true,
                           sums + d, rows->stride, 1);
    }
}

/* ---- Any rows ---- */

/* Scores of all rows with `count` keys; those of the block's other keys are left undefined. */
static inline void score_block(Rows *rows, const float *keys, const float *values, int64_t count) {
    if (rows->count < MANY_ROWS)
        score_few(rows, keys, values, count);
    else
        score_many(rows, keys, count);
}

/* Add the values of `count` keys, weighted with the scores. */
static inline void add_block(Rows *rows, const float *values, int64_t count) {
    if (rows->count < MANY_ROWS)
        add_few(rows, values, count);
    else
        add_many(rows, values, count);
}
