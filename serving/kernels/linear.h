/* What the parts of a linear layer tell each other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sizes.h"

/* A block of rows times a part of the columns: rows * weights + bias, then GELU where `is_gelu`,
 * plus a residual where there is one. */
typedef struct {
    int64_t rows, inputs, outputs;
    const float *source;       /* [rows, inputs] */
    const float *weights;      /* tiles of `tile_columns` columns */
    const float *bias;         /* [outputs] */
    const float *residual;     /* [rows, outputs], or NULL */
    float *result;             /* [rows, outputs] */
    bool is_gelu;
    int64_t first, last;       /* rows of the block */
    int64_t first_tile, tiles; /* of the part */
    float *grouped;            /* the block's rows, as multiply_tiles reads them */
} Linear;

/* The functions of one instruction set. */
typedef struct {
    int64_t tile_columns, group_rows;
    int64_t (*tile_size)(int64_t inputs); /* numbers of a tile of weights */
    /* Pack a tile of weights [outputs, inputs]. */
    void (*pack_tile)(const float *weights, int64_t outputs, int64_t inputs, int64_t tile,
                      float *packed);
    /* Fill `grouped`: numbers of whole groups of rows, padded. */
    void (*fill_groups)(const Linear *linear);
    void (*multiply_tiles)(const Linear *linear);
} LinearKernels;

extern const LinearKernels linear_kernels_avx2, linear_kernels_avx512;
