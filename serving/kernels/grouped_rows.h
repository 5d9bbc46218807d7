/* Products of groups of rows with tiles of columns: lanes are columns, and every number of a row
 * meets two vectors of them. */
#pragma once

#include <string.h>

#include "vectors.h"

#ifdef KERNELS_AVX512
#define GROUP 12 /* most rows that are multiplied at once */
#else
#define GROUP 6
#endif

#define TILE (2 * LANES) /* columns of a tile */

/* Numbers of a row that lie side by side in a group of rows. Tiles are padded to as many. */
#define CHUNK 16

#define LINE 16 /* numbers of a line of the caches */

/* Turn columns from `first` of [columns, size], `stride` apart, to a tile [padded size][TILE]. */
static inline void fill_tile(const float *source, int64_t columns, int64_t stride, int64_t size,
                             int64_t first, float *tile) {
    const int64_t padded = pieces_of(size, CHUNK) * CHUNK;
    for (int64_t k = 0; k < padded; k += LANES)
        for (int half = 0; half < TILE; half += LANES) {
            Floats block[LANES];
            for (int i = 0; i < LANES; i++) {
                const int64_t column = first + half + i;
                block[i] = column < columns
                               ? floats_load_some(source + column * stride + k, size - k)
                               : floats_all(0);
            }
            transpose(block);
            for (int i = 0; i < LANES; i++)
                floats_store(tile + (k + i) * TILE + half, block[i]);
        }
}

/* Rows of each group of so many rows, `most` at most: as few groups as there can be, all about as
 * large, with an even number of rows. */
static inline int64_t rows_of_group(int64_t rows, int64_t most) {
    return pieces_of(pieces_of(rows, pieces_of(rows, most)), 2) * 2;
}

/* `rows` rows of `size` numbers, `stride` apart, times `factor`, as a group [chunks][group][CHUNK];
 * what is missing is zero. */
static inline void fill_group(const float *source, int64_t rows, int64_t stride, int64_t size,
                              float factor, int64_t group, float *place) {
    const int64_t padded = pieces_of(size, CHUNK) * CHUNK;
    const Floats factors = floats_all(factor);
    for (int64_t r = 0; r < group; r++)
        for (int64_t k = 0; k < padded; k += LANES) {
            const Floats numbers =
                floats_load_some(source + r * stride + k, r < rows ? size - k : 0);
            floats_store(place + (k / CHUNK * group + r) * CHUNK + k % CHUNK,
                         multiply(numbers, factors));
        }
}

/* Sums of a group of `group` rows, a number known when compiling, times a tile. Meanwhile, `lines`
 * lines of the caches are fetched from `ahead` for each chunk. */
ALWAYS_INLINE void multiply_group(const float *numbers, const float *tile, int64_t chunks,
                                  const float *ahead, int64_t lines, int group, Floats (*sums)[2]) {
    UNROLLED for (int r = 0; r < group; r++) sums[r][0] = sums[r][1] = floats_all(0);
    for (int64_t chunk = 0; chunk < chunks; chunk++, numbers += group * CHUNK) {
        for (int64_t line = 0; line < lines; line++, ahead += LINE)
            __builtin_prefetch(ahead, 0, 2);
        UNROLLED for (int k = 0; k < CHUNK; k++, tile += TILE) {
            const Floats left = floats_load(tile), right = floats_load(tile + LANES);
            UNROLLED for (int r = 0; r < group; r++) {
                const Floats number = floats_all(numbers[r * CHUNK + k]);
                sums[r][0] = multiply_add(number, left, sums[r][0]);
                sums[r][1] = multiply_add(number, right, sums[r][1]);
            }
        }
    }
}

/* Call `body(..., group)` with a number of rows that is known when compiling. */
#ifdef KERNELS_AVX512
#define FOR_GROUP(group, body, ...)                                                                \
    switch (group) {                                                                               \
    case 2:                                                                                        \
        body(__VA_ARGS__, 2);                                                                      \
        break;                                                                                     \
    case 4:                                                                                        \
        body(__VA_ARGS__, 4);                                                                      \
        break;                                                                                     \
    case 6:                                                                                        \
        body(__VA_ARGS__, 6);                                                                      \
        break;                                                                                     \
    case 8:                                                                                        \
        body(__VA_ARGS__, 8);                                                                      \
        break;                                                                                     \
    case 10:                                                                                       \
        body(__VA_ARGS__, 10);                                                                     \
        break;                                                                                     \
    default:                                                                                       \
        body(__VA_ARGS__, GROUP);                                                                  \
    }
#else
#define FOR_GROUP(group, body, ...)                                                                \
    switch (group) {                                                                               \
    case 2:                                                                                        \
        body(__VA_ARGS__, 2);                                                                      \
        break;                                                                                     \
    case 4:                                                                                        \
        body(__VA_ARGS__, 4);                                                                      \
        break;                                                                                     \
    default:                                                                                       \
        body(__VA_ARGS__, GROUP);                                                                  \
    }
#endif
