/* The product's functions for AVX2. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "few_rows.h"
#include "halves.h"
#include "many_rows.h"
#include "rounding.h"

const ProductKernels product_kernels_avx2 = {
    .tile_columns = TILE,
    .tile_rows = TILE_ROWS,
    .round_group = round_group,
    .multiply_few = multiply_few,
    .multiply_tile = multiply_tile,
    .widen = widen,
    .narrow = narrow,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
