/* What the parts of a linear layer tell each other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sizes.h"

/* Weights as graphs have them. */
typedef struct {
    int64_t inputs, outputs;
    int64_t block;       /* numbers that share a scale, 64 to 256; 0 where weights are floats */
    const void *numbers; /* [outputs, inputs]; integers are those of MatMulNBits, of 8 bits */
    const float *scales; /* [outputs, blocks] of integers */
} LinearWeights;

/* A block of rows times a part of the columns: rows * weights + bias, then GELU where `is_gelu`,
 * plus a residual where there is one. */
typedef struct {
    LinearWeights weights;
    const uint8_t *packed; /* tiles of `tile_columns` columns */
    int64_t rows;
    const float *source;   /* [rows, inputs] */
    const float *bias;     /* [outputs] */
    const float *residual; /* [rows, outputs], or NULL */
    float *result;         /* [rows, outputs] */
    bool is_gelu;
    int64_t first, last;       /* rows of the block */
    int64_t first_tile, tiles; /* of the part */
    uint8_t *grouped;          /* the block's rows, as multiply_tiles reads them */
} Linear;

/* The functions of one instruction set and kind of weights. */
typedef struct {
    int64_t tile_columns, group_rows;
    /* Bytes of a tile of packed weights, a multiple of 64, and of a row in `grouped`. */
    int64_t (*tile_bytes)(const LinearWeights *weights);
    int64_t (*row_bytes)(const LinearWeights *weights);
    void (*pack_tile)(const LinearWeights *weights, int64_t tile, uint8_t *packed);
    /* Fill `grouped`: whole groups of rows. */
    void (*fill_groups)(const Linear *linear);
    void (*multiply_tiles)(const Linear *linear);
} LinearKernels;

extern const LinearKernels linear_kernels_avx2, linear_kernels_avx512;
extern const LinearKernels integer_linear_kernels_avx2, integer_linear_kernels_avx512;
