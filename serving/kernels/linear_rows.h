/* Linear layers over packed weights that are floats. */
#pragma once

#include "linear_results.h"

static inline int64_t chunks_of(const LinearWeights *weights) {
    return pieces_of(weights->inputs, CHUNK);
}

static int64_t row_bytes(const LinearWeights *weights) {
    return chunks_of(weights) * CHUNK * sizeof(float);
}

static int64_t tile_bytes(const LinearWeights *weights) { return row_bytes(weights) * TILE; }

static void pack_tile(const LinearWeights *weights, int64_t tile, uint8_t *packed) {
    fill_tile(weights->numbers, weights->outputs, weights->inputs, weights->inputs, tile * TILE,
              (float *)packed);
}

static void fill_groups(const Linear *linear) {
    const int64_t inputs = linear->weights.inputs, rows = linear->last - linear->first;
    const int64_t group = rows_of_group(rows, GROUP), bytes = row_bytes(&linear->weights);
    for (int64_t start = 0; start < rows; start += group)
        fill_group(linear->source + (linear->first + start) * inputs, rows - start, inputs, inputs,
                   1, group, (float *)(linear->grouped + start * bytes));
}

/* A group of `group` rows, a number known when compiling, times one tile. Each group fetches its
 * part of the tile that comes next. */
ALWAYS_INLINE void multiply_tile(const Linear *linear, int64_t start, int64_t tile, int group) {
    const int64_t chunks = chunks_of(&linear->weights), size = chunks * CHUNK * TILE;
    const int64_t row = linear->first + start, rows = smaller_of(linear->last - row, group);
    const int64_t groups = pieces_of(linear->last - linear->first, group);
    const int64_t lines = pieces_of(CHUNK * TILE / LINE, groups);
    const float *weights = (const float *)linear->packed + tile * size;
    const float *numbers = (const float *)(linear->grouped + start * row_bytes(&linear->weights));
    expect_results(linear, row, rows, tile * TILE);
    Floats sums[GROUP][2];
    multiply_group(numbers, weights, chunks, weights + size + start / group * lines * chunks * LINE,
                   lines, group, sums);
    store_results(linear, row, rows, tile * TILE, group, sums);
}

static void multiply_tiles(const Linear *linear) {
    const int64_t rows = linear->last - linear->first, group = rows_of_group(rows, GROUP);
    for (int64_t tile = linear->first_tile; tile < linear->first_tile + linear->tiles; tile++)
        for (int64_t start = 0; start < rows; start += group)
            FOR_GROUP(group, multiply_tile, linear, start, tile)
}

/* This instruction set's table. */
#define LINEAR_KERNELS                                                                             \
    {.tile_columns = TILE,                                                                         \
     .group_rows = GROUP,                                                                          \
     .tile_bytes = tile_bytes,                                                                     \
     .row_bytes = row_bytes,                                                                       \
     .pack_tile = pack_tile,                                                                       \
     .fill_groups = fill_groups,                                                                   \
     .multiply_tiles = multiply_tiles}
