/* Linear layers over packed weights. What follows the product is done before a sum is stored. */
#pragma once

#include "gelu.h"
#include "grouped_rows.h"
#include "linear.h"

static inline int64_t chunks_of(const Linear *linear) { return pieces_of(linear->inputs, CHUNK); }

static int64_t tile_size(int64_t inputs) { return pieces_of(inputs, CHUNK) * CHUNK * TILE; }

static void pack_tile(const float *weights, int64_t outputs, int64_t inputs, int64_t tile,
                      float *packed) {
    fill_tile(weights, outputs, inputs, inputs, tile * TILE, packed);
}

static void fill_groups(const Linear *linear) {
    const int64_t inputs = linear->inputs, rows = linear->last - linear->first;
    const int64_t group = rows_of_group(rows);
    for (int64_t start = 0; start < rows; start += group)
        fill_group(linear->source + (linear->first + start) * inputs, rows - start, inputs, inputs,
                   1, group, linear->grouped + start * chunks_of(linear) * CHUNK);
}

/* Store sums of `group` rows, a number known when compiling, of which the result has `rows`. */
ALWAYS_INLINE void finish_group(const Linear *linear, int64_t row, int64_t rows, int64_t column,
                                int group, Floats (*sums)[2]) {
    UNROLLED for (int half = 0; half < 2; half++) {
        const int64_t start = column + half * LANES, left = linear->outputs - start;
        const Floats bias = floats_load_some(linear->bias + start, left);
        UNROLLED for (int r = 0; r < group; r++) sums[r][half] = add(sums[r][half], bias);
        if (linear->is_gelu)
            UNROLLED for (int r = 0; r < group; r++) sums[r][half] = exact_gelu_of(sums[r][half]);
        UNROLLED for (int r = 0; r < group; r++) if (r < rows) {
            const int64_t place = (row + r) * linear->outputs + start;
            if (linear->residual)
                sums[r][half] = add(sums[r][half], floats_load_some(linear->residual + place, left));
            floats_store_some(linear->result + place, sums[r][half], left);
        }
    }
}

/* A group of `group` rows, a number known when compiling, times one tile. The first rows fetch the
 * tile behind it. */
ALWAYS_INLINE void multiply_tile(const Linear *linear, int64_t start, int64_t tile, int group) {
    const int64_t chunks = chunks_of(linear), size = tile_size(linear->inputs);
    Floats sums[GROUP][2];
    const int64_t row = linear->first + start, rows = linear->last - row;
    for (int64_t r = 0; r < smaller_of(rows, group); r++)
        for (int i = 0; i < TILE; i += 16)
            __builtin_prefetch(linear->result + (row + r) * linear->outputs + tile * TILE + i, 1);
    multiply_group(linear->grouped + start * chunks * CHUNK, linear->weights + tile * size, chunks,
                   start == 0 ? size : 0, group, sums);
    finish_group(linear, row, rows, tile * TILE, group, sums);
}

static void multiply_tiles(const Linear *linear) {
    const int64_t rows = linear->last - linear->first, group = rows_of_group(rows);
    for (int64_t tile = linear->first_tile; tile < linear->first_tile + linear->tiles; tile++)
        for (int64_t start = 0; start < rows; start += group)
            FOR_GROUP(group, multiply_tile, linear, start, tile)
}

/* This instruction set's table. */
#define LINEAR_KERNELS                                                                             \
    {.tile_columns = TILE,                                                                         \
     .group_rows = GROUP,                                                                          \
     .tile_size = tile_size,                                                                       \
     .pack_tile = pack_tile,                                                                       \
     .fill_groups = fill_groups,                                                                   \
     .multiply_tiles = multiply_tiles}
