/* Linear layers over packed weights of 8 bits: activations are rounded to 8 bits too, each SPAN of
 * a row with a scale of its own. Four numbers of a row meet those of two vectors of columns. */
#pragma once

#include "linear_results.h"
#include "round_span.h"

#ifdef KERNELS_AVX512
#define INTEGER_GROUP GROUP
#define OFFSET 128 /* what activations are higher by: the fast products are of unsigned numbers */
#else
#define INTEGER_GROUP 4
#define OFFSET 0
#endif

#define FOURS_BYTES (4 * CHUNK) /* bytes of a chunk of fours */

/* Numbers in a row of weights, the filling of its last block among them. */
static inline int64_t padded_row(const LinearWeights *weights) {
    return pieces_of(weights->inputs, weights->block) * weights->block;
}

/* Numbers that share a scale of the weights and one of the activations. */
static inline int64_t run_of(const LinearWeights *weights) {
    return smaller_of(weights->block, SPAN);
}

static inline int64_t runs_of(const LinearWeights *weights) {
    return padded_row(weights) / run_of(weights);
}

static inline int64_t row_spans(const LinearWeights *weights) {
    return pieces_of(padded_row(weights), SPAN);
}

static int64_t row_bytes(const LinearWeights *weights) {
    return padded_row(weights) + row_spans(weights) * sizeof(float);
}

/* A tile of packed weights: fours [padded row / 4][TILE] and, for each run, what its sums begin
 * with [TILE] and the scales of the weights [TILE]. */
typedef struct {
    int32_t *fours, *starts;
    float *scales;
} Tile;

static inline Tile tile_at(const LinearWeights *weights, const uint8_t *packed) {
    Tile tile = {.fours = (int32_t *)packed};
    tile.starts = tile.fours + padded_row(weights) / 4 * TILE;
    tile.scales = (float *)(tile.starts + runs_of(weights) * TILE);
    return tile;
}

static int64_t tile_bytes(const LinearWeights *weights) {
    return (padded_row(weights) + runs_of(weights) * 2 * sizeof(float)) * TILE;
}

static void pack_column(const LinearWeights *weights, int64_t column, int64_t place, Tile tile) {
    const int64_t count = padded_row(weights), run = run_of(weights);
    const uint8_t *numbers = (const uint8_t *)weights->numbers + column * count;
    for (int64_t start = 0; start < count; start += run) {
        int32_t sum = 0;
        for (int64_t k = start; k < start + run; k += 4) {
            int8_t four[4];
            for (int i = 0; i < 4; i++) {
                four[i] = (int8_t)(numbers[k + i] - 128);
                sum += four[i];
            }
            memcpy(tile.fours + k / 4 * TILE + place, four, sizeof four);
        }
        tile.starts[start / run * TILE + place] = -OFFSET * sum;
        tile.scales[start / run * TILE + place] =
            weights->scales[column * (count / weights->block) + start / weights->block];
    }
}

static void pack_tile(const LinearWeights *weights, int64_t tile, uint8_t *packed) {
    memset(packed, 0, tile_bytes(weights));
    for (int64_t i = 0; i < smaller_of(TILE, weights->outputs - tile * TILE); i++)
        pack_column(weights, tile * TILE + i, i, tile_at(weights, packed));
}

/* Scales of a group's rows, [spans][group], behind its numbers [chunks][group][CHUNK]. */
static inline float *row_scales_of(const LinearWeights *weights, const uint8_t *numbers,
                                   int64_t group) {
    return (float *)(numbers + padded_row(weights) * group);
}

/* Round one row of a group, or fill it with zeros where it is NULL. */
static inline void round_row(const LinearWeights *weights, const float *row, int64_t r,
                             int64_t group, uint8_t *numbers) {
    float *scales = row_scales_of(weights, numbers, group) + r;
    for (int64_t start = 0; start < padded_row(weights); start += SPAN) {
        const int64_t left = row ? weights->inputs - start : 0;
        const float *source = row + start;
        float filled[SPAN] = {0};
        int8_t bytes[SPAN];
        if (left < SPAN)
            source = memcpy(filled, source, left > 0 ? left * sizeof(float) : 0);
        scales[start / SPAN * group] = round_span(source, OFFSET, bytes);
        for (int64_t i = 0; i < smaller_of(SPAN, padded_row(weights) - start); i += FOURS_BYTES)
            memcpy(numbers + ((start + i) / FOURS_BYTES * group + r) * FOURS_BYTES, bytes + i,
                   FOURS_BYTES);
    }
}

