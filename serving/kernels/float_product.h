/* What the parts of a matrix product with float weights tell each other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sizes.h"

/* One product: rows [rows, inputs] times weights that are stored [outputs, inputs]. */
typedef struct {
    int64_t inputs, outputs, rows;
    const float *source;  /* [rows, inputs] */
    const float *weights; /* [outputs, inputs] */
    float *result;        /* [rows, outputs] */
    float *grouped;       /* the rows as multiply_tiles reads them; not for multiply_few */
    int64_t part_tiles;   /* tiles of one part for multiply_tiles */
} FloatProduct;

/* The functions of one instruction set. Each does a part of a FloatProduct: a group of rows, some
 * columns. */
typedef struct {
    int64_t tile_columns, group_rows;
    void (*fill_group)(void *product, size_t group);
    void (*multiply_few)(void *product, size_t part);
    void (*multiply_tiles)(void *product, size_t part);
} FloatKernels;

/* Columns of one part for multiply_few. */
#define FLOAT_PART_COLUMNS 32

/* Most tiles of one part for multiply_tiles. */
#define MOST_PART_TILES 4

/* Numbers behind each group of rows that may be written to. */
#define GROUP_MARGIN 16

extern const FloatKernels float_kernels_avx2, float_kernels_avx512;
