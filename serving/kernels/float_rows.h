/* Products of floats. A few rows are multiplied with weights where they are, lanes along a row, in
 * the time that reading them takes. For many rows, tiles of weights are transposed first: lanes are
 * columns, and every number of a row meets a vector of them. */
#pragma once

#include <string.h>

#include "float_product.h"
#include "vectors.h"

#ifdef KERNELS_AVX512
#define GROUP 12 /* rows that are multiplied at once */
#else
#define GROUP 6
#endif

#define FEW 4            /* rows that are multiplied at once without a tile */
#define CHAINS 4         /* sums of each, to hide the latency of adding */
#define TILE (2 * LANES) /* columns of a tile */
#define DEPTH 1024       /* numbers of a column that are transposed at once */
#define LINE 16          /* numbers of a line of the caches */
#define AHEAD 4096       /* bytes of weights that are fetched ahead of their use */

/* ---- A few rows ---- */

/* `rows` rows from `row`, a number known when compiling, times one column. */
ALWAYS_INLINE void multiply_column(const FloatProduct *product, int64_t row, int rows,
                                   int64_t column) {
    const int64_t inputs = product->inputs;
    const float *weights = product->weights + column * inputs;
    const float *source = product->source + row * inputs;
    Floats sums[FEW][CHAINS];
    UNROLLED for (int r = 0; r < rows; r++) UNROLLED for (int i = 0; i < CHAINS; i++) sums[r][i] =
        floats_all(0);
    int64_t k = 0;
    for (; k + CHAINS * LANES <= inputs; k += CHAINS * LANES)
        UNROLLED for (int i = 0; i < CHAINS; i++) {
            const Floats weight = floats_load(weights + k + i * LANES);
            __builtin_prefetch((const char *)(weights + k + i * LANES) + AHEAD);
            UNROLLED for (int r = 0; r < rows; r++) sums[r][i] =
                multiply_add(weight, floats_load(source + r * inputs + k + i * LANES), sums[r][i]);
        }
    for (; k < inputs; k += LANES) {
        const Floats weight = floats_load_some(weights + k, inputs - k);
        UNROLLED for (int r = 0; r < rows; r++) sums[r][0] =
            multiply_add(weight, floats_load_some(source + r * inputs + k, inputs - k), sums[r][0]);
    }
    UNROLLED for (int r = 0; r < rows; r++) {
        const Floats sum = add(add(sums[r][0], sums[r][1]), add(sums[r][2], sums[r][3]));
        product->result[(row + r) * product->outputs + column] = sum_of(sum);
    }
}

static void multiply_few(void *data, size_t part) {
    const FloatProduct *product = data;
    const int64_t first = part * FLOAT_PART_COLUMNS;
    const int64_t last = smaller_of(first + FLOAT_PART_COLUMNS, product->outputs);
    for (int64_t row = 0; row < product->rows; row += FEW)
        for (int64_t column = first; column < last; column++)
            switch (smaller_of(FEW, product->rows - row)) {
            case 1:
                multiply_column(product, row, 1, column);
                break;
            case 2:
                multiply_column(product, row, 2, column);
                break;
            case 3:
                multiply_column(product, row, 3, column);
                break;
            default:
                multiply_column(product, row, 4, column);
            }
}

/* ---- Many rows ---- */

/* Where a group's rows are: [inputs][GROUP]. */
static inline float *group_of(const FloatProduct *product, int64_t group) {
    return product->grouped + group * (product->inputs * GROUP + GROUP_MARGIN);
}

static void fill_group(void *data, size_t group) {
    const FloatProduct *product = data;
    const int64_t inputs = product->inputs, first = group * GROUP;
    float *place = group_of(product, group);
    for (int64_t k = 0; k < inputs; k += LANES) {
        Floats block[LANES];
        for (int i = 0; i < LANES; i++)
            block[i] =
                i < GROUP && first + i < product->rows
                    ? floats_load_some(product->source + (first + i) * inputs + k, inputs - k)
                    : floats_all(0);
        transpose(block);
        /* Each store's end is overwritten by the next. */
        for (int i = 0; i < smaller_of(LANES, inputs - k); i++)
            floats_store(place + (k + i) * GROUP, block[i]);
    }
}