static void fill_groups(const Linear *linear) {
    const LinearWeights *weights = &linear->weights;
    const int64_t rows = linear->last - linear->first, group = rows_of_group(rows, INTEGER_GROUP);
    for (int64_t start = 0; start < rows; start += group)
        for (int64_t r = 0; r < group; r++) {
            const float *row = linear->source + (linear->first + start + r) * weights->inputs;
            round_row(weights, start + r < rows ? row : NULL, r, group,
                      linear->grouped + start * row_bytes(weights));
        }
}

/* Add the products of a chunk of fours to sums [group][2]. */
ALWAYS_INLINE void dot_chunk(const int32_t *numbers, const int32_t *weights, int group,
                             Integers (*sums)[2]) {
    UNROLLED for (int k = 0; k < CHUNK; k++, weights += TILE) {
        const Integers left = integers_load(weights), right = integers_load(weights + LANES);
        UNROLLED for (int r = 0; r < group; r++) {
            const Integers four = bytes_repeat(numbers + r * CHUNK + k);
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

/* A group of `group` rows, a number known when compiling, times one tile. Each group fetches its
 * part of the tile that comes next. */
ALWAYS_INLINE void multiply_tile(const Linear *linear, int64_t start, int64_t tile, int group) {
    const LinearWeights *weights = &linear->weights;
    const int64_t row = linear->first + start, rows = smaller_of(linear->last - row, group);
    const int64_t groups = pieces_of(linear->last - linear->first, group);
    const int64_t runs = runs_of(weights), run = run_of(weights), bytes = tile_bytes(weights);
    const uint8_t *packed = linear->packed + tile * bytes;
    const uint8_t *grouped = linear->grouped + start * row_bytes(weights);
    const float *row_scales = row_scales_of(weights, grouped, group);
    const int32_t *numbers = (const int32_t *)grouped;
    const Tile from = tile_at(weights, packed);
    const int64_t lines = pieces_of(pieces_of(bytes, 64), groups * runs);
    const uint8_t *ahead = packed + bytes + start / group * lines * runs * 64;
    Floats results[GROUP][2];
    expect_results(linear, row, rows, tile * TILE);
    UNROLLED for (int r = 0; r < group; r++) results[r][0] = results[r][1] = floats_all(0);
    for (int64_t i = 0; i < runs; i++) {
        Integers sums[GROUP][2];
        UNROLLED for (int r = 0; r < group; r++) for (int half = 0; half < 2; half++)
            sums[r][half] = integers_load(from.starts + i * TILE + half * LANES);
        for (int64_t line = 0; line < lines; line++, ahead += 64)
            __builtin_prefetch(ahead, 0, 2);
        for (int64_t k = i * run; k < (i + 1) * run; k += FOURS_BYTES, numbers += group * CHUNK)
            dot_chunk(numbers, from.fours + k / 4 * TILE, group, sums);
        const float *scales = row_scales + i * run / SPAN * group;
        UNROLLED for (int half = 0; half < 2; half++) {
            const Floats scale = floats_load(from.scales + i * TILE + half * LANES);
            UNROLLED for (int r = 0; r < group; r++) results[r][half] = multiply_add(
                to_floats(sums[r][half]), multiply(scale, floats_all(scales[r])), results[r][half]);
        }
    }
    store_results(linear, row, rows, tile * TILE, group, results);
}

static void multiply_tiles(const Linear *linear) {
    const int64_t rows = linear->last - linear->first, group = rows_of_group(rows, INTEGER_GROUP);
    for (int64_t tile = linear->first_tile; tile < linear->first_tile + linear->tiles; tile++)
        for (int64_t start = 0; start < rows; start += group)
            FOR_GROUP(group, multiply_tile, linear, start, tile)
}

/* This instruction set's table. */
#define INTEGER_LINEAR_KERNELS                                                                     \
    {.tile_columns = TILE,                                                                         \
     .group_rows = INTEGER_GROUP,                                                                  \
     .tile_bytes = tile_bytes,                                                                     \
     .row_bytes = row_bytes,                                                                       \
     .pack_tile = pack_tile,                                                                       \
     .fill_groups = fill_groups,                                                                   \
     .multiply_tiles = multiply_tiles}
