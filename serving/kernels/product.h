/* What the parts of a matrix product with integer weights tell each other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sizes.h"

/* Numbers of a row of activations that share a scale when they are rounded to 8 bits. */
#define SPAN 128

/* Unsigned weights with a scale for each block of a row, as MatMulNBits has them. Rows are filled
 * up to whole blocks. */
typedef struct {
    int64_t inputs, outputs;
    int64_t block;          /* 16 to 256, a power of two */
    int bits;               /* 8, or 4: two numbers in a byte, the first in its lower half */
    const uint8_t *numbers; /* [outputs, blocks * block * bits / 8] */
    const float *scales;    /* [outputs, blocks] */
    const uint8_t
        *zero_points; /* [outputs, blocks], rows of whole bytes; NULL: all in the middle */
} Weights;

/* One product: rows of activations [rows, inputs] times the weights. */
typedef struct {
    Weights weights;
    int64_t rows;
    const float *source; /* [rows, inputs] */
    const float *bias;   /* [outputs], or NULL */
    float *result;       /* [rows, outputs] */
    bool is_tiled;       /* computed by multiply_tile, not by multiply_few */
    int8_t *rounded;     /* [rows, spans * SPAN], in the order that the computing function reads */
    float *row_scales;   /* [rows, spans] */
} Product;

/* The functions of one instruction set. The first three do a part each of a Product: every group
 * of tile_rows rows is rounded, then every part or tile of the columns is multiplied. */
typedef struct {
    int64_t tile_columns, tile_rows; /* `rounded` of a tiled product has a multiple of tile_rows */
    void (*round_group)(void *product, size_t group);
    void (*multiply_few)(void *product, size_t part);
    void (*multiply_tile)(void *product, size_t tile);
    void (*widen)(const uint16_t *halves, float *floats, size_t count);
    void (*narrow)(const float *floats, uint16_t *halves, size_t count);
} ProductKernels;

/* Columns of one part for multiply_few. */
#define PART_COLUMNS 64

extern const ProductKernels product_kernels_avx2, product_kernels_avx512;

static inline int64_t blocks_of(const Weights *weights) {
    return (weights->inputs + weights->block - 1) >> __builtin_ctzll(weights->block);
}

/* Numbers in a row of weights, the filling of its last block among them. */
static inline int64_t padded_inputs(const Weights *weights) {
    return blocks_of(weights) * weights->block;
}

static inline int64_t spans_of(const Weights *weights) {
    return pieces_of(padded_inputs(weights), SPAN);
}

/* What the weights of this row and block have for zero. */
static inline int zero_point(const Weights *weights, int64_t row, int64_t block) {
    if (!weights->zero_points)
        return 1 << (weights->bits - 1);
    const int64_t blocks = blocks_of(weights);
    if (weights->bits == 8)
        return weights->zero_points[row * blocks + block];
    const uint8_t two = weights->zero_points[row * ((blocks + 1) / 2) + block / 2];
    return block % 2 ? two >> 4 : two & 15;
}