/* Columns from `column`, numbers from `from` of each, to tile [DEPTH][TILE]. */
static inline void fill_tile(const FloatProduct *product, int64_t column, int64_t from,
                             int64_t count, float (*tile)[TILE]) {
    for (int64_t k = 0; k < count; k += LANES)
        for (int half = 0; half < TILE; half += LANES) {
            Floats block[LANES];
            for (int i = 0; i < LANES; i++) {
                const int64_t place = column + half + i;
                const float *weights = product->weights + place * product->inputs + from + k;
                block[i] =
                    place < product->outputs ? floats_load_some(weights, count - k) : floats_all(0);
            }
            transpose(block);
            for (int i = 0; i < smaller_of(LANES, count - k); i++)
                floats_store(tile[k + i] + half, block[i]);
        }
}

/* Add a group's product with one tile to the results, or begin them with `from` at 0. Meanwhile,
 * `count` numbers of each of `columns_ahead` columns at `ahead` are fetched. */
static inline void multiply_group(const FloatProduct *product, int64_t row, int64_t column,
                                  int64_t from, int64_t count, const float (*tile)[TILE],
                                  const float *ahead, int64_t columns_ahead) {
    const int64_t rows = smaller_of(GROUP, product->rows - row);
    const int64_t columns = smaller_of(TILE, product->outputs - column);
    const float *group = group_of(product, row / GROUP) + from * GROUP;
    float *result = product->result + row * product->outputs + column;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c += LINE)
            __builtin_prefetch(result + r * product->outputs + c, 1);
    Floats sums[GROUP][2];
    UNROLLED for (int r = 0; r < GROUP; r++) sums[r][0] = sums[r][1] = floats_all(0);
    for (int64_t start = 0; start < count; start += LINE) {
        for (int64_t i = 0; i < columns_ahead; i++)
            __builtin_prefetch(ahead + i * product->inputs + start, 0, 2);
        const int64_t end = smaller_of(start + LINE, count);
        for (int64_t k = start; k < end; k++) {
            const Floats left = floats_load(tile[k]), right = floats_load(tile[k] + LANES);
            UNROLLED for (int r = 0; r < GROUP; r++) {
                const Floats number = floats_all(group[k * GROUP + r]);
                sums[r][0] = multiply_add(number, left, sums[r][0]);
                sums[r][1] = multiply_add(number, right, sums[r][1]);
            }
        }
    }
    UNROLLED for (int r = 0; r < GROUP; r++) if (r < rows)
        UNROLLED for (int half = 0; half < 2; half++) {
        float *place = result + r * product->outputs + half * LANES;
        const int64_t left = columns - half * LANES;
        const Floats total =
            from ? add(sums[r][half], floats_load_some(place, left)) : sums[r][half];
        floats_store_some(place, total, left);
    }
}

/* Several tiles, so that a group's numbers come from afar once for all of them. */
static void multiply_tiles(void *data, size_t part) {
    const FloatProduct *product = data;
    const int64_t inputs = product->inputs, width = product->part_tiles * TILE;
    const int64_t first = part * width, last = smaller_of(first + width, product->outputs);
    float tiles[MOST_PART_TILES][DEPTH][TILE];
    for (int64_t from = 0; from < inputs; from += DEPTH) {
        const int64_t count = smaller_of(DEPTH, inputs - from);
        for (int64_t column = first, tile = 0; column < last; column += TILE, tile++)
            fill_tile(product, column, from, count, tiles[tile]);
        /* What comes next: more of these columns, or the part behind the one that another thread
         * has begun. */
        const int64_t columns_ahead = pieces_of(TILE, pieces_of(product->rows, GROUP));
        const bool is_last = from + DEPTH >= inputs;
        const float *ahead = product->weights + (is_last ? (first + 2 * width) * inputs
                                                         : first * inputs + from + DEPTH);
        for (int64_t row = 0; row < product->rows; row += GROUP)
            for (int64_t column = first, tile = 0; column < last; column += TILE, tile++) {
                multiply_group(product, row, column, from, count, tiles[tile], ahead,
                               columns_ahead);
                ahead += columns_ahead * inputs;
            }
    }
}

/* This instruction set's table. */
#define FLOAT_KERNELS                                                                              \
    {.tile_columns = TILE,                                                                         \
     .group_rows = GROUP,                                                                          \
     .fill_group = fill_group,                                                                     \
     .multiply_few = multiply_few,                                                                 \
     .multiply_tiles = multiply_tiles}
